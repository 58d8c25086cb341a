"""Plots of a report: SVG text for a page, a PNG for the README."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_dooly.core.batch import Batch, SweepPoint
from pytest_dooly.core.measurement import Measurement
from pytest_dooly.core.operation import OperationKind
from pytest_dooly.prediction.validation import TPOT_TARGET, TTFT_TARGET
from pytest_dooly.report.figure import (
    BACK,
    COLOURS,
    INK,
    SOFT,
    decimal_axis,
    headline,
    new_figure,
    note,
    power_axis,
    readable_on,
    save_png,
    shorten,
    style,
    svg,
)
from pytest_dooly.report.text import counted, format_latency, step_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    from pytest_dooly.prediction.step import StepPrediction
    from pytest_dooly.report.findings import ModelReport, OperationReport

__all__ = [
    "fitted_against_measured",
    "isolated_against_in_situ",
    "latency_curves",
    "predicted_against_measured",
    "save_overview",
    "step_breakdown",
]


_PANEL_COLUMNS = 3


_Pair = tuple[float, float, str]
"""Measured and predicted latency in seconds, and a name."""


@dataclass(frozen=True)
class _Series:
    """Measured points along one size, and how to make any other point on the same line."""

    name: str
    sizes: tuple[int, ...]
    outcomes: tuple[Measurement, ...]
    point: Callable[[int], SweepPoint]


@dataclass(frozen=True)
class _Panel:
    """One small plot of an operation's latency."""

    row: OperationReport
    note: str
    x_label: str
    series: tuple[_Series, ...]


def latency_curves(report: ModelReport) -> str:
    """Measured latencies with their fitted line, dearest operation first; empty where nothing was measured."""
    panels = [panel for row in _dearest_first(report) for panel in _panels(row)]
    if not panels:
        return ""
    columns = min(_PANEL_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    with style():
        figure = new_figure(3.75 * columns, 2.6 * rows)
        _draw_panels(figure.subplots(rows, columns, squeeze=False).flat, panels)
        return svg(figure, "Latency of every operation: measured medians and fitted lines")


def step_breakdown(report: ModelReport) -> str:
    """Share of each kind of operation in the predicted steps; empty without predictions."""
    if not report.steps:
        return ""
    with style():
        figure = new_figure(11.25, 0.55 * len(report.steps) + 0.6)
        _draw_breakdown(figure, report)
        return svg(figure, "Share of each kind of operation in a step's latency")


def predicted_against_measured(report: ModelReport) -> str:
    """TTFT and TPOT of the validation around the diagonal; empty without a validation."""
    if report.validation is None:
        return ""
    ttfts, tpots = [], []
    for row in report.validation.rows:
        name = f"{row.workload.prompt_len} × {row.workload.at_once}"
        ttfts.append((row.measured_ttft_s, row.predicted_ttft_s, name))
        if row.measured_tpot_s is not None and row.predicted_tpot_s is not None:
            tpots.append((row.measured_tpot_s, row.predicted_tpot_s, name))
    plots = [("TTFT", ttfts, OperationKind.LINEAR, TTFT_TARGET), ("TPOT", tpots, OperationKind.ATTENTION, TPOT_TARGET)]
    plots = [plot for plot in plots if plot[1]]
    with style():
        figure = new_figure(5.0 * len(plots), 4.4)
        axes = figure.subplots(1, len(plots), squeeze=False).flat
        for ax, (name, pairs, kind, target) in zip(axes, plots, strict=True):
            ax.set_title(name, fontweight="bold")
            ax.scatter(*_milliseconds(pairs), color=COLOURS[kind], s=28, alpha=0.85, linewidths=0, zorder=3)
            _diagonal(ax, pairs, ("measured, ms", "predicted, ms"), band=target)
        return svg(figure, "Predicted against measured TTFT and TPOT")


def isolated_against_in_situ(report: ModelReport) -> str:
    """Every operation alone against the same within a step, around the diagonal; empty where they were not compared."""
    if report.in_situ is None or not report.in_situ.rows:
        return ""
    pairs: dict[str, list[_Pair]] = {}
    for row in report.in_situ.rows:
        pairs.setdefault(row.kind, []).append((row.in_situ_s, row.isolated_s, ""))
    return _scattered(pairs, ("in situ, ms", "isolated, ms"), 0.05, "Latency alone against latency within a step")


def fitted_against_measured(report: ModelReport) -> str:
    """Every measured point against its fit, around the diagonal; empty where nothing was fitted."""
    pairs: dict[str, list[_Pair]] = {}
    for row in report.operations:
        if row.regressor is not None and row.points:
            points, outcomes = zip(*row.points, strict=True)
            fitted = row.regressor.predict_s(points)
            found = pairs.setdefault(row.operation.signature.kind, [])
            found += [(outcome.median_s, float(fit), "") for outcome, fit in zip(outcomes, fitted, strict=True)]
    if not pairs:
        return ""
    axes = "measured, ms", "fitted, ms"
    return _scattered(pairs, axes, 0.10, "Fitted against measured latency of every sweep point")


def _scattered(pairs: Mapping[str, Sequence[_Pair]], axes: tuple[str, str], band: float, title: str) -> str:
    """SVG of pairs by kind of operation around the diagonal."""
    with style():
        figure = new_figure(4.9, 4.6)
        ax = figure.subplots()
        for kind, found in pairs.items():
            colour = COLOURS[OperationKind(kind)]
            ax.scatter(*_milliseconds(found), s=11, alpha=0.75, linewidths=0, color=colour, label=kind, zorder=3)
        _diagonal(ax, [pair for found in pairs.values() for pair in found], axes, band=band)
        ax.legend(loc="lower right", fontsize=8, handletextpad=0.1, labelspacing=0.25)
        return svg(figure, title)


def save_overview(report: ModelReport, path: Path) -> None:
    """Writes a PNG, 1600 pixels wide: curves of the dearest operations above the steps' breakdown."""
    panels = [panel for row in _dearest_first(report) for panel in _panels(row)]
    environment = report.environment
    with style():
        figure = new_figure(12, 8.2)
        headline(
            figure,
            f"{report.model.name} on {environment.device}, {environment.engine} {environment.engine_version}",
        )
        parts: Any = figure.subfigures(2, 1, height_ratios=[2.3, 1])
        top, bottom = parts
        _draw_panels(top.subplots(2, _PANEL_COLUMNS).flat, panels[: 2 * _PANEL_COLUMNS])
        if report.steps:
            _draw_breakdown(bottom, report, title="Where a step's time goes, as predicted")
        save_png(figure, path)


def _dearest_first(report: ModelReport) -> list[OperationReport]:
    def cost(row: OperationReport) -> float:
        return row.operation.multiplicity * sum(outcome.median_s for _, outcome in row.points) / len(row.points)

    return sorted((row for row in report.operations if row.points), key=cost, reverse=True)


def _panels(row: OperationReport) -> list[_Panel]:
    """One panel; two where a whole batch decides, so that prefill and decode each get an axis of their own."""
    swept = row.operation.signature.swept
    if swept == "batch":
        return _batch_panels(row)
    pairs = [(point.num_tokens or point.num_reqs or 0, outcome) for point, outcome in row.points]
    if swept == "num_reqs":
        return [_Panel(row, "", "requests", (_series("", pairs, lambda size: SweepPoint(num_reqs=size)),))]
    return [_Panel(row, "", "tokens", (_series("", pairs, lambda size: SweepPoint(num_tokens=size)),))]


def _batch_panels(row: OperationReport) -> list[_Panel]:
    """Prefills of one request without context, and decodes at equal contexts; mixed batches lie on no line."""
    prefills: list[tuple[int, Measurement]] = []
    decodes: dict[int, list[tuple[int, Measurement]]] = {}
    for point, outcome in row.points:
        assert point.batch is not None
        first, num_reqs = point.batch.requests[0], point.batch.num_reqs
        if num_reqs == 1 and first.context_len == 0:
            prefills.append((first.query_len, outcome))
        elif first.query_len == 1 and first.context_len > 0 and len(set(point.batch.requests)) == 1:
            decodes.setdefault(num_reqs, []).append((first.context_len, outcome))
    panels = []
    if prefills:
        line = _series("", prefills, lambda size: SweepPoint(batch=Batch.uniform(1, size)))
        panels.append(_Panel(row, "prefill", "query_len of one request", (line,)))
    if any(len(group) > 1 for group in decodes.values()):
        lines = tuple(_decode_series(num_reqs, decodes[num_reqs]) for num_reqs in _spread(sorted(decodes)))
        panels.append(_Panel(row, "decode", "context_len of each request", lines))
    elif decodes:
        context_len = next(iter(decodes.values()))[0][0]
        pairs = [(num, group[0][1]) for num, group in decodes.items() if group[0][0] == context_len]
        line = _series("", pairs, lambda size: SweepPoint(batch=Batch.uniform(size, 1, context_len)))
        panels.append(_Panel(row, f"decode at context_len {context_len}", "requests", (line,)))
    return panels


def _decode_series(num_reqs: int, pairs: Iterable[tuple[int, Measurement]]) -> _Series:
    name = counted(num_reqs, "request")
    return _series(name, pairs, lambda size: SweepPoint(batch=Batch.uniform(num_reqs, 1, size)))


def _series(name: str, pairs: Iterable[tuple[int, Measurement]], point: Callable[[int], SweepPoint]) -> _Series:
    sizes, outcomes = zip(*sorted(pairs, key=lambda pair: pair[0]), strict=True)
    return _Series(name, sizes, outcomes, point)


def _spread(values: Sequence[int]) -> list[int]:
    """At most four of the values, the first and the last among them: more lines cannot be told apart."""
    if len(values) <= 4:
        return list(values)
    return [values[round(i * (len(values) - 1) / 3)] for i in range(4)]


def _draw_panels(axes: Iterable[Axes], panels: Iterable[_Panel]) -> None:
    for ax, panel in itertools.zip_longest(axes, panels):
        if panel is None:
            ax.set_visible(False)
        else:
            _draw_panel(ax, panel)


def _draw_panel(ax: Axes, panel: _Panel) -> None:
    row = panel.row
    medians = [outcome.median_s for series in panel.series for outcome in series.outcomes]
    factor, unit = (1e3, "ms") if max(medians) >= 1e-3 else (1e6, "µs")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    heights = []
    for i, series in enumerate(panel.series):
        heights += _draw_series(ax, panel, series, factor, alpha=(i + 2) / (len(panel.series) + 1))
    ax.set_xlim(power_axis(ax.xaxis, [size for series in panel.series for size in series.sizes]))
    ax.set_ylim(decimal_axis(ax.yaxis, heights))
    ax.set_xlabel(panel.x_label)
    ax.set_ylabel(f"latency, {unit}")
    error = None if row.regressor is None else row.regressor.error
    fit = "too few points" if error is None else f"held-out error {error:.1%}"
    notes = [panel.note, f"{row.operation.multiplicity} per step", fit]
    ax.set_title(shorten(row.operation.signature.label, 40), fontweight="bold", pad=16)
    note(ax, " · ".join(filter(None, notes)), (0, 1), (0, 5), xycoords="axes fraction", fontsize=8, va="baseline")


def _draw_series(ax: Axes, panel: _Panel, series: _Series, factor: float, *, alpha: float) -> list[float]:
    """Draws points, interquartile bars and the fitted line; returns every height drawn."""
    colour = COLOURS[panel.row.operation.signature.kind]
    medians = [outcome.median_s * factor for outcome in series.outcomes]
    # The quartiles themselves are not kept, and a logarithmic axis has no room for a bar down to zero.
    halves = [
        min(outcome.iqr_s * factor / 2, 0.9 * median) for outcome, median in zip(series.outcomes, medians, strict=True)
    ]
    ax.errorbar(series.sizes, medians, yerr=halves, fmt="o", ms=4, mew=0, elinewidth=1, color=colour, alpha=alpha)
    heights = [*medians, *(median + half for median, half in zip(medians, halves, strict=True))]
    if panel.row.regressor is not None:
        sizes = _between(series.sizes)
        fitted = panel.row.regressor.predict_s([series.point(size) for size in sizes]) * factor
        ax.plot(sizes, fitted, color=colour, linewidth=1.3, alpha=alpha)
        heights += map(float, fitted)
    if series.name:
        note(ax, series.name, (series.sizes[-1], medians[-1]), (6, 0))
    return heights


def _draw_breakdown(figure: Figure | SubFigure, report: ModelReport, *, title: str = "") -> None:
    ax = figure.subplots()
    shares = [_shares(step) for step in report.steps]
    kinds = sorted({kind for share in shares for kind in share}, key=lambda kind: -sum(s.get(kind, 0) for s in shares))
    left = [0.0] * len(shares)
    for kind in kinds:
        widths = [share.get(kind, 0.0) for share in shares]
        ax.barh(range(len(shares)), widths, 0.66, left, color=COLOURS[kind], edgecolor=BACK, lw=0.7, label=kind)
        for y, (start, width) in enumerate(zip(left, widths, strict=True)):
            text = f"{kind} {width:.0%}" if width >= 0.11 else f"{width:.0%}" if width >= 0.04 else ""
            ax.text(start + width / 2, y, text, ha="center", va="center", fontsize=8, color=readable_on(COLOURS[kind]))
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for y, step in enumerate(report.steps):
        ax.text(1.01, y, format_latency(step.latency_s), va="center", fontsize=9.5, fontweight="bold")
    ax.set_yticks(range(len(shares)), [step_name(step.batch) for step in report.steps], color=INK)
    ax.set_xlim(0, 1.09)
    ax.set_xticks([])
    ax.invert_yaxis()
    ax.grid(visible=False)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_title(title, fontweight="bold")
    figure.legend(loc="outside lower center", ncols=len(kinds), fontsize=8, handlelength=0.9, handleheight=0.9)


def _shares(step: StepPrediction) -> dict[OperationKind, float]:
    total = step.latency_s or 1.0
    shares: dict[OperationKind, float] = {}
    for operation in step.operations:
        shares[operation.kind] = shares.get(operation.kind, 0.0) + operation.latency_s / total
    return shares


def _diagonal(ax: Axes, pairs: Sequence[_Pair], names: tuple[str, str], *, band: float) -> None:
    """Equal logarithmic axes, the diagonal, a band around it (0.05 is ±5 %), the names of points outside of it."""
    values = [value for column in _milliseconds(pairs) for value in column]
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_aspect("equal")
    decimal_axis(ax.xaxis, values)
    low, high = decimal_axis(ax.yaxis, values)
    ax.set(xlim=(low, high), ylim=(low, high))
    ends = np.array([low, high])
    ax.fill_between(ends, (1 - band) * ends, (1 + band) * ends, color=SOFT, alpha=0.18, linewidth=0)
    ax.plot(ends, ends, color=SOFT, linewidth=0.9)
    ax.text(0.03, 0.96, f"band: ±{band * 100:.0f} %", transform=ax.transAxes, va="top", fontsize=8, color=SOFT)
    for measured, predicted, name in pairs:
        if name and abs(predicted / measured - 1) > band:
            note(ax, name, (measured * 1e3, predicted * 1e3), (-3, 9 if predicted > measured else -9))
    ax.set_xlabel(names[0])
    ax.set_ylabel(names[1])


def _milliseconds(pairs: Iterable[_Pair]) -> tuple[list[float], list[float]]:
    pairs = list(pairs)
    return [measured * 1e3 for measured, _, _ in pairs], [predicted * 1e3 for _, predicted, _ in pairs]


def _between(sizes: Sequence[int]) -> list[int]:
    """Sizes from the first to the last, 24 to each doubling, so that the steps of a kernel's tiles are seen."""
    steps = math.ceil(24 * math.log2(sizes[-1] / sizes[0]))
    return sorted({*sizes, *(round(sizes[0] * 2 ** (i / 24)) for i in range(steps))})
