"""Everything that a latency DB knows of a device, ready to found predictions on."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from pytest_dooly.core.batch import Limits, SweepPoint
from pytest_dooly.core.device import Device, device_named, device_of
from pytest_dooly.core.environment import CUDA_GRAPH, EAGER, Environment, content_hash
from pytest_dooly.core.measurement import Measurement
from pytest_dooly.core.operation import BETWEEN_LAYERS
from pytest_dooly.core.published_latency import PublishedLatency
from pytest_dooly.core.signature import ServedModel, Signature, portable
from pytest_dooly.core.work import Work
from pytest_dooly.errors import DocumentError
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.published.across import FEWEST_ROWS, AcrossSizes
from pytest_dooly.published.another_precision import AnotherPrecision, KernelModel, like
from pytest_dooly.published.basis import Basis, BasisKind, Foundation
from pytest_dooly.published.estimate import Estimate
from pytest_dooly.published.family import (
    Family,
    Part,
    columns_of,
    lone_parts_of,
    mixed_part_of,
    parts_of,
    running,
    table_of,
)
from pytest_dooly.published.family_regressor import FamilyRegressor
from pytest_dooly.published.graphs import is_padded, layer_launches
from pytest_dooly.published.kernels import FEATURES_VERSION, describe
from pytest_dooly.published.launches import Freed, peer_of, without_launches
from pytest_dooly.published.parts import PartsModel
from pytest_dooly.published.transfer import transferred
from pytest_dooly.regress.fit import fit
from pytest_dooly.regress.foreign import ForeignEstimator
from pytest_dooly.regress.regressor import LatencyModel
from pytest_dooly.regress.stored import refitted, regressors_of
from pytest_dooly.sweep.grid import sweep

__all__ = ["Grounds", "grounds_of", "latency_models"]


_FEWEST = 5
"""Measurements of our own below which published latencies say more."""

_ENGINES = ("vllm", "nccl")
"""Whose latencies come before those of other engines: what is traced is vLLM, which leaves some collectives to NCCL."""

_FEWEST_SIZES = 50
"""Of a family, from which on the error to be expected of new sizes held in the mean at every choice of them (`make
study`): with 20 it held for attention, and not for matrix products."""


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
        founded = {o.signature.key: self.foundation(o.signature, model.limits) for o in model.operations}
        launched = [o.signature.key for o in model.operations if o.signature.name in BETWEEN_LAYERS]
        unmeasured = [key for key in launched if founded[key].basis.kind == "estimate"]
        return founded | {key: replace(founded[key], model=layer_launches(model)) for key in unmeasured}

    def foundation(self, signature: Signature, limits: Limits) -> Foundation:
        """The best latency model of an operation: another GPU's, where else it is an estimate.

        Args:
            signature: of the operation, as traced on any device.
            limits: of the engine; the expected error is the mean over the sweep within them.
        """
        own = self._own(signature, limits)
        if own.basis.kind != "estimate":
            return own
        return self._of_another(signature, limits) or own

    def _of_another(self, signature: Signature, limits: Limits) -> Foundation | None:
        """By the GPU that this one is like."""
        if self.stand_in is None:
            return None
        there, like = self.stand_in.foundation(signature, limits), Estimate(signature, self.stand_in.device)
        return transferred(there, like, Estimate(signature, self.device))

    def _own(self, signature: Signature, limits: Limits) -> Foundation:
        """The best of what is known of this very device."""
        estimate = Estimate(signature, self.device)
        measured = self._measured.get(portable(signature))
        if measured is not None:
            environment, outcomes = measured
            regressor = fit(signature, outcomes)
            return Foundation(regressor, Basis("measured", len(outcomes), (str(environment),), regressor.error))
        asked = parts_of(signature)
        published = None if asked else self._published.get(portable(signature))
        if published is not None:
            return self._at_own_sizes(signature, *published)
        work = Work.of(sweep(signature, limits))
        parts = [(part, self._surest(part, work)) for part in asked]
        known = tuple((part, regressor) for part, regressor in parts if regressor is not None)
        if not parts or len(known) < len(parts):
            return Foundation(estimate, Basis("estimate", 0, (f"data sheet of {self.device.product}",), None))
        captured = limits.captured_tokens if is_padded(signature) else 0
        founded = PartsModel(known, estimate, self._mixed(signature), captured)
        _, errors = founded.predict(work)
        exact = all(part.sizes in regressor.rows for part, regressor in known)
        # Several parts can rest on one regressor, whose latencies count once.
        rows = {
            (r.family, part.sizes if exact else None): r.rows[part.sizes] if exact else sum(r.rows.values())
            for part, r in known
        }
        sources = tuple(dict.fromkeys(source for _, regressor in known for source in regressor.sources))
        own = all(isinstance(regressor, FamilyRegressor) for _, regressor in known)
        lent = not own and isinstance(founded.most_of(work), AnotherPrecision)
        near = all(regressor.spans(part) and len(regressor.rows) >= _FEWEST_SIZES for part, regressor in known)
        whole = own and exact and founded.rest is None
        kind: BasisKind = "another precision" if lent else "published" if whole else "across sizes"
        reliable = near and not lent and founded.rest is None
        return Foundation(founded, Basis(kind, sum(rows.values()), sources, float(np.mean(errors)), reliable))

    def _surest(self, part: Part, work: Work) -> KernelModel | None:
        """What predicts a part at some points with the least error to be expected; None where nothing is known of it.

        Another precision's latencies are asked for only where its sizes do not lie among its own.
        """
        own = self.regressor(part.family)
        if own is not None and (part.sizes in own.rows or own.spans(part)):
            return own
        columns = columns_of(part, work)
        runs = running(columns, len(work))
        if not runs.any():
            return own
        asked = {name: values[runs] for name, values in columns.items()}
        found = (self.regressor(family) for family in like(part.family, self.families, self.device))
        others: list[KernelModel] = [AnotherPrecision(part.family, each) for each in found if each is not None]
        among = next((each for each in others if part.sizes in each.rows or each.spans(part)), None)
        candidates = others if among is None else [among]
        if own is not None and (own.tells_of(part) or not others):
            candidates.append(own)
        return min(candidates, key=lambda each: each.of_sizes(asked), default=None)

    def _mixed(self, signature: Signature) -> tuple[Part, FamilyRegressor] | None:
        """Attention to prompts and decodes in one step, where such steps are published at its sizes."""
        part = mixed_part_of(signature)
        regressor = None if part is None else self.regressor(part.family)
        return None if part is None or regressor is None or part.sizes not in regressor.rows else (part, regressor)

    def _at_own_sizes(
        self, signature: Signature, environment: Environment, rows: Sequence[PublishedLatency]
    ) -> Foundation:
        """A regressor on what others have measured of the very operation, where it is of no family."""
        regressor = fit(signature, {row.point: _measurement(row.latency_s) for row in rows})
        sources = tuple(source.name for source in self._db.sources(environment, [rows[0].signature.key]))
        return Foundation(regressor, Basis("published", len(rows), sources, regressor.error))

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
        peer = self._peer(environment, family)
        found = [*self._db.sources(environment, keys), *(self._db.sources(*peer) if peer else ())]
        own = [
            PublishedLatency(self._signatures[key], point, outcome.mean_s, "")
            for key in keys
            for point, outcome in self._outcomes.get(environment, {}).get(key, {}).items()
        ]
        sources = (*(source.name for source in found), *([str(environment)] if own else []))
        state = sorted(source.key for source in found), len(own), sum(row.latency_s for row in own)
        fitted_to = content_hash([FEATURES_VERSION, self.device.name, *state])
        with suppress(DocumentError):  # fitted again
            document = self._db.load_family_regressor(family.key, environment, fitted_to)
            if document is not None:
                return FamilyRegressor.from_json(document, family=family, device=self.device, sources=sources)
        freed = Freed(_flat(self._db.published(environment, keys).values()))
        if peer is not None:
            freed = without_launches(freed.rows, _flat(self._db.published(*peer).values()))
        table = table_of(family, [*freed.rows, *own])
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
            stand_in_error=freed.error,
        )
        name, error = str(family), learner.unseen_sizes and learner.unseen_sizes[0]
        self._db.save_family_regressor(
            family.key, environment, fitted.to_json(), name=name, error=error, fitted_to=fitted_to
        )
        return fitted

    def _peer(self, environment: Environment, family: Family) -> tuple[Environment, Sequence[str]] | None:
        """Where latencies of a family's peer are, that were not launched one by one as its own were."""
        peer = peer_of(family)
        if peer is None or environment.execution != EAGER:
            return None
        found = (each for each in self._best_first(peer) if each[0].execution == CUDA_GRAPH)
        return next(((where, keys) for where, _, keys in found), None)

    @property
    def families(self) -> tuple[Family, ...]:
        """Of which latencies are known of the very device."""
        return tuple(dict.fromkeys(family for _, family in self._rows))

    @property
    def attention_backends(self) -> tuple[str, ...]:
        """By which attention is known of the device, or else of its stand-in, in alphabetical order."""
        own = {family.backend for family in self.families if family.backend is not None}
        return tuple(sorted(own)) or (() if self.stand_in is None else self.stand_in.attention_backends)

    @cached_property
    def stand_in(self) -> Grounds | None:
        """What is known of the GPU that this one is like; None where it is like none, or nothing is known of that."""
        if self.device.like is None:
            return None
        grounds = Grounds(self._db, device_named(self.device.like), progress=self._progress)
        return None if grounds.empty else grounds

    @property
    def has_latencies(self) -> bool:
        """Whether anything is known of the device."""
        return bool(self._rows)

    @property
    def empty(self) -> bool:
        """Whether nothing is known of the device nor of one like it: every prediction is an estimate."""
        return not self.has_own and self.stand_in is None

    @property
    def has_own(self) -> bool:
        """Whether anything is known of the very device."""
        return bool(self._rows) or bool(self._measured)

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
            mixed = self._db.published_mixed(environment)
            of_families: dict[Family, dict[str, int]] = {}
            for key, number in (own | published).items():
                for part in lone_parts_of(self._signatures[key]):
                    if part.family.kernel != "mixed" or key in mixed:
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

    @cached_property
    def _published(self) -> Mapping[Signature, tuple[Environment, Sequence[PublishedLatency]]]:
        """What others have measured of operations of no family, by portable signature; where it is most of it."""
        found: dict[Signature, tuple[Environment, Sequence[PublishedLatency]]] = {}
        for environment in self._environments:
            lone = [key for key in self._db.published_counts(environment) if not parts_of(self._signatures[key])]
            for key, rows in self._db.published(environment, lone).items() if lone else ():
                same = portable(self._signatures[key])
                if len(rows) >= _FEWEST and (same not in found or len(rows) > len(found[same][1])):
                    found[same] = environment, rows
        return found


def _measurement(latency_s: float) -> Measurement:
    """What is published of a point: a mean, of whose rounds nothing is known."""
    return Measurement(rounds=1, min_s=latency_s, median_s=latency_s, mean_s=latency_s, iqr_s=0.0)


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
    estimator: ForeignEstimator | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, LatencyModel]:
    """The latency models of an environment by signature key: its own regressors, and what stands in for missing ones.

    Args:
        model: what is served.
        db: where regressors and published latencies are.
        environment: what the latencies are true for.
        estimator: that is fitted to what is measured, in place of the regressors.
        progress: called with a line before anything that takes seconds.

    Raises:
        EstimatorError: the estimator cannot be fitted to an operation.
    """
    models: dict[str, LatencyModel] = {}
    models |= regressors_of(db, environment) if estimator is None else refitted(estimator, model, db, environment)
    missing = [o.signature for o in model.operations if o.signature.key not in models]
    grounds = grounds_of(db, environment, progress=progress) if missing else None
    if grounds is not None:
        founded = {signature.key: grounds.foundation(signature, model.limits) for signature in missing}
        models |= {key: each.model for key, each in founded.items() if each.basis.kind != "estimate"}
    return models


def _flat(lists: Iterable[Sequence[Any]]) -> list[Any]:
    return [item for each in lists for item in each]
