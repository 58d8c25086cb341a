"""What is predicted for a device that need not be here: tables of steps and budgets, ways to serve a workload."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_dooly.core.device import Device, device_named
from pytest_dooly.core.signature import data_parallel_size
from pytest_dooly.prediction.comparison import Candidate
from pytest_dooly.prediction.interval import Interval
from pytest_dooly.prediction.shares import Shares, shares_of
from pytest_dooly.prediction.step import StepPrediction
from pytest_dooly.published.basis import Basis, BasisKind
from pytest_dooly.published.budget import Budget
from pytest_dooly.published.footprint import Footprint
from pytest_dooly.report.figure import COLOURS, LINE, decimal_axis, headline, new_figure, note, save_png, style
from pytest_dooly.report.text import clip_label, format_interval, format_latency

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "format_budgets",
    "format_candidates",
    "format_footprint",
    "format_founded_step",
    "format_shares",
    "save_candidates",
    "stand_ins",
]


def format_founded_step(
    step: StepPrediction, bases: Sequence[Basis], within: Interval, device: Device | None = None
) -> str:
    """As `format_step`, with what each prediction rests on, where that comes from, and how far it may be off.

    Args:
        step: as predicted.
        bases: of each of its operations.
        within: where a measured latency lies nine times out of ten.
        device: as of `format_shares`.
    """
    rows = sorted(zip(step.operations, bases, strict=True), key=lambda row: row[0].latency_s, reverse=True)
    width = max(len(clip_label(operation.label)) for operation, _ in rows)
    batch = step.batch
    lines = [
        f"step of {batch.num_reqs} requests, {batch.num_tokens} tokens: {format_latency(step.latency_s)} "
        f"({format_interval(within)})",
        "",
    ]
    lines.append(f"{'times':>5}  {'operation':{width}}  {'together':>10}  {'share':>6}  {'rests on':28}  {'error':>6}")
    for operation, basis in rows:
        share = operation.latency_s / step.latency_s if step.latency_s else 0.0
        grounds = f"{basis.kind}, {basis.num_rows:,} rows" if basis.num_rows else basis.kind
        error = "" if basis.error is None else f"{basis.error:.1%}"
        label, together = clip_label(operation.label), format_latency(operation.latency_s)
        line = f"{operation.multiplicity:5}  {label:{width}}  {together:>10}  {share:6.1%}  {grounds:28}  {error:>6}"
        lines.append(line.rstrip())
    sources = dict.fromkeys(source for basis in bases for source in basis.sources)
    return "\n".join([*lines, "", format_shares(shares_of(step, bases), device), *(f"  {s}" for s in sources)])


def format_shares(shares: Shares, device: Device | None = None) -> str:
    """One line on what a step rests on.

    Args:
        shares: of the step.
        device: whose latencies another GPU's may stand in for, which is named then.
    """
    kinds: dict[str, str] = {kind: kind for kind in shares.by_kind}
    if device is not None and device.like is not None:
        kinds["another GPU"] = f"another GPU ({device_named(device.like).product}, scaled by both data sheets)"
    parts = [f"{share:.1%} {kinds[kind]}" for kind, share in shares.by_kind.items() if share]
    error = "" if shares.error is None else f"; expected error of an operation {shares.error:.1%}, estimates apart"
    return f"rests on: {', '.join(parts)}{error}"


def format_steps(prefill: Shares, decode: Shares | None, device: Device) -> list[str]:
    """A line on what each kind of step rests on.

    Args:
        prefill: shares of a step with a prompt.
        decode: of a step of decodes; None where there is none.
        device: as of `format_shares`.
    """
    steps = {"a step with a prompt": prefill, "a decode step": decode}
    return [f"{step} {format_shares(shares, device)}" for step, shares in steps.items() if shares is not None]


def format_budgets(budgets: Sequence[Budget], *, price: float | None = None) -> str:
    """What profiling each model would take, operation by operation where there is one, and all together.

    Args:
        budgets: one each model.
        price: of one device for an hour, in any currency.
    """
    lines = _needs(budgets[0]) if len(budgets) == 1 else []
    header = f"{'in the DB':>9} {'predicted':>9} {'shared':>7} {'to time':>7} {'cases':>13} {'device minutes':>16}"
    lines.append(f"{'model':20} {header}")
    for budget in budgets:
        low, high = sum(need.cases for need in budget.needs), sum(need.most_cases for need in budget.needs)
        lines.append(
            f"{clip_label(budget.model.name):20} {budget.count('in the DB'):9} {budget.count('predicted'):9} "
            f"{budget.count('shared'):7} {budget.count('to time'):7} {f'{low} to {high}':>13} "
            f"{_minutes(budget.device_s, budget.most_device_s):>16}"
        )
    low_s, high_s = sum(b.device_s for b in budgets), sum(b.most_device_s for b in budgets)
    total = f"all together: {_minutes(low_s, high_s)} device minutes on {budgets[0].device.product}"
    if price is not None:
        total += f", {low_s / 3600 * price:.2f} to {high_s / 3600 * price:.2f} at {price:g} an hour"
    return "\n".join([*lines, "", total, _BUDGET_NOTE])


_BUDGET_NOTE = (
    "The lower figure is the coarse sweeps, the upper one all refinements. Assumed: a minute of set-up a model,\n"
    "0.8 s and twelve runs for each case. A collective counts every rank."
)


def _needs(budget: Budget) -> list[str]:
    labels = [clip_label(need.operation.signature.label) for need in budget.needs]
    width = max(map(len, labels))
    lines = [f"{'operation':{width}}  {'verdict':10} {'rests on':28} {'error':>6} {'cases':>11} {'seconds':>12}"]
    for label, need in zip(labels, budget.needs, strict=True):
        basis = need.basis
        grounds = f"{basis.kind}, {basis.num_rows:,} rows" if basis.num_rows else basis.kind
        error = "" if basis.error is None else f"{basis.error:.1%}"
        cases = f"{need.cases} to {need.most_cases}" if need.most_cases else ""
        seconds = f"{need.device_s:.0f} to {need.most_device_s:.0f}" if need.most_cases else ""
        lines.append(f"{label:{width}}  {need.verdict:10} {grounds:28} {error:>6} {cases:>11} {seconds:>12}".rstrip())
    return [*lines, ""]


def _minutes(low_s: float, high_s: float) -> str:
    return f"{low_s / 60:.1f} to {high_s / 60:.1f}" if high_s else "0"


def format_candidates(candidates: Sequence[Candidate]) -> str:
    """A table of the ways to serve a workload, the fastest to the last token first, those without the memory last."""
    workload = candidates[0].prediction.workload
    engines = data_parallel_size(candidates[0].model)
    over = f" over {engines} engines of tp ranks that share experts" if engines > 1 else ""
    lines = [
        f"{workload.at_once} requests of {workload.prompt_len} prompt and {workload.output_len} output tokens{over}",
        "",
        f"{'model':20} {'device':10} {'tp':>3} {'TTFT':>15} {'TPOT':>15} {'tokens/s':>9} {'published':>10} "
        f"{'across':>7} {'estimate':>9} {'GB needed':>13}",
    ]
    for each in sorted(candidates, key=lambda each: (not each.footprint.fits, each.prediction.duration_s)):
        shares, name = each.shares.by_kind, clip_label(each.model.name)
        place = f"{name:20} {each.device.name:10} {each.ranks:3}"
        if not each.footprint.fits:
            lines.append(f"{place} {'does not fit in memory':31} {'':37} {_needed(each.footprint):>13}")
            continue
        ttft = _either_way(each.prediction.ttft_s, each.ttft_interval)
        tpot = _either_way(each.prediction.tpot_s, each.tpot_interval)
        lines.append(
            f"{place} {ttft:>15} {tpot:>15} {each.tokens_per_s:9,.0f} "
            f"{shares['measured'] + shares['published']:10.0%} "
            f"{sum(shares[kind] for kind in _ACROSS):7.0%} {shares['estimate']:9.0%} "
            f"{_needed(each.footprint):>13}"
        )
    by_another = {each.device for each in candidates if each.shares.by_kind["another GPU"]}
    unlike = {
        f"{each.model.name} on {each.device.name}" for each in candidates if each.shares.by_kind["another precision"]
    }
    notes = [f"{each}: weights' precision is not published there, by another's." for each in sorted(unlike)]
    return "\n".join([*lines, "", _CANDIDATES_NOTE, *stand_ins(by_another), *notes])


def stand_ins(devices: Iterable[Device]) -> list[str]:
    """A line for each GPU that another one's latencies stand in for.

    Args:
        devices: those GPUs.
    """
    return [
        f"{each.name}: by latencies of {device_named(each.like).product}, scaled by both data sheets."
        for each in sorted(devices, key=lambda each: each.name)
        if each.like is not None
    ]


def _either_way(predicted_s: float | None, interval: Interval | None) -> str:
    """A latency, and how many times as long a measurement may be; it may be as many times shorter."""
    if predicted_s is None or interval is None:
        return ""
    factor = f"×÷{interval.high_s / predicted_s:.2f}" if predicted_s else ""
    return f"{format_latency(predicted_s)} {factor}"


def _needed(held: Footprint) -> str:
    return f"{(held.weights_bytes + held.cache_bytes) / 1e9:.1f} of {held.usable_bytes / 1e9:.0f}"


def format_footprint(held: Footprint) -> str:
    """One line on what a rank holds in memory."""
    verdict = "" if held.fits else "; it does not fit, so that requests wait or nothing starts"
    return (
        f"memory: {held.weights_bytes / 1e9:.1f} GB of weights and {held.cache_bytes / 1e9:.1f} GB of caches, "
        f"of {held.usable_bytes / 1e9:.0f} GB that the engine takes{verdict}"
    )


_ACROSS: tuple[BasisKind, ...] = ("across sizes", "another precision", "another GPU")
"""What rests on latencies of an operation that is not quite this one."""

_CANDIDATES_NOTE = (
    "Nine of ten measurements lie between TTFT or TPOT divided by the factor after ×÷ and multiplied with it. Shares\n"
    "are those of a decode step: latencies measured or published for an operation's own sizes, predicted across\n"
    "sizes, from another precision's or another GPU's, estimated from the data sheet. Memory is what a rank needs for\n"
    "weights and for all requests at their full length, of what the engine takes."
)


def save_candidates(candidates: Sequence[Candidate], path: Path) -> None:
    """Writes a PNG of TTFT and TPOT, a row for each model, device and tensor-parallel size that has the memory."""
    fitting = [each for each in candidates if each.footprint.fits]
    models = list(dict.fromkeys(each.model.name for each in fitting))
    ways = list(dict.fromkeys(map(_way, fitting)))
    colour_of = dict(zip(ways, itertools.cycle(COLOURS.values()), strict=False))
    # Rows of a model lie together, half a row away from the next one's.
    placed = [
        (row + 0.5 * models.index(each.model.name), each)
        for row, each in enumerate(sorted(fitting, key=lambda each: models.index(each.model.name)))
    ]
    workload = candidates[0].prediction.workload
    with style():
        figure = new_figure(12, 2.4 + 0.17 * (len(placed) + 0.5 * len(models)))
        headline(
            figure,
            f"{workload.at_once} requests, {workload.prompt_len} + {workload.output_len} tokens, as predicted",
        )
        ttft, tpot = figure.subplots(1, 2)
        _rows(ttft, "TTFT, ms", [(at, each.prediction.ttft_s, colour_of[_way(each)]) for at, each in placed])
        _rows(tpot, "TPOT, ms", [(at, each.prediction.tpot_s, colour_of[_way(each)]) for at, each in placed])
        of_model = [[at for at, each in placed if each.model.name == name] for name in models]
        ttft.set_yticks([sum(places) / len(places) for places in of_model], models)
        for way, colour in colour_of.items():
            tpot.scatter([], [], color=colour, label=way)
        if ways:
            tpot.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8)
        if len(fitting) < len(candidates):
            figure.supxlabel(f"{len(candidates) - len(fitting)} that do not fit in memory are left out", fontsize=8)
        save_png(figure, path)


def _way(each: Candidate) -> str:
    engines = data_parallel_size(each.model)
    parts = [f"tp {each.ranks}"] * (each.ranks > 1) + [f"dp {engines}"] * (engines > 1)
    return ", ".join([each.device.name, *parts])


def _rows(ax: Axes, title: str, rows: Sequence[tuple[float, float | None, str]]) -> None:
    """Latencies in seconds as dots of a colour on a logarithmic axis in milliseconds, each in its row."""
    ax.set_title(title)
    ax.grid(visible=False, axis="y")
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.set_yticks([])
    ax.invert_yaxis()
    known = [(at, 1e3 * latency_s, colour) for at, latency_s, colour in rows if latency_s]
    if not known:
        return
    places, latencies, colours = zip(*known, strict=True)
    ax.set_xscale("log")
    low, high = decimal_axis(ax.xaxis, latencies)
    ax.set_xlim(low, 1.1 * high)  # room for the last one's value
    ax.hlines(places, low, latencies, color=LINE, linewidth=0.8, zorder=1)
    ax.scatter(latencies, places, color=colours, s=26, zorder=3)
    for place, latency in zip(places, latencies, strict=True):
        note(ax, f"{latency:,.0f}" if latency >= 100 else f"{latency:.3g}", (latency, place), (6, 0))
