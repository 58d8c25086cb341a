"""Held-out errors on published rows: what each way of profiling an operation costs in points and comes to in error.

Half of the rows of every linear and attention of the models whose sizes are in the tables is never fitted to by any way
but the one that has nothing else of the size. No stand-in: every latency is a published one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.study.costs import adaptive_points, measured
from pytest_dooly.core.batch import Limits, SweepPoint
from pytest_dooly.core.device import Device
from pytest_dooly.core.environment import CUDA_GRAPH
from pytest_dooly.core.operation import OperationKind
from pytest_dooly.core.published_latency import PublishedLatency
from pytest_dooly.core.signature import Signature
from pytest_dooly.core.work import Work
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.published.across import AcrossSizes
from pytest_dooly.published.family import Family, Part, Table, columns_of, lone_parts_of, parts_of, table_of
from pytest_dooly.published.family_regressor import FamilyRegressor
from pytest_dooly.published.kernels import Description, describe
from pytest_dooly.regress.fit import fit
from pytest_dooly.sweep.grid import sweep
from pytest_dooly.sweep.refine import TARGET

__all__ = ["CurvePoint", "Errors", "Rows", "halves", "held_out", "learning_curve", "rows_of"]

Array = npt.NDArray[np.float64]
Sizes = tuple[tuple[str, int], ...]

WAYS = ("all points", "adaptive points", "across sizes, size unseen", "across sizes, size seen")
"""A fit of the one operation to half of its rows, or to those of them that a refinement asks for; a regressor across
sizes fitted to the other sizes alone, or to half of this one's rows as well."""

FOLDS = 2
"""Fits across sizes, each without half of the models' sizes: a tenth of a table's."""

NUM_SIZES = (5, 10, 20, 50, 100, 200)
SEEDS = (0, 1, 2)
MOST_OTHERS = 150
"""Sizes that a regressor across a few is asked for, at most."""


@dataclass(frozen=True)
class Rows:
    """Published rows of one family on one device.

    Attributes:
        family: of the rows.
        device: that they were measured on.
        published: of each signature, in a fixed order.
        table: all of them as arrays.
    """

    family: Family
    device: Device
    published: Mapping[Signature, tuple[PublishedLatency, ...]]
    table: Table

    def sizes_of(self, signature: Signature) -> Sizes:
        """The sizes of a signature's part in the family."""
        return next(part.sizes for part in parts_of(signature) if self.family.serves(part.family))

    def described(self, points: Sequence[SweepPoint], signature: Signature) -> Description:
        """Features of a signature's points."""
        part = next(part for part in parts_of(signature) if self.family.serves(part.family))
        return describe(self.family, columns_of(part, Work.of(points)), self.device)


@dataclass(frozen=True)
class Errors:
    """Of one way over all operations.

    Attributes:
        device: that the latencies are of.
        family: of the operations.
        way: of profiling.
        operations: number of them.
        points: that an operation is fitted to, in the mean.
        rows: held out, of all operations.
        median: of the absolute relative error of those rows, 0.05 for 5 %.
        mean: of the same.
        p95: its 95th percentile.
        above_target: operations whose mean error is above the target.
    """

    device: str
    family: str
    way: str
    operations: int
    points: float
    rows: int
    median: float
    mean: float
    p95: float
    above_target: int


@dataclass(frozen=True)
class CurvePoint:
    """A regressor across few sizes, asked for the others.

    Attributes:
        device: that the latencies are of.
        family: of the operations.
        num_sizes: that it was fitted to.
        seed: of their choice.
        others: number of sizes that it was asked for.
        skipped: share of them that lie near and between the fitted ones, with a mean expected error within the target.
        error_skipped: mean error of these; None where there are none.
        error_timed: mean error of the rest, which would be timed; None where there are none.
        beyond: share of the skipped whose mean error is above the target all the same; None where there are none.
    """

    device: str
    family: str
    num_sizes: int
    seed: int
    others: int
    skipped: float
    error_skipped: float | None
    error_timed: float | None
    beyond: float | None


def rows_of(db: LatencyDB, device: Device, family: Family) -> Rows | None:
    """The published rows of a family, replayed graphs of the environment with most of them; None where there are none.

    Args:
        db: where they are.
        device: that they were measured on.
        family: of which there may be a backend left open.
    """
    signatures, found = db.signatures(), []
    for environment in db.environments():
        if environment.device != device.product or environment.execution != CUDA_GRAPH:
            continue
        counts = db.published_counts(environment)
        for served in {part.family for key in counts for part in lone_parts_of(signatures[key])}:
            if served.serves(family):
                keys = [key for key in counts if served in {part.family for part in lone_parts_of(signatures[key])}]
                found.append((sum(counts[key] for key in keys), str(served), environment, served, keys))
    if not found:
        return None
    _, _, environment, served, keys = max(found, key=lambda each: each[:2])
    published = {
        of[0].signature: tuple(sorted(of, key=lambda row: (str(row.point), row.variant)))
        for _, of in sorted(db.published(environment, keys).items())
    }
    table = table_of(served, [row for of in published.values() for row in of])
    return Rows(served, device, published, table)


def halves(
    rows: Sequence[PublishedLatency], seed: int
) -> tuple[tuple[PublishedLatency, ...], tuple[PublishedLatency, ...]]:
    """A random half that may be fitted to, and the other half, which is held out."""
    order = np.random.default_rng(seed).permutation(len(rows))
    return tuple(rows[i] for i in sorted(order[::2])), tuple(rows[i] for i in sorted(order[1::2]))


def held_out(
    phases: Sequence[Rows],
    asked: Iterable[Signature],
    limits: Limits,
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[Errors, ...]:
    """Errors of every way at the held-out half of the rows of the operations asked for.

    Args:
        phases: rows of one family, or of both phases of attention, which one fit of an operation covers.
        asked: signatures of the models.
        limits: of the sweep whose number of coarse points an adaptive one starts with.
        progress: called with a line before anything that takes seconds.
    """
    signatures = _published_of(phases, asked)
    split = {signature: halves(phases[0].published[signature], i) for i, signature in enumerate(signatures)}
    device = phases[0].device.name
    progress(f"{device}: fits of {len(signatures)} operations of {phases[0].family}")
    offs: dict[tuple[str, str], list[Array]] = {}
    points: dict[tuple[str, str], list[int]] = {}
    for signature, (seen, out) in split.items():
        chosen = _adaptive(signature, seen, len(sweep(signature, limits)))
        for way, fitted_to in (("all points", seen), ("adaptive points", chosen)):
            regressor = fit(signature, {row.point: measured(row.latency_s) for row in fitted_to})
            for phase in phases:
                there = _of_phase(phase, signature, out)
                predicted_s = regressor.predict_s([row.point for row in there])
                offs.setdefault((str(phase.family), way), []).append(_off(predicted_s, there))
                points.setdefault((str(phase.family), way), []).append(len(_of_phase(phase, signature, fitted_to)))
    for phase in phases:
        progress(f"{device}: {FOLDS + 1} fits across {len(phase.table.sizes)} sizes of {phase.family}")
        for way, off, number in _across(phase, split):
            offs.setdefault((str(phase.family), way), []).append(off)
            points.setdefault((str(phase.family), way), []).append(number)
    return tuple(
        _errors(device, str(phase.family), way, offs[str(phase.family), way], points[str(phase.family), way])
        for phase in phases
        for way in WAYS
        if (str(phase.family), way) in offs
    )


def learning_curve(
    rows: Rows,
    num_sizes: Sequence[int] = NUM_SIZES,
    seeds: Sequence[int] = SEEDS,
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[CurvePoint, ...]:
    """What a regressor across few sizes knows of the others, by its own expectation and in fact.

    Args:
        rows: of one family.
        num_sizes: to be fitted to, each in turn; those that leave no others are left out.
        seeds: of the choice of sizes.
        progress: called with a line before anything that takes seconds.
    """
    described = describe(rows.family, rows.table.columns, rows.device)
    found = []
    for number in (number for number in num_sizes if number < len(rows.table.sizes)):
        progress(f"{rows.device.name}: {number} sizes of {rows.family}, {len(seeds)} times")
        for seed in seeds:
            order = np.random.default_rng([number, seed]).permutation(len(rows.table.sizes))
            found.append(_curve_point(rows, described, seed, order[:number], order[number : number + MOST_OTHERS]))
    return tuple(found)


def _curve_point(
    rows: Rows, described: Description, seed: int, fitted: npt.NDArray[np.intp], others: npt.NDArray[np.intp]
) -> CurvePoint:
    """What a regressor across some sizes makes of others; numbers of the sizes, shape (sizes,)."""
    table = rows.table
    kept, there = np.isin(table.groups, fitted), np.isin(table.groups, others)
    regressor = FamilyRegressor(
        family=rows.family,
        device=rows.device,
        learner=_fit(described, table, kept),
        ranges={name: (float(of[kept].min()), float(of[kept].max())) for name, of in table.columns.items()},
        rows={table.sizes[i]: int((table.groups == i).sum()) for i in fitted},
        sources=(),
    )
    predicted_s, expected = regressor.learner.predict(described.matrix[there], described.roofline_s[there])
    off = _means(np.abs(predicted_s / table.latencies_s[there] - 1), table.groups[there])
    between = np.array([regressor.spans(Part(rows.family, table.sizes[i])) for i in np.sort(others)])
    skipped = between & (_means(expected, table.groups[there]) <= TARGET)
    return CurvePoint(
        device=rows.device.name,
        family=str(rows.family),
        num_sizes=len(fitted),
        seed=seed,
        others=len(others),
        skipped=float(skipped.mean()),
        error_skipped=float(off[skipped].mean()) if skipped.any() else None,
        error_timed=float(off[~skipped].mean()) if not skipped.all() else None,
        beyond=float((off[skipped] > TARGET).mean()) if skipped.any() else None,
    )


def _published_of(phases: Sequence[Rows], asked: Iterable[Signature]) -> list[Signature]:
    """The published signatures with the sizes of those asked for, each once."""
    wanted = {
        part.sizes
        for signature in asked
        if signature.kind in (OperationKind.LINEAR, OperationKind.LOGITS, OperationKind.ATTENTION)
        for part in parts_of(signature)
        if phases[0].family.serves(part.family)
    }
    return [signature for signature in phases[0].published if phases[0].sizes_of(signature) in wanted]


def _adaptive(signature: Signature, seen: Sequence[PublishedLatency], coarse: int) -> tuple[PublishedLatency, ...]:
    """The rows that a refinement asks for, starting from as many as a coarse sweep has, evenly spread by work."""
    by_point = {row.point: row for row in seen}
    points = sorted(by_point, key=_work)
    first = {points[round(i)] for i in np.linspace(0, len(points) - 1, min(coarse, len(points)))}
    rest = [point for point in points if point not in first]
    finer = [rest[i] for i in np.random.default_rng(0).permutation(len(rest))]
    latencies_s = {point: row.latency_s for point, row in by_point.items()}
    chosen, _ = adaptive_points(signature, latencies_s, [point for point in points if point in first], finer)
    return tuple(by_point[point] for point in chosen)


def _across(
    phase: Rows, split: Mapping[Signature, tuple[Sequence[PublishedLatency], Sequence[PublishedLatency]]]
) -> Iterator[tuple[str, Array, int]]:
    """Errors of the regressor across sizes and number of the operation's own rows in its fit, by way and operation."""
    signatures = list(split)
    for fold in range(FOLDS):
        left_out = signatures[fold::FOLDS]
        if not left_out:
            continue
        learner = _learn(phase, [row for s, of in phase.published.items() if s not in left_out for row in of])
        for signature in left_out:
            yield "across sizes, size unseen", *_asked(phase, learner, signature, split[signature], 0)
    kept = (row for s, of in phase.published.items() for row in (split[s][0] if s in split else of))
    learner = _learn(phase, list(kept))
    for signature, (seen, _) in split.items():
        number = len(_of_phase(phase, signature, seen))
        yield "across sizes, size seen", *_asked(phase, learner, signature, split[signature], number)


def _asked(
    phase: Rows,
    learner: AcrossSizes,
    signature: Signature,
    split: tuple[Sequence[PublishedLatency], Sequence[PublishedLatency]],
    number: int,
) -> tuple[Array, int]:
    there = _of_phase(phase, signature, split[1])
    described = phase.described([row.point for row in there], signature)
    return _off(learner.predict(described.matrix, described.roofline_s)[0], there), number


def _learn(phase: Rows, rows: Sequence[PublishedLatency]) -> AcrossSizes:
    table = table_of(phase.family, rows)
    return _fit(describe(phase.family, table.columns, phase.device), table, np.ones(len(table), dtype=bool))


def _fit(described: Description, table: Table, chosen: npt.NDArray[np.bool_]) -> AcrossSizes:
    """A regressor across the sizes of the chosen rows."""
    groups = np.unique(table.groups[chosen], return_inverse=True)[1]
    return AcrossSizes.fit(
        described.matrix[chosen],
        described.roofline_s[chosen],
        table.latencies_s[chosen],
        groups,
        described.num_sizes,
    )


def _of_phase(phase: Rows, signature: Signature, rows: Sequence[PublishedLatency]) -> tuple[PublishedLatency, ...]:
    """The rows of attention's phase; all rows of any other operation."""
    part = next(part for part in parts_of(signature) if phase.family.serves(part.family))
    columns = columns_of(part, Work.of([row.point for row in rows]))
    there = columns.get("batch_size", np.ones(len(rows))) > 0
    return tuple(row for row, kept in zip(rows, there, strict=True) if kept)


def _off(predicted_s: Array, rows: Sequence[PublishedLatency]) -> Array:
    return np.abs(predicted_s / np.array([row.latency_s for row in rows]) - 1)


def _errors(device: str, family: str, way: str, offs: Sequence[Array], points: Sequence[int]) -> Errors:
    every = np.concatenate(offs)
    return Errors(
        device=device,
        family=family,
        way=way,
        operations=len(offs),
        points=float(np.mean(points)),
        rows=len(every),
        median=float(np.median(every)),
        mean=float(every.mean()),
        p95=float(np.quantile(every, 0.95)),
        above_target=sum(bool(off.mean() > TARGET) for off in offs),
    )


def _means(values: Array, groups: npt.NDArray[np.intp]) -> Array:
    """Mean of each group, shape (groups,)."""
    numbers = np.unique(groups, return_inverse=True)[1]
    return np.asarray(np.bincount(numbers, values) / np.bincount(numbers))


def _work(point: SweepPoint) -> tuple[int, int, str]:
    """An order from little to much work."""
    if point.batch is None:
        return point.num_tokens or point.num_reqs or 0, 0, str(point)
    return point.batch.num_tokens, sum(request.seq_len for request in point.batch.requests), str(point)
