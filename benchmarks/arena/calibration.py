"""How wide an interval must be for nine of ten runs to lie within, and how many do where their model is left out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.arena.report import Row, held, within
from pytest_dooly.prediction.interval import Figure

__all__ = ["calibration", "system_error"]

HELD = 0.9
"""Share of runs that an interval holds."""

FIGURES: tuple[Figure, ...] = ("tpot", "ttft")


def system_error(rows: Sequence[Row], figure: Figure) -> float:
    """What is left of the errors besides those of operations, as a logarithm; of no run, none.

    A run lies within `hypot(operations, system)` where its own error less that of its operations is below `system`.
    """
    errors = ((row, row.error(figure)) for row in rows)
    known = [(math.log1p(error), row.operations_error(figure)) for row, error in errors if error is not None]
    if not known:
        return 0.0
    off, operations = np.array(known).T
    return float(np.quantile(np.sqrt(np.maximum(off**2 - operations**2, 0.0)), HELD, method="inverted_cdf"))


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
        cells.append(f"{system:6.2f} {held(within(row, figure, system) for row in judged):>7}")
    return f"{label:48} {len(judged):4} | {' | '.join(cells)}"
