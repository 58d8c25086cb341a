"""How wide an interval must be for nine of ten runs to lie within, and how many do where their model is left out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.arena.report import Row
from pytest_dooly.prediction.interval import Figure, operations_error

__all__ = ["calibration", "system_error", "within"]

HELD = 0.9
"""Share of runs that an interval holds."""

FIGURES: tuple[Figure, ...] = ("tpot", "ttft")


def system_error(rows: Sequence[Row], figure: Figure) -> float:
    """What is left of the errors besides those of operations, as a logarithm; of no run, none.

    A run lies within `hypot(operations, system)` where its own error less that of its operations is below `system`.
    """
    known = [(abs(_off(row, figure)), _operations(row, figure)) for row in rows if _known(row, figure)]
    if not known:
        return 0.0
    off, operations = np.array(known).T
    return float(np.quantile(np.sqrt(np.maximum(off**2 - operations**2, 0.0)), HELD, method="inverted_cdf"))


def within(row: Row, figure: Figure, system: float) -> bool | None:
    """Whether the measurement lies in the interval; None where it is not published."""
    if not _known(row, figure):
        return None
    return abs(_off(row, figure)) <= math.hypot(_operations(row, figure), system)


def calibration(rows: Sequence[Row]) -> Iterator[str]:
    """The constants of all runs, those with each model left out, and the share of its runs that lie within them."""
    yield "What operations do not explain, as a logarithm, and the share of runs within the intervals that it makes"
    yield f"{'':48} {'n':>4} | {'tpot':>6} {'within':>7} | {'ttft':>6} {'within':>7}"
    for label, mixture in (("dense", False), ("mixtures", True)):
        of = [row for row in rows if row.ours.mixture == mixture and not (row.run.low_trust or row.run.unsaid)]
        yield _line(label, of, of)
        for model in sorted({row.run.model for row in of}):
            own = [row for row in of if row.run.model == model]
            yield _line(f"  left out: {model}", own, [row for row in of if row.run.model != model])


def _line(label: str, judged: Sequence[Row], fitted: Sequence[Row]) -> str:
    cells = []
    for figure in FIGURES:
        system = system_error(fitted, figure)
        inside = [within(row, figure, system) for row in judged]
        known = [each for each in inside if each is not None]
        cells.append(f"{system:6.2f} {f'{np.mean(known):.0%}' if known else '':>7}")
    return f"{label:48} {len(judged):4} | {' | '.join(cells)}"


def _known(row: Row, figure: Figure) -> bool:
    return (row.tpot_error if figure == "tpot" else row.ttft_error) is not None


def _off(row: Row, figure: Figure) -> float:
    error = row.tpot_error if figure == "tpot" else row.ttft_error
    assert error is not None
    return math.log1p(error)


def _operations(row: Row, figure: Figure) -> float:
    return operations_error(row.ours.decode if figure == "tpot" else row.ours.prefill)
