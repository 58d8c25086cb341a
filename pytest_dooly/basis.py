"""What the prediction of an operation on a device rests on: measurements, published latencies, or an estimate.

Our own measurements outrank published latencies of the same operation, these outrank a regressor across other sizes,
and an estimate from the data sheet comes last. The signature of a trace on another device is compared without what only
that device decides: its attention backend, its block size, how its layers dispatch.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from pytest_dooly.across import FEWEST_ROWS, AcrossSizes
from pytest_dooly.batch import Limits, SweepPoint
from pytest_dooly.device import Device, device_of
from pytest_dooly.environment import CUDA_GRAPH, Environment, content_hash
from pytest_dooly.estimate import Estimate
from pytest_dooly.family import Columns, Family, Part, columns_of, lone_parts_of, parts_of, running, table_of
from pytest_dooly.kernels import FEATURES_VERSION, describe
from pytest_dooly.latency_db import LatencyDB
from pytest_dooly.measurement import Measurement
from pytest_dooly.prediction import StepPrediction, regressors_of, step_operations
from pytest_dooly.published import PublishedLatency
from pytest_dooly.regress import LatencyModel, fit
from pytest_dooly.signature import ServedModel, Signature
from pytest_dooly.sweep import sweep
from pytest_dooly.work import Work

__all__ = [
    "Basis",
    "BasisKind",
    "FamilyRegressor",
    "Foundation",
    "Grounds",
    "PartsModel",
    "Shares",
    "grounds_of",
    "latency_models",
    "portable",
    "shares_of",
]

Array = npt.NDArray[np.float64]

BasisKind = Literal["measured", "published", "across sizes", "estimate"]
"""Best first."""

_DEVICE_ATTRIBUTES = frozenset({"backend", "block_size", "dispatch"})
_FEWEST = 5
"""Measurements of our own below which published latencies say more."""

_ENGINES = ("vllm", "nccl")
"""Whose latencies come before those of other engines: what is traced is vLLM, which leaves some collectives to NCCL."""

_FEWEST_SIZES = 50
"""Of a family, from which on the error to be expected of new sizes held in the mean at every choice of them (`make
study`): with 20 it held for attention, and not for matrix products."""


@dataclass(frozen=True)
class Basis:
    """What one prediction rests on.

    Attributes:
        kind: of the latencies.
        num_rows: latencies behind it; 0 for an estimate.
        sources: where they come from, for people.
        error: expected relative error, 0.05 for 5 %; None where it is unknown.
        reliable: whether the expected error can be relied on: the sizes lie between those of the latencies, and these
            are enough to know an error from.
    """

    kind: BasisKind
    num_rows: int
    sources: tuple[str, ...]
    error: float | None
    reliable: bool = True

    def within(self, target: float) -> bool:
        """Whether the operation need not be timed: measured at its own sizes, or predicted within the target."""
        if self.kind in ("measured", "published"):
            return True
        return self.kind == "across sizes" and self.reliable and (self.error or 0.0) <= target


@dataclass(frozen=True)
class Foundation:
    """The latency model of one operation, and what it rests on."""

    model: LatencyModel
    basis: Basis


@dataclass(frozen=True)
class FamilyRegressor:
    """A regressor across the sizes of one family, and what it was fitted to.

    Attributes:
        family: whose latencies they are.
        device: that they were measured on.
        learner: the regressor.
        ranges: smallest and largest value of each column.
        rows: number of latencies of each size.
        sources: where the latencies come from.
    """

    family: Family
    device: Device
    learner: AcrossSizes
    ranges: Mapping[str, tuple[float, float]]
    rows: Mapping[tuple[tuple[str, int], ...], int]
    sources: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON document of what was fitted; `from_json` reads it back."""
        return {
            "learner": self.learner.to_json(),
            "ranges": self.ranges,
            "rows": [[sizes, number] for sizes, number in self.rows.items()],
        }

    @classmethod
    def from_json(
        cls, document: Mapping[str, Any], *, family: Family, device: Device, sources: tuple[str, ...]
    ) -> FamilyRegressor:
        """The inverse of `to_json`, given what the latency DB knows besides."""
        return cls(
            family=family,
            device=device,
            learner=AcrossSizes.from_json(document["learner"]),
            ranges={name: (low, high) for name, (low, high) in document["ranges"].items()},
            rows={tuple((name, size) for name, size in sizes): number for sizes, number in document["rows"]},
            sources=sources,
        )

    def predict(self, columns: Columns) -> tuple[Array, Array]:
        """Latencies in seconds and their expected relative errors, each of shape (rows,)."""
        description = describe(self.family, columns, self.device)
        return self.learner.predict(description.matrix, description.roofline_s)

    def spans(self, part: Part) -> bool:
        """Whether the sizes of a part lie between those of the latencies, each within a doubling of one of them."""
        inside = all(self.ranges[name][0] <= value <= self.ranges[name][1] for name, value in part.sizes)
        known = np.log2(np.maximum([[value for _, value in sizes] for sizes in self.rows], 0.5))
        asked = np.log2(np.maximum([value for _, value in part.sizes], 0.5))
        return inside and bool(np.abs(known - asked).max(axis=1).min() <= 1)

    def out_of_range(self, columns: Columns) -> str | None:
        """One line on the column that lies furthest outside of the latencies, or None."""
        furthest, line = 1.0, None
        for name, (low, high) in self.ranges.items():
            values = columns[name]
            if name == "batch_size":
                low = 0.0  # a chunk of a prompt is worth less than one prompt
            beyond = max(float(values.max()) / max(high, 1e-9), low / max(float(values.min()), 1e-9))
            if beyond > max(furthest, 1 + 1e-6):
                value = values.max() if values.max() > high else values.min()
                furthest, line = beyond, f"{name} {value:,.0f} is outside of the published {low:,.0f} to {high:,.0f}"
        return line


@dataclass(frozen=True)
class PartsModel:
    """The latency of an operation as the sum of its parts'; half the estimate at least, where one is taken off.

    Attributes:
        parts: each with the regressor of its family.
        estimate: of the operation.
    """

    parts: tuple[tuple[Part, FamilyRegressor], ...]
    estimate: Estimate

    @property
    def grounds(self) -> str:
        """What it was fitted to, for people."""
        families = dict.fromkeys(regressor.family for _, regressor in self.parts)
        rows = {regressor.family: sum(regressor.rows.values()) for _, regressor in self.parts}
        return ", ".join(f"{rows[family]:,} published latencies of {family}" for family in families)

    def predict_s(self, points: Sequence[SweepPoint] | Work) -> Array:
        """Latencies in seconds, shape (points,)."""
        return self.predict(points)[0]

    def predict(self, points: Sequence[SweepPoint] | Work) -> tuple[Array, Array]:
        """Latencies in seconds and their expected relative errors, each of shape (points,)."""
        work = points if isinstance(points, Work) else Work.of(points)
        total, squares = np.zeros(len(work)), np.zeros(len(work))
        for part, regressor, columns, runs in self._asked(work):
            latency_s, error = regressor.predict(columns)
            total[runs] += part.sign * latency_s
            squares[runs] += (latency_s * error) ** 2
        if any(part.sign < 0 for part, _ in self.parts):
            total = np.maximum(total, self.estimate.predict_s(work) / 2)
        return total, np.sqrt(squares) / np.maximum(total, 1e-12)

    def out_of_range(self, points: SweepPoint | Work) -> str | None:
        """One line on what lies furthest outside of the published latencies, or None."""
        work = points if isinstance(points, Work) else Work.of([points])
        lines = (regressor.out_of_range(columns) for _, regressor, columns, _ in self._asked(work))
        return next((line for line in lines if line is not None), None)

    def _asked(self, work: Work) -> Iterator[tuple[Part, FamilyRegressor, Columns, npt.NDArray[np.bool_]]]:
        """Each part with its regressor, the columns of the points that run it, and which points those are."""
        for part, regressor in self.parts:
            columns = columns_of(part, work)
            runs = running(columns, len(work))
            if runs.any():
                yield part, regressor, {name: values[runs] for name, values in columns.items()}, runs


@dataclass(frozen=True)
class Shares:
    """How much of a step rests on what.

    Attributes:
        by_kind: share of the step's latency, of every kind of basis.
        error: expected relative error of an operation, the mean weighted with latency over those where it is known.
    """

    by_kind: Mapping[BasisKind, float]
    error: float | None


class Grounds:
    """Everything that a latency DB knows of a device, ready to found predictions on.

    Reading is lazy: a regressor across sizes is fitted when an operation first asks for its family, which takes some
    seconds, and kept in the latency DB.
    """

    def __init__(self, db: LatencyDB, device: Device, *, progress: Callable[[str], None] = lambda _: None) -> None:
        """Uses every environment of the latency DB whose device it is."""
        self.device = device
        self._db = db
        self._progress = progress
        self._environments = [each for each in db.environments() if each.device == device.product]
        self._regressors: dict[Family, FamilyRegressor | None] = {}

    def of(self, model: ServedModel) -> dict[str, Foundation]:
        """The foundation of every operation of a model, by signature key."""
        return {o.signature.key: self.foundation(o.signature, model.limits) for o in model.operations}

    def foundation(self, signature: Signature, limits: Limits) -> Foundation:
        """The best latency model of an operation.

        Args:
            signature: of the operation, as traced on any device.
            limits: of the engine; the expected error is the mean over the sweep within them.
        """
        estimate = Estimate(signature, self.device)
        measured = self._measured.get(portable(signature))
        if measured is not None:
            environment, outcomes = measured
            regressor = fit(signature, outcomes)
            return Foundation(regressor, Basis("measured", len(outcomes), (str(environment),), regressor.error))
        parts = [(part, self.regressor(part.family)) for part in parts_of(signature)]
        known = tuple((part, regressor) for part, regressor in parts if regressor is not None)
        if not parts or len(known) < len(parts):
            return Foundation(estimate, Basis("estimate", 0, (f"data sheet of {self.device.product}",), None))
        founded = PartsModel(known, estimate)
        _, errors = founded.predict(sweep(signature, limits))
        exact = all(part.sizes in regressor.rows for part, regressor in known)
        # Several parts can rest on one regressor, whose latencies count once.
        rows = {
            (r.family, part.sizes if exact else None): r.rows[part.sizes] if exact else sum(r.rows.values())
            for part, r in known
        }
        sources = tuple(dict.fromkeys(source for _, regressor in known for source in regressor.sources))
        reliable = all(regressor.spans(part) and len(regressor.rows) >= _FEWEST_SIZES for part, regressor in known)
        kind: BasisKind = "published" if exact else "across sizes"
        return Foundation(founded, Basis(kind, sum(rows.values()), sources, float(np.mean(errors)), reliable))

    def predictable(self, model: ServedModel, *, target: float) -> dict[str, float | None]:
        """Expected error of the operations that need not be timed, by signature key.

        They are those that others have measured at the very sizes, and those that a regressor across sizes is expected
        to predict within the target.

        Args:
            model: what is served.
            target: expected relative error, 0.05 for 5 %.
        """
        bases = {key: each.basis for key, each in self.of(model).items()}
        return {key: basis.error for key, basis in bases.items() if basis.kind != "measured" and basis.within(target)}

    def regressor(self, family: Family) -> FamilyRegressor | None:
        """The regressor across the sizes of a family, or None where nothing of it is published for the device."""
        if family not in self._regressors:
            found = (self._fitted(*each) for each in self._best_first(family))
            self._regressors[family] = next((each for each in found if each is not None), None)
        return self._regressors[family]

    def _best_first(self, asked: Family) -> list[tuple[Environment, Family, Sequence[str]]]:
        """Where the family is: our own measurements of enough sizes, then vLLM, replayed graphs, most latencies."""
        found = [
            (
                environment in self._measured_environments and len(counts) >= _FEWEST_SIZES,
                environment.engine in _ENGINES,
                environment.execution == CUDA_GRAPH,
                sum(counts.values()),
                (environment, family, list(counts)),
            )
            for (environment, family), counts in self._rows.items()
            if family.serves(asked)
        ]
        return [where for *_, where in sorted(found, key=lambda each: each[:4], reverse=True)]

    def _fitted(self, environment: Environment, family: Family, keys: Sequence[str]) -> FamilyRegressor | None:
        """The regressor as the latency DB has it, or else fitted now; None where there are too few latencies."""
        found = self._db.sources(environment, keys)
        own = [
            PublishedLatency(self._signatures[key], point, outcome.mean_s, "")
            for key in keys
            for point, outcome in self._outcomes.get(environment, {}).get(key, {}).items()
        ]
        sources = (*(source.name for source in found), *([str(environment)] if own else []))
        state = sorted(source.key for source in found), len(own), sum(row.latency_s for row in own)
        fitted_to = content_hash([FEATURES_VERSION, self.device.name, *state])
        document = self._db.load_family_regressor(family.key, environment, fitted_to)
        if document is not None:
            return FamilyRegressor.from_json(document, family=family, device=self.device, sources=sources)
        table = table_of(family, [*_flat(self._db.published(environment, keys).values()), *own])
        if len(table) < FEWEST_ROWS:
            return None
        self._progress(f"fitting {family} on {self.device.product} to {len(table):,} published latencies")
        description = describe(family, table.columns, self.device)
        learner = AcrossSizes.fit(
            description.matrix, description.roofline_s, table.latencies_s, table.groups, description.num_sizes
        )
        counts = np.bincount(table.groups, minlength=len(table.sizes))
        fitted = FamilyRegressor(
            family=family,
            device=self.device,
            learner=learner,
            ranges={name: (float(values.min()), float(values.max())) for name, values in table.columns.items()},
            rows=dict(zip(table.sizes, map(int, counts), strict=True)),
            sources=sources,
        )
        name, error = str(family), learner.unseen_sizes and learner.unseen_sizes[0]
        self._db.save_family_regressor(
            family.key, environment, fitted.to_json(), name=name, error=error, fitted_to=fitted_to
        )
        return fitted

    @property
    def has_latencies(self) -> bool:
        """Whether anything is known of the device."""
        return bool(self._rows)

    @property
    def empty(self) -> bool:
        """Whether nothing is known of the device: every prediction is an estimate."""
        return not self._rows and not self._measured

    @cached_property
    def _signatures(self) -> Mapping[str, Signature]:
        return self._db.signatures()

    @cached_property
    def _outcomes(self) -> Mapping[Environment, Mapping[str, Mapping[SweepPoint, Measurement]]]:
        """Our own measurements by environment, signature key and point."""
        return {environment: self._db.measurements(environment) for environment in self._environments}

    @cached_property
    def _measured_environments(self) -> frozenset[Environment]:
        return frozenset(environment for environment, outcomes in self._outcomes.items() if outcomes)

    @cached_property
    def _rows(self) -> Mapping[tuple[Environment, Family], Mapping[str, int]]:
        """Number of latencies by signature key, of each environment and family."""
        counts: dict[tuple[Environment, Family], dict[str, int]] = {}
        for environment in self._environments:
            own = {key: len(outcomes) for key, outcomes in self._outcomes[environment].items() if outcomes}
            published = self._db.published_counts(environment)
            of_families: dict[Family, dict[str, int]] = {}
            for key, number in (own | published).items():
                for part in lone_parts_of(self._signatures[key]):
                    of_families.setdefault(part.family, {})[key] = number
            # What we have measured of few sizes says nothing of others, and is used as it is.
            counts |= {
                (environment, family): of_keys
                for family, of_keys in of_families.items()
                if published.keys() & of_keys.keys() or len(of_keys) >= _FEWEST_SIZES
            }
        return counts

    @cached_property
    def _measured(self) -> Mapping[Signature, tuple[Environment, Mapping[SweepPoint, Measurement]]]:
        """Our own measurements by portable signature; where several environments have one, of the latest."""
        return {
            portable(self._signatures[key]): (environment, outcomes)
            for environment in self._environments
            for key, outcomes in self._outcomes[environment].items()
            if len(outcomes) >= _FEWEST
        }


def grounds_of(
    db: LatencyDB, environment: Environment, *, progress: Callable[[str], None] = lambda _: None
) -> Grounds | None:
    """What the latency DB knows of an environment's device; None where that is nothing, or cannot be used.

    Args:
        db: where latencies are.
        environment: whose device it is.
        progress: called with a line before anything that takes seconds, and where lightgbm is missing.
    """
    device = device_of(environment.device)
    grounds = None if device is None else Grounds(db, device, progress=progress)
    if grounds is None or not grounds.has_latencies:
        return None
    if importlib.util.find_spec("lightgbm") is None:
        progress("latencies of other sizes are not used: run pip install 'pytest-dooly[public-data]' for lightgbm")
        return None
    return grounds


def latency_models(
    model: ServedModel,
    db: LatencyDB,
    environment: Environment,
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, LatencyModel]:
    """The latency models of an environment by signature key: its own regressors, and what stands in for missing ones.

    Args:
        model: what is served.
        db: where regressors and published latencies are.
        environment: what the latencies are true for.
        progress: called with a line before anything that takes seconds.
    """
    models: dict[str, LatencyModel] = dict(regressors_of(db, environment))
    missing = [o.signature for o in model.operations if o.signature.key not in models]
    grounds = grounds_of(db, environment, progress=progress) if missing else None
    if grounds is not None:
        founded = {signature.key: grounds.foundation(signature, model.limits) for signature in missing}
        models |= {key: each.model for key, each in founded.items() if each.basis.kind != "estimate"}
    return models


def shares_of(model: ServedModel, step: StepPrediction, founded: Mapping[str, Foundation]) -> Shares:
    """How much of a step rests on what.

    Args:
        model: what is served.
        step: as predicted with the foundations' latency models.
        founded: foundation of each operation, by signature key.
    """
    bases = [founded[operation.signature.key].basis for operation in step_operations(model)]
    total_s = step.latency_s or 1.0
    by_kind = dict.fromkeys(get_args(BasisKind), 0.0)
    known_s = off_s = 0.0
    for basis, operation in zip(bases, step.operations, strict=True):
        by_kind[basis.kind] += operation.latency_s / total_s
        if basis.error is not None:
            known_s += operation.latency_s
            off_s += operation.latency_s * basis.error
    return Shares(by_kind, off_s / known_s if known_s else None)


def portable(signature: Signature) -> Signature:
    """The signature without what only the device of its trace decides."""
    return dataclasses.replace(
        signature,
        tensors=tuple(tensor for tensor in signature.tensors if tensor[0] != "block_table"),
        attributes=tuple(pair for pair in signature.attributes if pair[0] not in _DEVICE_ATTRIBUTES),
    )


def _flat(lists: Iterable[Sequence[Any]]) -> list[Any]:
    return [item for each in lists for item in each]
