"""A thousand runs of the gate made of turns that were recorded, for what no machine has the hours for.

A run is one real run whose turns are drawn again, stretches of eight that follow each other (moving blocks: Kunsch
1989), so that spells stay what they are; its baseline is five other real runs drawn likewise, so that runs are as far
apart as they are. A slowdown multiplies what an operation takes. All else is the gate's own code. Beside it stands what
many do: a fixed percentage that no operation's median may exceed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pytest_dooly.core.signature import ServedModel
from pytest_dooly.drift.change import Timed
from pytest_dooly.drift.comparison import compared
from pytest_dooly.drift.exposure import Exposure, kept_exposures
from pytest_dooly.drift.verdict import Outcome, judged, sums_of
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.report.figure import COLOURS, headline, new_figure, save_png, style

__all__ = ["UNCHANGED", "simulated"]

UNCHANGED = "unchanged"
"""What runs without a change have in place of a commit."""

LIMITS = (0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1)

_STRETCH = 8
"""Turns that are drawn together."""

_BASELINE = 5


@dataclass(frozen=True)
class Scenario:
    """What is put into a simulated run.

    Attributes:
        name: for people.
        key: of the operation's signature; None for nothing.
        slower: relative slowdown.
    """

    name: str
    key: str | None
    slower: float


@dataclass
class Counts:
    """Of runs of one scenario at one limit: outcomes, those where the right operation fails, and the fixed rule's."""

    outcomes: Counter[Outcome]
    named: int = 0
    fixed: int = 0
    runs: int = 0


def simulated(db: Path, number: int, png: Path) -> str:
    """Makes runs and draws the operating curve; returns Markdown.

    Args:
        db: latency DB with real runs of `benchmarks.gate`.
        number: of runs to make.
        png: of the picture.
    """
    with LatencyDB.open(db, create=False) as opened:
        real = [run for run in opened.gate_runs() if run.commit == UNCHANGED and run.outcome in ("passed", "undecided")]
        timed = [Timed.of(opened.gate_turns(run.key)) for run in real]
        spent = kept_exposures(real[-1].document)
        (model, *_) = opened.models()
    scenarios = scenarios_of(model, spent)
    rng = np.random.default_rng(0)
    counts = {(s.name, limit): Counts(Counter()) for s in scenarios for limit in LIMITS}
    for place in range(number):
        _simulate(scenarios[place % len(scenarios)], timed, model, spent, counts, rng)
    _draw(scenarios, counts, png, len(real))
    return _table(scenarios, counts, number, len(real))


def scenarios_of(model: ServedModel, spent: Sequence[Exposure]) -> list[Scenario]:
    """The same slowdowns as in the real runs, each in the operation whose share is nearest."""
    from benchmarks.gate import SLOWDOWNS, nearest

    shares = {o.signature.key: max(each.share(o.signature.key) for each in spent) for o in model.operations}
    found = [Scenario("nothing", None, 0.0)]
    for slowdown in SLOWDOWNS:
        operation = nearest(model, shares, slowdown.share)
        share = shares[operation.signature.key]
        name = f"{slowdown.slower:.0%} in {operation.signature.label}, {share:.1%} of a figure"
        found.append(Scenario(name, operation.signature.key, slowdown.slower))
    return found


def _simulate(
    scenario: Scenario,
    timed: Sequence[Timed],
    model: ServedModel,
    spent: Sequence[Exposure],
    counts: dict[tuple[str, float], Counts],
    rng: np.random.Generator,
) -> None:
    """One run, judged at every limit."""
    picked = rng.choice(len(timed), size=min(_BASELINE, len(timed) - 1) + 1, replace=False)
    new, *baseline = (_again(timed[place], rng) for place in picked)
    new = _slower(new, scenario)
    places = {place for each in spent for place in each.seconds if place in new.latencies_s}
    levels_s = {p: float(np.nanmedian(np.concatenate([run.latencies_s[p] for run in baseline]))) for p in places}
    figures, operations = sums_of(spent, levels_s)
    found = compared(new, baseline, figures, operations)
    raw = max(float(np.nanmedian(new.latencies_s[place])) / levels_s[place] - 1 for place in places)
    for limit in LIMITS:
        verdict = judged(
            model,
            spent,
            found.figures,
            found.operations,
            limit=limit,
            turns=len(new),
            spent_s=1.0,
        )
        of = counts[scenario.name, limit]
        of.runs += 1
        of.outcomes[verdict.outcome()] += 1
        of.named += any(each.key == scenario.key for each in verdict.drifted)
        of.fixed += raw > limit


def _again(run: Timed, rng: np.random.Generator) -> Timed:
    """As many turns of a run, drawn in stretches, as of one start: those that are recorded are of one process."""
    starts = rng.integers(0, len(run) - _STRETCH + 1, size=-(-len(run) // _STRETCH))
    order = np.concatenate([np.arange(start, start + _STRETCH) for start in starts])[: len(run)]
    latencies_s = {place: values[order] for place, values in run.latencies_s.items()}
    return Timed(latencies_s, run.references[order], np.ones(len(order), dtype=np.int_))


def _slower(run: Timed, scenario: Scenario) -> Timed:
    return Timed(
        {
            place: values * (1 + scenario.slower) if place.signature == scenario.key else values
            for place, values in run.latencies_s.items()
        },
        run.references,
        run.starts,
    )


def _table(scenarios: Sequence[Scenario], counts: Mapping[tuple[str, float], Counts], number: int, real: int) -> str:
    lines = [
        "# The gate on drift, simulated",
        "",
        f"{number:,} runs made of the turns of {real} real ones, each judged at every limit.",
        "",
        "| put in | limit | passed | undecided | drift | right one named | a median exceeds the limit: a fixed rule |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for scenario in scenarios:
        for limit in LIMITS:
            of = counts[scenario.name, limit]
            passed, undecided, drift = (
                f"{of.outcomes[outcome] / of.runs:.1%}"
                for outcome in (Outcome.PASSED, Outcome.UNDECIDED, Outcome.DRIFT)
            )
            named = "" if scenario.key is None else f"{of.named / of.runs:.1%}"
            fixed = f"{of.fixed / of.runs:.1%}"
            lines.append(f"| {scenario.name} | {limit:.1%} | {passed} | {undecided} | {drift} | {named} | {fixed} |")
    return "\n".join(lines) + "\n"


def _draw(scenarios: Sequence[Scenario], counts: Mapping[tuple[str, float], Counts], png: Path, real: int) -> None:
    """Detection and false alarms against the limit, of the gate and of a fixed percentage."""
    colours = list(COLOURS.values())
    colours = [colours[-1], colours[0], colours[4], colours[8]]
    png.parent.mkdir(parents=True, exist_ok=True)
    with style():
        figure = new_figure(11.25, 3.9)
        for ax, title in zip(
            figure.subplots(1, 2, sharey=True), ("the gate", "a percentage that no median may exceed"), strict=True
        ):
            for scenario, colour in zip(scenarios, colours, strict=True):
                of = [counts[scenario.name, limit] for limit in LIMITS]
                drift = [
                    (each.outcomes[Outcome.DRIFT] if title == "the gate" else each.fixed) / each.runs for each in of
                ]
                label = "nothing (false alarms)" if scenario.key is None else scenario.name
                ax.plot([100 * limit for limit in LIMITS], [100 * each for each in drift], color=colour, label=label)
            ax.set_title(title, fontweight="bold")
            ax.set_xlabel("limit, %")
            ax.set_ylim(-2, 102)
        figure.axes[0].set_ylabel("runs that fail, %")
        figure.axes[1].legend(loc="lower left", fontsize=7, frameon=False)
        headline(figure, f"What fails, from the turns of {real} real runs")
        save_png(figure, png)
