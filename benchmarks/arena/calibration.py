"""How wide an interval must be for nine of ten runs to lie within, and how many do where their region is left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from benchmarks.arena.report import Row, held, within
from pytest_dooly.prediction.interval import BURST, Figure

__all__ = ["calibration", "system_error"]

HELD = 0.9
"""Share of runs that an interval holds."""

_LONG, _MANY = 4096, 64
"""Tokens of a prompt and requests at once from which on runs are a region of their own."""

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
    """The constants of all runs, those with regions left out, and the share of their runs within them."""
    yield "What operations do not explain, as a logarithm, and the share of runs within the intervals that it makes"
    yield f"{'':48} {'n':>4} | {'tpot':>6} {'within':>7} | {'ttft':>6} {'within':>7}"
    trusted = [row for row in rows if not (row.run.low_trust or row.run.unsaid)]
    bursts = [row for row in trusted if row.run.num_at_once >= BURST]
    sure = [row for row in trusted if not row.run.roughly and row.run.num_at_once < BURST]
    parts = {
        "dense": [row for row in sure if not row.ours.mixture],
        "mixtures": [row for row in sure if row.ours.mixture],
        f"{BURST} requests and more, all at once": bursts,
    }
    for label, of in parts.items():
        yield _line(label, of, of)
        for region, within_it in _regions(of):
            judged, others = [row for row in of if within_it(row)], [row for row in of if not within_it(row)]
            if judged and others:
                yield _line(f"  left out: {region}", judged, others)


def _regions(rows: Sequence[Row]) -> Iterator[tuple[str, Callable[[Row], bool]]]:
    """Whole parts of what is served, each with whether a run lies there."""
    for model in sorted({row.run.model for row in rows}):
        yield model, partial(_is_of, "model", model)
    for device in sorted({row.run.device for row in rows}):
        yield device, partial(_is_of, "device", device)
    yield f"prompts of {_LONG:,} tokens and more", lambda row: row.run.prompt_len >= _LONG
    yield f"{_MANY} requests at once and more", lambda row: (row.run.concurrency or row.run.num_requests) >= _MANY


def _is_of(name: str, value: str, row: Row) -> bool:
    return bool(getattr(row.run, name) == value)


def _line(label: str, judged: Sequence[Row], fitted: Sequence[Row]) -> str:
    cells = []
    for figure in FIGURES:
        system = system_error(fitted, figure)
        cells.append(f"{system:6.2f} {held(within(row, figure, system) for row in judged):>7}")
    return f"{label:48} {len(judged):4} | {' | '.join(cells)}"
