"""Tables and a picture of predictions beside published runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.arena.predictions import Predicted
from benchmarks.arena.runs import PublishedRun
from pytest_dooly.prediction.interval import Figure, operations_error, system_error


@dataclass(frozen=True)
class Row:
    """A published run, and what is predicted of it.

    Attributes:
        run: as published.
        ours: as predicted here.
        theirs: TTFT and TPOT in seconds as aiconfigurator estimates them; None where it does not.
    """

    run: PublishedRun
    ours: Predicted
    theirs: tuple[float, float] | None = None

    def error(self, figure: Figure) -> float | None:
        """Signed relative error of TTFT or TPOT; None where it is not published."""
        ours, run = self.ours, self.run
        return _error(ours.tpot_s, run.tpot_s) if figure == "tpot" else _error(ours.ttft_s, run.ttft_s)

    def their_error(self, figure: Figure) -> float | None:
        """Signed relative error of aiconfigurator's own estimate; None where it has none."""
        if self.theirs is None:
            return None
        ttft_s, tpot_s = self.theirs
        return _error(tpot_s, self.run.tpot_s) if figure == "tpot" else _error(ttft_s, self.run.ttft_s)

    def operations_error(self, figure: Figure) -> float:
        """The part of the figure's interval that is the operations', as a logarithm."""
        return operations_error(self.ours.decode if figure == "tpot" else self.ours.prefill)

    @property
    def throughput_error(self) -> float | None:
        """Signed relative error of tokens a second; None where they are not published."""
        return _error(self.ours.tokens_per_s, self.run.tokens_per_s)


def within(row: Row, figure: Figure, system: float | None = None) -> bool | None:
    """Whether the measurement lies in the interval; None where it is not published, or no interval is stated.

    Args:
        row: the run.
        figure: of it.
        system: what operations do not explain, as a logarithm; None for what is stated.
    """
    error, stated = row.error(figure), row.ours.within_s
    if error is None:
        return None
    if system is None and stated is not None:
        ends, measured_s = stated[figure], row.run.tpot_s if figure == "tpot" else row.run.ttft_s
        return None if ends is None or measured_s is None else ends[0] <= measured_s <= ends[1]
    if system is None:
        system = system_error(figure, mixture=row.ours.mixture, at_once=row.run.num_at_once)
    return abs(math.log1p(error)) <= math.hypot(row.operations_error(figure), system)


def held(inside: Iterable[bool | None]) -> str:
    """Share of what is known that lies within."""
    known = [each for each in inside if each is not None]
    return f"{np.mean(known):.0%}" if known else ""


def tables(rows: Sequence[Row], left_out: Mapping[str, int]) -> Iterator[str]:
    """One row for each model, device, precision and version; then sums, and what was left out.

    Runs of which neither client nor server's flags are known stand apart: what they are off by may be theirs.
    """
    roughly = [row for row in rows if row.run.roughly and not row.run.low_trust]
    rows = [row for row in rows if not row.run.roughly or row.run.low_trust]
    trusted = [row for row in rows if not row.run.low_trust and not row.run.unsaid]
    yield "TPOT: MAPE (mean with its sign, 90th percentile); TTFT: median error; tokens a second: MAPE; in: share of"
    yield "the measurements that lie in the stated 90 % interval; aic: TPOT and TTFT as aiconfigurator estimates them"
    yield _HEADER
    for group in sorted({row.run.group for row in trusted}):
        of = [row for row in trusted if row.run.group == group]
        yield _line(" ".join(part for part in group if part), of)
    yield ""
    for label, wanted in (("dense", False), ("mixtures", True)):
        of = [row for row in trusted if row.ours.mixture == wanted]
        yield _line(label, of)
        yield _line(f"{label}, closed loops", [row for row in of if row.run.concurrency])
    yield _line("all", trusted)
    yield _line("all that aiconfigurator estimates", [row for row in trusted if row.theirs])
    yield "\nClient and server flags not said"
    unsaid = [row for row in rows if row.run.unsaid and not row.run.low_trust]
    for group in sorted({row.run.group for row in unsaid}):
        yield _line(" ".join(part for part in group if part), [row for row in unsaid if row.run.group == group])
    yield _line("of low trust", [row for row in rows if row.run.low_trust])
    yield "\nOnly means or medians of the lengths are known; of conversations they are drawn by exponential"
    yield "laws, of others from a half to three halves of those"
    for group in sorted({row.run.group for row in roughly}):
        yield _line(" ".join(part for part in group if part), [row for row in roughly if row.run.group == group])
    yield _line("of roughly known lengths", roughly)
    yield "\nLeft out"
    yield from (f"{number:5} {reason}" for reason, number in Counter(left_out).most_common())


_HEADER = (
    f"{'':64} {'n':>4} | {'TPOT':^24} | {'in':>4} | {'TTFT':>7} | {'in':>4} | {'tokens/s':>8} | {'aic TPOT':>8} | "
    f"{'TTFT':>7}"
)


def _line(label: str, rows: Sequence[Row]) -> str:
    if not rows:
        return f"{label:64} {0:4}"
    cells = [
        _spread([row.error("tpot") for row in rows]),
        held([within(row, "tpot") for row in rows]),
        _of([row.error("ttft") for row in rows], np.median),
        held([within(row, "ttft") for row in rows]),
        _of([row.throughput_error for row in rows], np.mean),
        _of([row.their_error("tpot") for row in rows], np.mean),
        _of([row.their_error("ttft") for row in rows], np.median),
    ]
    widths = (24, 4, 7, 4, 8, 8, 7)
    return f"{label:64} {len(rows):4} | " + " | ".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True))


def _error(predicted: float | None, measured: float | None) -> float | None:
    return None if not measured or predicted is None else predicted / measured - 1


def _spread(errors: Iterable[float | None]) -> str:
    known = np.array([error for error in errors if error is not None])
    if not len(known):
        return ""
    return f"{np.abs(known).mean():6.1%} ({known.mean():+.1%}, {np.percentile(np.abs(known), 90):.0%})"


def _of(errors: Iterable[float | None], centre: Callable[[np.ndarray], float]) -> str:
    known = np.array([error for error in errors if error is not None])
    return f"{centre(np.abs(known)):.1%}" if len(known) else ""


def save_picture(rows: Sequence[Row], path: Path) -> None:
    """Predicted against measured, TTFT and TPOT, on logarithmic axes, coloured by model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6.5), layout="constrained")
    models = sorted({row.run.model for row in rows})
    for axes, name in zip(figure.subplots(1, 2), ("TTFT", "TPOT"), strict=True):
        low, high = np.inf, 0.0
        for place, model in enumerate(models):
            of = [row for row in rows if row.run.model == model]
            pairs = [
                (row.run.ttft_s, row.ours.ttft_s) if name == "TTFT" else (row.run.tpot_s, row.ours.tpot_s) for row in of
            ]
            known = np.array([pair for pair in pairs if None not in pair], dtype=np.float64).reshape(-1, 2) * 1e3
            if len(known):
                axes.scatter(*known.T, s=14, alpha=0.6, label=model.partition("/")[2], color=f"C{place % 10}")
                low, high = min(low, known.min()), max(high, known.max())
        span = np.array([low, high])
        axes.plot(span, span, color="black", linewidth=0.8)
        axes.fill_between(span, span / 1.15, span * 1.15, color="black", alpha=0.08, linewidth=0, label="within 15 %")
        axes.set(xscale="log", yscale="log", xlabel=f"measured {name} (ms)", ylabel=f"predicted {name} (ms)")
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=130)
