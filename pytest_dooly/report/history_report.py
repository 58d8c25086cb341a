"""The runs of the gate over time: lines for a terminal, JSON, and a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pytest_dooly.core.gate_run import GateRun
from pytest_dooly.drift.history import ChangePoint, History, Track
from pytest_dooly.report.figure import INK, SOFT, headline, new_figure, save_png, style
from pytest_dooly.report.text import format_latency

__all__ = ["history_document", "history_lines", "save_history"]

_COLUMNS = 3
"""Of the picture's panels."""

_SLOWER, _FASTER, _LINE = "#d55e00", "#009e73", "#0072b2"


def history_lines(history: History) -> list[str]:
    """Runs, then every change point of every figure and operation."""
    first = history.runs[0].environment
    lines = [f"{len(history.runs)} runs on {first.device} x{first.device_count}"]
    if history.unfinished:
        lines[0] += f", and {history.unfinished} that did not finish"
    figures = [track for track in history.tracks if track.is_figure]
    for place, run in enumerate(history.runs):
        told = ", ".join(f"{t.name} {format_latency(float(t.latency_s[place]))}" for t in figures if _known(t, place))
        lines.append(f"  {run.started_at[:16]}  {_version(run):28} {run.outcome or '':12} {told}")
        if run.accepted:
            lines.append(f"    baseline from here on: {run.accepted}")
    changed = [(point, track) for track in history.tracks for point in track.points]
    lines += [""] if changed else ["no change point"]
    for point, track in sorted(changed, key=lambda pair: (pair[0].run, not pair[1].is_figure)):
        lines.append(f"  {track.name}: {point.relative:+.1%} {_between(history, point)}")
    return lines


def history_document(history: History) -> dict[str, Any]:
    """The same as JSON: latencies in seconds."""
    return {
        "runs": [
            {
                "key": run.key,
                "commit": run.commit,
                "started_at": run.started_at,
                "environment": str(run.environment),
                "outcome": run.outcome,
                "is_baseline": run.is_baseline,
                "accepted": run.accepted,
            }
            for run in history.runs
        ],
        "unfinished": history.unfinished,
        "tracks": [
            {
                "name": track.name,
                "is_figure": track.is_figure,
                "latency_s": [None if math.isnan(value) else value for value in track.latency_s.tolist()],
                "error": [None if math.isnan(value) else value for value in track.error.tolist()],
                "change_points": [
                    {"run": point.run, "change": point.relative, "commit": history.runs[point.run].commit}
                    for point in track.points
                ],
            }
            for track in history.tracks
        ],
    }


def save_history(history: History, path: Path, model: str) -> None:
    """A panel for each figure and operation, its latency over runs, with lines where it changed.

    Raises:
        ReportError: the file cannot be written.
    """
    tracks: Sequence[Track] = history.tracks
    columns = min(_COLUMNS, len(tracks))
    rows = math.ceil(len(tracks) / columns)
    with style():
        figure = new_figure(3.75 * columns, 2.0 * rows + 0.7)
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for ax, track in zip(axes, tracks, strict=False):
            _draw(ax, history, track)
        for ax in axes[len(tracks) :]:
            ax.set_axis_off()
        headline(figure, f"{model} over {len(history.runs)} runs of the gate")
        save_png(figure, path)


def _draw(ax: Any, history: History, track: Track) -> None:
    places = np.arange(len(history.runs))
    scale, unit = (1e3, "ms") if np.nanmedian(track.latency_s) >= 1e-3 else (1e6, "µs")
    low, high = (scale * track.latency_s * np.exp(sign * 1.96 * track.error) for sign in (-1, 1))
    ax.fill_between(places, low, high, color=_LINE, alpha=0.2, linewidth=0)
    ax.plot(places, scale * track.latency_s, color=_LINE, marker="o", markersize=3, linewidth=1)
    for point in track.points:
        colour = _SLOWER if point.relative > 0 else _FASTER
        ax.axvline(point.run - 0.5, color=colour, linewidth=1)
        ax.annotate(
            f"{point.relative:+.1%}\n{_version(history.runs[point.run])[:10]}",
            (point.run - 0.4, 0.98),
            xycoords=("data", "axes fraction"),
            va="top",
            fontsize=7,
            color=colour,
        )
    ax.set_title(track.name, color=INK, fontweight="bold" if track.is_figure else "normal")
    ax.set_ylabel(unit, color=SOFT)
    ax.set_ylim(0, 1.25 * float(np.nanmax(high)))


def _between(history: History, point: ChangePoint) -> str:
    before, after = history.runs[point.run - 1], history.runs[point.run]
    where = f"between {_version(before)} and {_version(after)} ({after.started_at[:16]})"
    if not before.commit and not after.commit and before.environment == after.environment:
        where = f"between the runs of {before.started_at[:16]} and {after.started_at[:16]}"
    return where if before.environment == after.environment else f"{where}: {after.environment}"


def _version(run: GateRun) -> str:
    return run.commit[:12] or f"{run.environment.engine} {run.environment.engine_version}"


def _known(track: Track, place: int) -> bool:
    return not math.isnan(float(track.latency_s[place]))
