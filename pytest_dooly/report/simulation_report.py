"""What a simulation comes to: a table to lay beside vLLM's own, a picture of its course, every request as a row."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pytest_dooly.core.operation import OperationKind
from pytest_dooly.errors import ConfigurationError, MissingExtraError
from pytest_dooly.latency_db.export import written_whole
from pytest_dooly.report.figure import (
    COLOURS,
    INK,
    decimal_axis,
    headline,
    new_figure,
    note,
    save_png,
    shorten,
    style,
)
from pytest_dooly.report.text import counted, format_latency
from pytest_dooly.report.timeline import KV_BLOCKS, STEP_TIME, Timeline
from pytest_dooly.scheduling.clock import Simulated
from pytest_dooly.simulation.summary import PERCENTILES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["format_simulation", "requests_path", "save_requests", "save_simulation"]

Array = npt.NDArray[np.float64]

_COLUMNS, _RULE, _LABEL = 100, 50, 40
"""Widest line; length of a rule and width of a label in vLLM's table."""

_TOTALS = {
    "completed": "Successful requests:",
    "failed": "Failed requests:",
    "duration": "Benchmark duration (s):",
    "total_input_tokens": "Total input tokens:",
    "total_output_tokens": "Total generated tokens:",
    "request_throughput": "Request throughput (req/s):",
    "request_goodput": "Request goodput (req/s):",
    "output_throughput": "Output token throughput (tok/s):",
    "max_output_tokens_per_s": "Peak output token throughput (tok/s):",
    "max_concurrent_requests": "Peak concurrent requests:",
    "total_token_throughput": "Total token throughput (tok/s):",
}

_METRICS = {
    "ttft": "Time to First Token",
    "tpot": "Time per Output Token (excl. 1st token)",
    "itl": "Inter-token Latency",
    "e2el": "End-to-end Latency",
}

_COUNTS = ("completed", "failed", "total_input_tokens", "total_output_tokens", "num_preemptions")
"""Keys of whole numbers; all others have two decimals, the peak of requests too."""

_STAGE_COLUMNS = {
    "request_rate": "asked",
    "request_throughput": "served",
    "completed": "requests",
    "mean_ttft_ms": "TTFT",
    "p99_ttft_ms": "P99",
    "mean_tpot_ms": "TPOT",
    "p99_tpot_ms": "P99",
    "mean_e2el_ms": "E2EL",
    "p99_e2el_ms": "P99",
}
"""Of the table of stages: rates a second, means and 99th percentiles in ms."""

_CACHE = {"prefix_cache_hit_rate": "Prefix cache hit rate (%):", "num_preemptions": "Preemptions:"}

_MARKED = (50, 90, 99)
"""Percentiles marked in a distribution."""

_MOST_BARS = 60

_ENDS = {"low": "least", "high": "most"}
"""Of the interval around a statistic."""

_WIDE = 100.0
"""Ratio of the largest to the smallest latency from which on the axis is logarithmic."""


def format_simulation(document: Mapping[str, Any], *, title: str) -> str:
    """A table worded and laid out as that of `vllm bench serve`, at most 100 columns wide.

    Args:
        document: of `summary`, or one that `vllm bench serve --save-result` wrote; what it lacks has no line.
        title: of the table, shortened where it is too long.

    Stages have a line each: rates in requests per second as asked and served, means and 99th percentiles in ms.
    """
    lines = [f"{f' {shorten(title, _COLUMNS - 4)} ':=^{_RULE}}"]
    lines += _lines(document, _TOTALS)
    for metric, name in _METRICS.items():
        unit = f"{metric.upper()} (ms):"
        # The 50th percentile is the median, which has its line.
        tails = {f"p{p}_{metric}_ms": f"P{p} {unit}" for p in PERCENTILES if p != 50}
        rows = {f"mean_{metric}_ms": f"Mean {unit}", **_ends(f"mean_{metric}"), f"median_{metric}_ms": f"Median {unit}"}
        rows |= {**tails, **_ends(f"p99_{metric}")}
        lines += _section(name, _lines(document, rows))
    lines += _section("KV Cache", _lines(document, _CACHE))
    return "\n".join([*lines, *_section("Stages", _stage_lines(document.get("stages", ()))), "=" * _RULE])


def _ends(key: str) -> dict[str, str]:
    """Labels of the interval around a statistic, by key of the document."""
    return {f"{key}_{end}_ms": f"  90 %, at {most} (ms):" for end, most in _ENDS.items()}


def _section(name: str, lines: list[str]) -> list[str]:
    return [f"{name:-^{_RULE}}", *lines] if lines else []


def _lines(document: Mapping[str, Any], labels: Mapping[str, str]) -> list[str]:
    return [f"{label:{_LABEL}} {_number(key, document[key])}" for key, label in labels.items() if key in document]


def _stage_lines(stages: Sequence[Mapping[str, Any]]) -> list[str]:
    if not stages:
        return []
    rows = [["stage", *_STAGE_COLUMNS.values()]]
    rows += [[str(each["stage"]), *(_number(key, each[key]) for key in _STAGE_COLUMNS)] for each in stages]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def _number(key: str, value: float | str | None) -> str:
    if value is None:
        return "-"
    if key in _COUNTS or isinstance(value, str):
        return str(value)
    return f"{100 * value if key == 'prefix_cache_hit_rate' else value:.2f}"


def save_simulation(simulated: Simulated, path: Path, *, title: str) -> None:
    """Writes a PNG of how TTFT and TPOT are distributed, and of the engine's load over virtual time.

    Args:
        simulated: what is drawn.
        path: of the PNG.
        title: what was served, and on what.
    """
    timeline = Timeline.of(simulated.steps)
    below = [[name, name] for name in timeline.panels]
    with style():
        figure = new_figure(12, 9)
        counts = f"{counted(len(simulated.sent_s), 'request')} in {counted(len(simulated.steps), 'step')}"
        several = f" of {timeline.num_engines} engines, counts of all together" if timeline.num_engines > 1 else ""
        headline(figure, f"{title}: {counts}{several}, as simulated")
        axes: dict[str, Axes] = figure.subplot_mosaic(
            [["TTFT", "TPOT"], *below], height_ratios=[2.6] + [1] * len(below)
        )
        _draw_distribution(axes["TTFT"], "TTFT", simulated.ttft_s, COLOURS[OperationKind.LINEAR])
        _draw_distribution(axes["TPOT"], "TPOT", simulated.tpot_s, COLOURS[OperationKind.LOGITS])
        for name, kind in zip(timeline.panels, _PANEL_KINDS, strict=True):
            _draw_panel(axes[name], timeline, name, COLOURS[kind])
            axes[name].tick_params(labelbottom=False)
        axes[name].tick_params(labelbottom=True)
        axes[name].set_xlabel("virtual time, s (line: mean, shade: maximum of each thousandth)")
        save_png(figure, path)


_PANEL_KINDS = (OperationKind.ACTIVATION, OperationKind.LINEAR, OperationKind.SAMPLER, OperationKind.LOGITS)
"""Whose colours the panels borrow."""


def _draw_distribution(ax: Axes, name: str, values_s: Array, colour: str) -> None:
    values = values_s[~np.isnan(values_s)] * 1e3
    ax.set_title(f"{name} of {counted(len(values), 'request')}", fontweight="bold")
    ax.set_xlabel(f"{name}, ms")
    ax.set_ylabel("requests")
    if not len(values):
        ax.set(xticks=[], yticks=[])
        note(ax, "no request has one", (0.5, 0.5), (0, 0), xycoords="axes fraction", ha="center", fontsize=9)
        return
    low, high = float(values.min()), float(values.max())
    bars = int(np.clip(2 * math.sqrt(len(values)), 10, _MOST_BARS))
    if 0 < low * _WIDE < high:
        ax.set_xscale("log")
        ax.set_xlim(decimal_axis(ax.xaxis, values))
        edges = np.geomspace(low, high, bars + 1)
    else:
        if high - low <= 1e-6 * high:  # equal but for rounding
            low, high, bars = 0.9 * low, 1.1 * high or 1.0, bars | 1  # all in the bar in the middle
        ax.set_xlim(low - 0.05 * (high - low), high + 0.05 * (high - low))
        edges = np.linspace(low, high, bars + 1)
    heights, _ = np.histogram(values, edges)
    ax.stairs(heights, edges, fill=True, color=colour, alpha=0.45)
    ax.set_ylim(0, 1.4 * max(heights))
    ax.locator_params(axis="y", integer=True, nbins=6)
    _mark_percentiles(ax, values)


def _mark_percentiles(ax: Axes, values: Array) -> None:
    """A line each, its name at the end; as high as leaves every name clear of the other lines."""
    marks = np.percentile(values, _MARKED)
    first = ax.transAxes.inverted().transform(ax.transData.transform((marks[0], 0)))[0]
    on_left = first > 0.25  # else there is no room for the first one's
    looks = {"xycoords": ax.get_xaxis_transform(), "ha": "right" if on_left else "left", "color": INK, "fontsize": 8.5}
    heights = (0.79, 0.875, 0.96) if on_left else (0.96, 0.875, 0.79)
    for percentile, mark, height in zip(_MARKED, marks, heights, strict=True):
        ax.axvline(mark, ymax=height + 0.03, color=INK, linewidth=1)
        text = f"p{percentile} {format_latency(mark / 1e3)}"
        note(ax, text, (mark, height), (-4 if on_left else 4, 0), **looks)


def _draw_panel(ax: Axes, timeline: Timeline, name: str, colour: str) -> None:
    mean, most = timeline.panels[name]
    highest, times = float(np.nanmax(most)), name == STEP_TIME
    begins_s = timeline.edges_s[:-1]
    # Not as stairs, whose bounds take matplotlib a tenth of a second each.
    ax.fill_between(begins_s, mean, most, step="post", color=colour, alpha=0.3, linewidth=0)
    ax.plot(begins_s, mean, drawstyle="steps-post", color=colour, linewidth=1)
    ax.set_xlim(timeline.edges_s[0], timeline.edges_s[-1])
    ax.set_ylim(0, 1.1 * highest or 1.0)
    ax.set_title(name, fontweight="bold")
    ax.set_title(f"at most {format_latency(highest / 1e3) if times else f'{highest:,.0f}'}", loc="right", fontsize=8)
    ax.locator_params(axis="y", nbins=3, integer=not times)
    ax.yaxis.set_major_formatter("{x:,.10g}")
    if name == KV_BLOCKS and len(timeline.preempted_s):
        ax.set_title(f"{name}; preemptions marked below", fontweight="bold")
        colour = COLOURS[OperationKind.ATTENTION]
        ax.plot(timeline.preempted_s, np.zeros(len(timeline.preempted_s)), "|", ms=7, color=colour, clip_on=False)


def save_requests(simulated: Simulated, path: Path) -> None:
    """Writes a row each request, whole or not at all; times in seconds, nothing where one has no TPOT.

    Args:
        simulated: the simulation.
        path: a file that ends in .csv or .parquet; its directory is made.

    Raises:
        ConfigurationError: it ends in something else.
        MissingExtraError: Parquet without pyarrow.
        ExportError: the file cannot be written; one that was there before is as it was.
    """
    write = _WRITERS[requests_path(path).suffix.lower()]
    with written_whole(path) as temporary:
        write(temporary, _request_columns(simulated))


def requests_path(path: str | Path) -> Path:
    """The path of a file of requests, asked before the work.

    Raises:
        ConfigurationError: it ends in neither .csv nor .parquet, or is a directory.
    """
    path = Path(path)
    if path.suffix.lower() not in _WRITERS or path.is_dir():
        raise ConfigurationError(f"requests are written as CSV or Parquet: name a .csv or .parquet file, got {path}")
    return path


def _request_columns(simulated: Simulated) -> dict[str, list[Any]]:
    columns = {name: np.asarray(values).tolist() for name, values in simulated.columns().items()}
    columns["tpot_s"] = [None if np.isnan(tpot_s) else tpot_s for tpot_s in columns["tpot_s"]]
    return {"request": list(range(len(simulated.sent_s))), **columns}


def _write_csv(path: Path, columns: Mapping[str, list[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def _write_parquet(path: Path, columns: Mapping[str, list[Any]]) -> None:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError(
            "Parquet needs pyarrow, which is not installed: run pip install 'pytest-dooly[public-data]', "
            "or name a .csv file"
        ) from error
    # A column of nothing but None would have no type of its own.
    types = {name: pa.float64() if name.endswith("_s") else pa.int64() for name in columns}
    arrays = {name: pa.array(values, types[name]) for name, values in columns.items()}
    parquet.write_table(pa.table(arrays), path, compression="zstd")


_WRITERS = {".csv": _write_csv, ".parquet": _write_parquet}
"""By the ending of the file."""
