"""What a search has found: a table, the best first; why one candidate is as it is; cost against TPOT as a picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytest_dooly.core.device import device_named
from pytest_dooly.report.device_report import stand_ins
from pytest_dooly.report.figure import (
    COLOURS,
    INK,
    LINE,
    SOFT,
    decimal_axis,
    headline,
    new_figure,
    note,
    save_png,
    style,
)
from pytest_dooly.report.text import clip_label, counted, format_latency
from pytest_dooly.searching.candidate import AXES, Candidate
from pytest_dooly.searching.command_line import vllm_serve
from pytest_dooly.searching.objective import Objective
from pytest_dooly.searching.outcome import Outcome
from pytest_dooly.searching.ranking import Ranked, Search

__all__ = ["format_explanation", "format_search", "save_search", "search_document"]

_HEADS = {
    "model": "model",
    "device": "device",
    "tensor_parallel_size": "tp",
    "expert_parallel_size": "ep",
    "data_parallel_size": "dp",
    "kv_cache_dtype": "KV",
    "max_num_seqs": "seqs",
    "max_num_tokens": "tokens",
    "prefix_caching": "prefix",
}
"""Of the columns of what candidates differ in."""

_NAMED = 12
"""Points of a picture that are named at most."""


def format_search(search: Search, *, top: int = 20) -> str:
    """The table, what was left out, and the command lines of the best.

    Args:
        search: that has ended.
        top: lines of the table.
    """
    simulated = len(search.ranked) + len(search.missed)
    tried = simulated + len(search.excluded)
    lines = [
        f"{tried:,} of {counted(search.grid, 'candidate')} under {search.objective}, {search.seconds:.1f} s"
        f"{f', {simulated:,} of them simulated' if search.excluded else ''}"
        f"{f', {search.resumed:,} of all known from before' if search.resumed else ''}"
    ]
    if search.required is not None:
        lines.append(f"for {search.required:g} requests/s")
    if search.ranked:
        lines += ["", *_table(search, top), "", *_notes(search), "", *_commands(search)]
    else:
        lines += ["", *_nothing(search)]
    return "\n".join([*lines, *_left_out(search)])


def _table(search: Search, top: int) -> list[str]:
    axes = _axes(search.ranked)
    rows = [_head(axes, priced=search.priced)]
    rows += [_line(each, axes, priced=search.priced) for each in search.ranked[:top]]
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    left = len(axes) + 1
    lines = [
        "  ".join(
            cell.ljust(width) if 1 <= place < left or place == len(widths) - 1 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    if len(search.ranked) > top:
        lines.append(f"and {len(search.ranked) - top:,} more (--top)")
    return lines


def _axes(ranked: Sequence[Ranked]) -> list[str]:
    """What candidates differ in, the device at least."""
    return [
        axis for axis in AXES if axis == "device" or len({getattr(each.outcome.candidate, axis) for each in ranked}) > 1
    ]


def _head(axes: Sequence[str], *, priced: bool) -> list[str]:
    cost = "cost/Mtok" if priced else "tok/s/GPU"
    return ["#", *(_HEADS[axis] for axis in axes), cost, "req/s", "between", "GPUs", "TTFT", "TPOT", "limited by"]


def _line(ranked: Ranked, axes: Sequence[str], *, priced: bool) -> list[str]:
    outcome, bill = ranked.outcome, ranked.bill
    cost = f"{bill.cost:.3f}" if priced else f"{bill.tokens_per_s_per_gpu:,.0f}"
    return [
        f"{'*' if ranked.on_front else ''}{'=' if ranked.equal and ranked.number > 1 else ''}{ranked.number}",
        *(_cell(outcome.candidate, axis) for axis in axes),
        cost,
        f"{'≤' if outcome.at_most else ''}{outcome.rate:.3g}",
        f"{outcome.low:.3g}–{outcome.high:.3g}",
        str(bill.gpus),
        format_latency(outcome.ttft_s),
        format_latency(outcome.tpot_s) if outcome.tpot_s else "",
        _limited(outcome),
    ]


def _cell(candidate: Candidate, axis: str) -> str:
    value = getattr(candidate, axis)
    if isinstance(value, bool):
        return "on" if value else "off"
    return clip_label("auto" if value is None else str(value))


def _limited(outcome: Outcome) -> str:
    if outcome.limit is None or not outcome.limit.causes:
        return "not reached"
    first = outcome.limit.causes[0]
    return f"{outcome.limit.bound}: {first.name} {first.share:.0%}"


def _notes(search: Search) -> list[str]:
    what = (
        "cost of a million tokens, prompt and output"
        if search.priced
        else "prompt and output tokens per second and GPU"
    )
    equal = sum(each.equal for each in search.ranked) - 1
    lines = [
        f"{what[0].upper()}{what[1:]}, {'at the goodput' if search.required is None else 'for the required rate'}.",
        f"req/s is the goodput: the highest rate of one replica that meets the SLO, to {search.tolerance:.0%}; "
        "≤ where it may be less: none that is kept up with misses it, or the requests are too few.",
        "Nine of ten measured goodputs should lie between the two figures. TTFT and TPOT are means at that rate.",
        f"= not told from the first by their intervals ({equal}); * no other is both cheaper and has a smaller TPOT.",
    ]
    estimated = [each for each in search.ranked if each.outcome.estimated > _MOSTLY]
    if estimated:
        devices = sorted({each.outcome.candidate.device for each in estimated})
        lines.append(
            f"Steps on {', '.join(devices)} are mostly estimates from the data sheet: nothing was measured of them."
        )
    names = {each.outcome.candidate.device for each in search.ranked if each.outcome.by_another}
    lines += stand_ins(device_named(name) for name in names)
    for remark in dict.fromkeys(each.outcome.remark for each in search.ranked if each.outcome.remark):
        numbers = [str(each.number) for each in search.ranked if each.outcome.remark == remark]
        lines.append(f"{', '.join(numbers[:_NAMED])}: {remark}")
    return lines


_MOSTLY = 0.9
"""Share of a step that is estimated, from which on nothing is known of a device."""


def _apart(search: Search) -> list[Ranked]:
    """The first, and those on the front whose TPOT is smaller than the one before's by more than the tolerance."""
    found = [search.ranked[0]] if search.ranked else []
    for each in search.front:
        if each.outcome.tpot_s < (1 - _APART * search.tolerance) * found[-1].outcome.tpot_s:
            found.append(each)
    return found


_APART = 2
"""Tolerances that two points of the front are told apart by."""


def _commands(search: Search) -> list[str]:
    """How to deploy the first, and those on the front."""
    lines = []
    for each in _apart(search)[:_FRONT]:
        replicas = f"  # {counted(each.bill.replicas, 'replica')}" if each.bill.replicas > 1 else ""
        lines.append(f"{each.number}: {vllm_serve(each.outcome.candidate, search.options, search.engine)}{replicas}")
    return lines


_FRONT = 5
"""Candidates of the front whose command lines are told."""


def _nothing(search: Search) -> list[str]:
    """That nothing meets the objective: which is nearest, and by how much it misses it."""
    simulated = [*search.missed]
    alone = [each for each in search.excluded if each.ratios]
    near = sorted([*simulated, *alone], key=lambda each: each.missed_by)
    if not near:
        return ["no candidate can be served"]
    nearest = near[0]
    misses = [
        f"{bound.name} {ratio * bound.bound_s * 1e3:.3g} ms, {ratio:.2f} times its bound"
        for bound, ratio in zip(search.objective.bounds, nearest.ratios, strict=True)
        if ratio > 1
    ]
    how = "where a request meets no other" if nearest.excluded else "at the lowest rate that was tried"
    return [
        f"no candidate meets the SLO; the nearest is {nearest.candidate}:",
        f"  {'; '.join(misses) or 'the queue grows'} {how}",
    ]


def _left_out(search: Search) -> list[str]:
    lines = []
    if search.missed and search.ranked:
        lines.append(f"{counted(len(search.missed), 'candidate')} at no rate within the SLO")
    lines += [f"{counted(number, 'candidate')} not simulated: {reason}" for reason, number in search.reasons.items()]
    return ["", *lines] if lines else []


def format_explanation(ranked: Ranked, objective: Objective) -> str:
    """Where the time of a candidate goes at the load that misses the objective first."""
    outcome = ranked.outcome
    lines = [f"{ranked.number}: {outcome.candidate}", ""]
    met = ", ".join(
        f"{bound.name} {ratio * bound.bound_s * 1e3:.3g} ms of {bound.bound_s * 1e3:g}"
        for bound, ratio in zip(objective.bounds, outcome.ratios, strict=True)
    )
    lines.append(f"where {outcome.offered:.3g} requests/s arrive it serves {outcome.rate:.3g} and meets the SLO: {met}")
    limit = outcome.limit
    if limit is None:
        return "\n".join([*lines, "no rate that was tried misses it", _keeps_up(outcome)])
    missed = "the queue grows" if limit.bound == "queue" else f"{limit.bound} is {limit.ratio:.2f} times its bound"
    lines += [f"at {limit.rate:.3g} requests/s {missed}; of {_OF.get(limit.bound[:4], 'the time to first token')}:", ""]
    lines += [f"  {each.share:6.1%}  {each.name}" for each in limit.causes]
    of_all = " of all engines" if outcome.candidate.data_parallel_size > 1 else ""
    lines += [
        "",
        f"{limit.num_decodes:.0f} decodes in a step{of_all} in the mean; {limit.used_blocks:.0%} of KV blocks held at "
        "most; "
        f"{counted(limit.preemptions, 'preemption')} of {counted(limit.num_requests, 'request')}",
        _keeps_up(outcome),
    ]
    return "\n".join(lines)


def _keeps_up(outcome: Outcome) -> str:
    return f"it keeps up with about {outcome.bound:.3g} requests/s at most, however long requests may wait"


_OF = {"tpot": "the time between tokens", "e2el": "the latency"}


def search_document(search: Search) -> dict[str, Any]:
    """A JSON document."""
    return {
        "objective": str(search.objective),
        "required_rate": search.required,
        "tolerance": search.tolerance,
        "cost_of": "a million tokens, prompt and output" if search.priced else None,
        "grid": search.grid,
        "resumed": search.resumed,
        "seconds": search.seconds,
        "candidates": [
            each.to_json() | {"command": vllm_serve(each.outcome.candidate, search.options, search.engine)}
            for each in search.ranked
        ],
        "front": [each.number for each in search.front],
        "missed": [each.to_json() for each in search.missed],
        "excluded": [{**dataclasses.asdict(each.candidate), "reason": each.excluded} for each in search.excluded],
    }


def save_search(search: Search, path: Path) -> None:
    """Writes a PNG of cost against TPOT at the goodput, a colour for each device, the front joined by a line."""
    devices = list(dict.fromkeys(each.outcome.candidate.device for each in search.ranked))
    colours = dict(zip(devices, [*COLOURS.values()] * len(devices), strict=False))
    with style():
        figure = new_figure(12, 6)
        headline(figure, f"{counted(len(search.ranked), 'candidate')} under {search.objective}")
        ax = figure.subplots()
        points = {each.number: (1e3 * each.outcome.tpot_s, _height(search, each)) for each in search.ranked}
        ax.set_xlabel("TPOT at the goodput, ms")
        ax.set_ylabel("cost of a million tokens" if search.priced else "tokens per second and GPU")
        if points:
            ax.set_xscale("log")
            ax.set_yscale("log")
            ax.set_xlim(*decimal_axis(ax.xaxis, [x for x, _ in points.values()]))
            ax.set_ylim(*decimal_axis(ax.yaxis, [y for _, y in points.values()]))
        for each in search.ranked:
            x, y = points[each.number]
            ax.scatter([x], [y], color=colours[each.outcome.candidate.device], s=30, zorder=3)
        front = sorted(points[each.number] for each in search.front)
        ax.plot([x for x, _ in front], [y for _, y in front], color=INK, linewidth=0.8, zorder=2)
        for each in _apart(search)[:_NAMED]:
            note(ax, f"{each.number}: {_short(each.outcome.candidate)}", points[each.number], (6, 6), color=SOFT)
        for device, colour in colours.items():
            ax.scatter([], [], color=colour, label=device)
        if devices:
            ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8)
        ax.axhline(0, color=LINE, linewidth=0)
        save_png(figure, path)


def _height(search: Search, each: Ranked) -> float:
    return each.bill.cost if search.priced and each.bill.cost is not None else each.bill.tokens_per_s_per_gpu


def _short(candidate: Candidate) -> str:
    return f"{candidate.device}, {candidate.ranks}, {candidate.max_num_seqs} seqs"
