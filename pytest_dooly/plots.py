"""Plots of a report, as SVG text to be put into a page."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_dooly.batch import Batch, SweepPoint
from pytest_dooly.operation import OperationKind

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pytest_dooly.findings import ModelReport, OperationReport

__all__ = [
    "fitted_against_measured",
    "latency_curves",
    "predicted_against_measured",
    "save_overview",
    "step_breakdown",
]

_COLOURS = {
    OperationKind.LINEAR: "#0072B2",
    OperationKind.ATTENTION: "#D55E00",
    OperationKind.MOE: "#CC79A7",
    OperationKind.NORM: "#56B4E9",
    OperationKind.ACTIVATION: "#F0E442",
    OperationKind.ROTARY: "#E69F00",
    OperationKind.LOGITS: "#009E73",
    OperationKind.SAMPLER: "#7A5195",
    OperationKind.EMBEDDING: "#4B6A88",
    OperationKind.OVERHEAD: "#999999",
}
"""Okabe and Ito's palette, which colour-blind people can tell apart; one colour a kind in every plot."""

_OTHER = "#444444"

_STYLE = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "dooly",
    "legend.frameon": False,
}


def latency_curves(report: ModelReport) -> str:
    """Measured latencies with their fitted line, one small plot an operation; empty where nothing was measured."""
    rows = [row for row in report.operations if row.points]
    if not rows:
        return ""
    with _style():
        columns = min(3, len(rows))
        figure, axes = _grid(math.ceil(len(rows) / columns), columns, 3.4, 2.5)
        for ax, row in zip(axes, rows, strict=False):
            _curve(ax, row)
        for ax in axes[len(rows) :]:
            ax.set_visible(False)
        return _svg(figure)


def step_breakdown(report: ModelReport) -> str:
    """Share of each kind of operation in the predicted steps; empty without predictions."""
    if not report.steps:
        return ""
    with _style():
        figure, axes = _grid(1, 1, 9.6, 0.75 * len(report.steps) + 1.0)
        _breakdown(axes[0], report)
        return _svg(figure)


def predicted_against_measured(report: ModelReport) -> str:
    """TTFT and TPOT of the validation on the diagonal; empty without one."""
    if report.validation is None:
        return ""
    with _style():
        figure, axes = _grid(1, 2, 4.4, 4.0)
        rows = report.validation.rows
        _diagonal(axes[0], [(row.measured_ttft_s, row.predicted_ttft_s) for row in rows], "TTFT", "#0072B2")
        tpots = [(row.measured_tpot_s, row.predicted_tpot_s) for row in rows]
        known = [(measured, predicted) for measured, predicted in tpots if measured and predicted]
        _diagonal(axes[1], known, "TPOT", "#D55E00")
        return _svg(figure)


def fitted_against_measured(report: ModelReport) -> str:
    """Every measured point against its fit; empty where nothing was fitted."""
    with _style():
        figure, axes = _grid(1, 1, 4.6, 4.2)
        drawn = False
        for row in report.operations:
            if row.regressor is None or not row.points:
                continue
            points, measured = zip(*row.points, strict=True)
            fitted = row.regressor.predict_s(points)
            kind = row.operation.signature.kind
            axes[0].scatter(
                [m.median_s * 1e3 for m in measured], fitted * 1e3, s=9, alpha=0.7, color=_COLOURS.get(kind, _OTHER)
            )
            drawn = True
        _with_band(axes[0], "fitted against measured, every point", "ms")
        return _svg(figure) if drawn else ""


def save_overview(report: ModelReport, path: Path) -> None:
    """Writes a PNG, 1600 pixels wide, of the curves that cost most and of the steps' breakdown."""
    rows = sorted((row for row in report.operations if row.points), key=_cost, reverse=True)[:6]
    with _style():
        import matplotlib.pyplot as plt

        figure = plt.figure(figsize=(12, 7.6), layout="constrained")
        top, bottom = figure.subfigures(2, 1, height_ratios=[2.6, 1])
        for ax, row in zip(top.subplots(2, 3).flat, rows, strict=False):
            _curve(ax, row)
        _breakdown(bottom.subplots(1, 1), report)
        figure.suptitle(
            f"{report.model.name} on {report.environment.device}, {report.environment.engine} "
            f"{report.environment.engine_version}",
            x=0.01,
            ha="left",
            fontsize=12,
            fontweight="bold",
        )
        figure.savefig(path, dpi=1600 / 12)
        plt.close(figure)


def _curve(ax: Axes, row: OperationReport) -> None:
    signature = row.operation.signature
    colour = _COLOURS.get(signature.kind, _OTHER)
    ax.set_title(f"{signature.label}  ×{row.operation.multiplicity}")
    if signature.swept == "batch":
        _batch_curves(ax, row, colour)
    else:
        xs = [point.num_tokens or point.num_reqs or 0 for point, _ in row.points]
        _measured(ax, xs, row, colour)
        if row.regressor is not None:
            fine = sorted({round(a * (b / a) ** (i / 6)) for a, b in itertools.pairwise(sorted(xs)) for i in range(7)})
            fitted = row.regressor.predict_s([_like(row.points[0][0], x) for x in fine])
            ax.plot(fine, fitted * 1e3, color=colour, linewidth=1.4)
        ax.set_xlabel("tokens in the step" if signature.swept == "num_tokens" else "requests in the step")
    medians_ms = [outcome.median_s * 1e3 for _, outcome in row.points]
    ax.set_ylim(0.6 * min(medians_ms), 1.7 * max(medians_ms))  # else equal latencies leave the axis without a height
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_ylabel("latency, ms")
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _batch_curves(ax: Axes, row: OperationReport, colour: str) -> None:
    """Prefills over the query length, decodes over the context length with one line a number of requests."""
    batches = {point.batch: outcome for point, outcome in row.points if point.batch is not None}
    prefills = sorted(
        (b for b in batches if b.num_reqs == 1 and b.requests[0].context_len == 0), key=lambda b: b.num_tokens
    )
    _line(ax, row, prefills, [b.num_tokens for b in prefills], batches, "#333333", "prefill")
    decodes: dict[int, list[Batch]] = {}
    for batch in batches:
        if all(r.query_len == 1 and r.context_len for r in batch.requests) and len(set(batch.requests)) == 1:
            decodes.setdefault(batch.num_reqs, []).append(batch)
    chosen = sorted(decodes)[:: max(1, len(decodes) // 3)]
    for i, num in enumerate(chosen):
        group = sorted(decodes[num], key=lambda b: b.requests[0].context_len)
        shade = 0.35 + 0.65 * (i + 1) / len(chosen)
        _line(ax, row, group, [b.requests[0].context_len for b in group], batches, colour, f"{num} decodes", shade)
    ax.set_xlabel("query length (prefill), context length (decode)")
    if ax.get_legend_handles_labels()[1]:
        ax.legend(fontsize=7, loc="upper left", handlelength=1.2)


def _line(
    ax: Axes,
    row: OperationReport,
    batches: Sequence[Batch],
    xs: Sequence[int],
    outcomes: Any,
    colour: str,
    name: str,
    alpha: float = 1.0,
) -> None:
    if not batches:
        return
    ax.scatter(xs, [outcomes[batch].median_s * 1e3 for batch in batches], s=10, color=colour, alpha=alpha)
    fitted = row.regressor.predict_s([SweepPoint(batch=batch) for batch in batches]) if row.regressor else None
    if fitted is not None:
        ax.plot(xs, fitted * 1e3, color=colour, linewidth=1.2, alpha=alpha, label=name)


def _measured(ax: Axes, xs: Sequence[int], row: OperationReport, colour: str) -> None:
    medians = [outcome.median_s * 1e3 for _, outcome in row.points]
    halves = [outcome.iqr_s * 1e3 / 2 for _, outcome in row.points]
    halves = [min(half, 0.9 * median) for half, median in zip(halves, medians, strict=True)]
    ax.errorbar(xs, medians, yerr=halves, fmt="o", markersize=3.4, color=colour, elinewidth=0.9, alpha=0.85)


def _breakdown(ax: Axes, report: ModelReport) -> None:
    kinds = [kind for kind in OperationKind if any(o.kind is kind for step in report.steps for o in step.operations)]
    names = [f"{step.batch.num_reqs} requests, {step.batch.num_tokens} tokens" for step in report.steps]
    left = [0.0] * len(report.steps)
    for kind in kinds:
        shares = [sum(o.latency_s for o in step.operations if o.kind is kind) / step.latency_s for step in report.steps]
        ax.barh(
            names,
            [100 * share for share in shares],
            left=left,
            color=_COLOURS.get(kind, _OTHER),
            label=kind,
            height=0.62,
        )
        for y, (share, start) in enumerate(zip(shares, left, strict=True)):
            if share > 0.045:
                light = kind in (OperationKind.ACTIVATION, OperationKind.NORM, OperationKind.ROTARY)
                ax.text(
                    start + 50 * share,
                    y,
                    f"{share:.0%}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="black" if light else "white",
                )
        left = [start + 100 * share for start, share in zip(left, shares, strict=True)]
    for y, step in enumerate(report.steps):
        ax.text(101, y, f"{step.latency_s * 1e3:.3g} ms", va="center", fontsize=9, fontweight="bold")
    ax.set_xlim(0, 108)
    ax.invert_yaxis()
    ax.grid(visible=False)
    ax.set_xlabel("share of the step, %")
    ax.set_title("where a step's time goes")
    below = -0.28 if len(report.steps) > 1 else -0.5
    ax.legend(ncols=len(kinds), fontsize=7.5, loc="upper center", bbox_to_anchor=(0.5, below), handlelength=1)


def _diagonal(ax: Axes, pairs: Iterable[tuple[float, float]], name: str, colour: str) -> None:
    pairs = list(pairs)
    if pairs:
        measured, predicted = zip(*pairs, strict=True)
        ax.scatter([m * 1e3 for m in measured], [p * 1e3 for p in predicted], color=colour, s=22, zorder=3)
    _with_band(ax, f"{name}: predicted against measured", "ms")


def _with_band(ax: Axes, title: str, unit: str) -> None:
    ax.set_xscale("log")
    ax.set_yscale("log")
    low, high = min(ax.get_xlim()[0], ax.get_ylim()[0]), max(ax.get_xlim()[1], ax.get_ylim()[1])
    ax.plot([low, high], [low, high], color="#888888", linewidth=1)
    ax.fill_between(
        [low, high], [0.9 * low, 0.9 * high], [1.1 * low, 1.1 * high], color="#888888", alpha=0.15, label="±10 %"
    )
    ax.set_xlim(low, high)
    ax.set_ylim(low, high)
    ax.set_title(title)
    ax.set_xlabel(f"measured, {unit}")
    ax.set_ylabel(f"predicted, {unit}")
    ax.legend(loc="upper left", fontsize=8)


def _cost(row: OperationReport) -> float:
    return row.operation.multiplicity * sum(outcome.median_s for _, outcome in row.points) / len(row.points)


def _like(point: SweepPoint, size: int) -> SweepPoint:
    return SweepPoint(num_tokens=size) if point.num_tokens is not None else SweepPoint(num_reqs=size)


def _grid(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        rows, columns, figsize=(columns * width, rows * height), squeeze=False, layout="constrained"
    )
    return figure, list(axes.flat)


def _style() -> Any:
    import matplotlib as mpl

    mpl.use("Agg")
    return mpl.rc_context(_STYLE)


def _svg(figure: Figure) -> str:
    import matplotlib.pyplot as plt

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    plt.close(figure)
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]
