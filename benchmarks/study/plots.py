"""Pictures of the redundancy study: who shares what, GPU-hours as models are added, what each strategy saves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.study.costs import Assumptions, Cases
from pytest_dooly.core.operation import OperationKind
from pytest_dooly.core.signature import Signature
from pytest_dooly.report.figure import BACK, COLOURS, INK, LINE, SOFT, new_figure, readable_on, save_png, shorten, style

__all__ = ["Sharing", "orders", "save_hours", "save_savings", "save_sharing", "sharing_of"]

ORDERS = 200
"""Random orders of the models."""

SHOWN: Mapping[str, tuple[str, OperationKind]] = {
    "separately": ("every model separately", OperationKind.OTHER),
    "exact sharing": ("+ equal operations once", OperationKind.ATTENTION),
    "adaptive sweep": ("+ adaptive sweep", OperationKind.ACTIVATION),
    "across sizes": ("+ public tables, across sizes", OperationKind.LINEAR),
}
"""Strategies of the pictures: what people call each, and whose colour it borrows."""


@dataclass(frozen=True)
class Sharing:
    """Which models run which operations.

    Attributes:
        models: names.
        shared: operations of two models or more, by kind, those of most models first.
        users: indices of the models that run each of them.
        alone: of each model, number of operations that no other has, by kind.
    """

    models: tuple[str, ...]
    shared: tuple[Signature, ...]
    users: tuple[frozenset[int], ...]
    alone: tuple[Mapping[OperationKind, int], ...]


def sharing_of(models: Sequence[str], operations: Sequence[Sequence[Signature]]) -> Sharing:
    """Who shares what.

    Args:
        models: names.
        operations: portable signatures of each model.
    """
    users: dict[Signature, set[int]] = {}
    for place, signatures in enumerate(operations):
        for signature in signatures:
            users.setdefault(signature, set()).add(place)
    kinds = list(OperationKind)
    shared = sorted(
        (signature for signature, of in users.items() if len(of) > 1),
        key=lambda signature: (kinds.index(signature.kind), -len(users[signature]), signature.label),
    )
    alone: list[dict[OperationKind, int]] = [{} for _ in models]
    for signature, of in users.items():
        if len(of) == 1:
            counts = alone[min(of)]
            counts[signature.kind] = counts.get(signature.kind, 0) + 1
    return Sharing(tuple(models), tuple(shared), tuple(frozenset(users[s]) for s in shared), tuple(alone))


def orders(count: int, seed: int = 0) -> list[list[int]]:
    """Random orders of so many models."""
    draw = np.random.default_rng(seed)
    return [draw.permutation(count).tolist() for _ in range(ORDERS)]


def save_sharing(sharing: Sharing, path: Path) -> None:
    """Writes a PNG: a matrix of models and shared operations beside a bar of those that a model has alone."""
    from matplotlib.patches import Rectangle

    wide, high = len(sharing.shared), len(sharing.models)
    with style():
        figure = new_figure(12, 7.4)
        matrix, bars = figure.subplots(1, 2, sharey=True, width_ratios=[5.2, 1])
        for column, (signature, users) in enumerate(zip(sharing.shared, sharing.users, strict=True)):
            for row in range(high):
                colour = COLOURS[signature.kind] if row in users else LINE
                size = 0.84 if row in users else 0.16
                corner = column - size / 2, row - size / 2
                matrix.add_patch(Rectangle(corner, size, size, facecolor=colour, linewidth=0))
        ends = [i for i in range(1, wide) if sharing.shared[i].kind != sharing.shared[i - 1].kind]
        for end in ends:
            matrix.axvline(end - 0.5, color=SOFT, linewidth=0.7)
        labels = [shorten(signature.label.removesuffix("-bf16"), 34) for signature in sharing.shared]
        matrix.set_xticks(range(wide), labels, rotation=90, fontsize=min(7.5, 460 / max(wide, 1)))
        matrix.set_yticks(range(high), sharing.models, color=INK)
        matrix.set(xlim=(-0.6, wide - 0.4), ylim=(high - 0.4, -0.6))
        matrix.set_title(f"{wide} operations that two models or more share", fontweight="bold")
        _draw_alone(bars, sharing)
        for ax in (matrix, bars):
            ax.grid(visible=False)
            ax.tick_params(length=0)
            ax.spines[:].set_visible(False)
        kinds = [kind for kind in OperationKind if any(s.kind is kind for s in sharing.shared)]
        kinds += [kind for kind in OperationKind if kind not in kinds and any(kind in of for of in sharing.alone)]
        handles = [Rectangle((0, 0), 1, 1, facecolor=COLOURS[kind], label=kind.value) for kind in kinds]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(kinds), fontsize=8, handlelength=0.9)
        save_png(figure, path)


def save_hours(devices: Mapping[str, Cases], chosen: Sequence[int], assumptions: Assumptions, path: Path) -> None:
    """Writes a PNG: GPU-hours as models are added in the alphabet's order, and a band over random orders.

    Args:
        devices: cases by name of the device.
        chosen: indices of the models.
        assumptions: what profiling takes besides the latencies.
        path: of the PNG.
    """
    with style():
        figure = new_figure(12, 5.2)
        axes: Any = figure.subplots(1, len(devices), sharey=True, squeeze=False)
        for ax, (device, cases) in zip(axes.flat, devices.items(), strict=True):
            places = np.arange(1, len(chosen) + 1)
            for strategy, (name, kind) in SHOWN.items():
                colour = COLOURS[kind]
                found = np.array(
                    [cases.hours(strategy, assumptions, [chosen[i] for i in order]) for order in orders(len(chosen))]
                )
                ax.fill_between(places, found.min(0), found.max(0), color=colour, alpha=0.15, linewidth=0)
                hours = cases.hours(strategy, assumptions, chosen)
                ax.plot(places, hours, color=colour, marker="o", ms=3.2, linewidth=1.4, label=name)
                ax.annotate(
                    f"{hours[-1]:.1f}",
                    (places[-1], hours[-1]),
                    xytext=(6, 0),
                    textcoords="offset points",
                    va="center",
                    color=colour,
                    fontweight="bold",
                    annotation_clip=False,
                )
            ax.set_xticks(places, [cases.models[i] for i in chosen], rotation=45, ha="right", fontsize=8)
            ax.set_title(device, fontweight="bold")
            ax.set_ylim(bottom=0)
        axes.flat[0].set_ylabel("GPU-hours, cumulated")
        axes.flat[0].legend(loc="upper left", title=f"line: in this order; band: range of {ORDERS} random orders")
        save_png(figure, path)


def save_savings(devices: Mapping[str, Cases], chosen: Sequence[int], assumptions: Assumptions, path: Path) -> None:
    """Writes a PNG: a bar of GPU-hours for each strategy and device, with what it saves of the first.

    Args:
        devices: cases by name of the device.
        chosen: indices of the models.
        assumptions: what profiling takes besides the latencies.
        path: of the PNG.
    """
    with style():
        figure = new_figure(12, 3.4)
        axes: Any = figure.subplots(1, len(devices), sharex=True, sharey=True, squeeze=False)
        for ax, (device, cases) in zip(axes.flat, devices.items(), strict=True):
            hours = [float(cases.hours(strategy, assumptions, chosen)[-1]) for strategy in SHOWN]
            for y, (hour, (_, kind)) in enumerate(zip(hours, SHOWN.values(), strict=True)):
                colour = COLOURS[kind]
                ax.barh(y, hour, 0.68, color=colour, edgecolor=BACK)
                text = f"{hour:.1f} h" + (f", {1 - hour / hours[0]:.0%} saved" if y else "")
                inside = hour > 0.6 * hours[0]
                ax.text(
                    hour + (-0.01 if inside else 0.01) * hours[0],
                    y,
                    text,
                    va="center",
                    ha="right" if inside else "left",
                    color=readable_on(colour) if inside else INK,
                    fontweight="bold",
                )
            ax.set_yticks(range(len(SHOWN)), [name for name, _ in SHOWN.values()], color=INK)
            ax.invert_yaxis()
            ax.grid(visible=False, axis="y")
            ax.set_xlabel("GPU-hours")
            ax.set_title(device, fontweight="bold")
        axes.flat[0].set_ylim(len(SHOWN) - 0.5, -0.5)
        save_png(figure, path)


def _draw_alone(ax: Any, sharing: Sharing) -> None:
    """Operations that no other model has, stacked by kind."""
    left = np.zeros(len(sharing.models))
    for kind in OperationKind:
        widths = np.array([of.get(kind, 0) for of in sharing.alone], dtype=float)
        if widths.any():
            ax.barh(range(len(widths)), widths, 0.72, left, color=COLOURS[kind], edgecolor=BACK, lw=0.7)
            left += widths
    for y, total in enumerate(left):
        ax.text(total + 0.2, y, f"{total:.0f}", va="center", color=SOFT, fontsize=8)
    ax.set_title("alone", fontweight="bold")
    ax.set_xticks([])
