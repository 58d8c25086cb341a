"""What the gate has found: for a terminal, a job's summary, GitHub's annotations, JUnit XML, and as JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from pytest_dooly.core.environment import Environment
from pytest_dooly.core.turn import Place
from pytest_dooly.drift.change import PROFILED, Change
from pytest_dooly.drift.found import Found
from pytest_dooly.drift.verdict import CONFIDENCE, POWER, FigureVerdict, OperationVerdict, Outcome, Verdict
from pytest_dooly.report.text import format_latency

__all__ = [
    "broken_annotation",
    "broken_summary",
    "case_properties",
    "case_text",
    "gate_annotations",
    "gate_document",
    "gate_lines",
    "gate_summary",
    "headline",
    "unfinished_summary",
]

_LISTED = 8
"""Operations of the summary's table at least: those that count most; what has changed is always listed."""


def headline(found: Found) -> str:
    """One line on what the run has come to, and why."""
    verdict, against = found.verdict, f"against {found.baseline}"
    worst = max(verdict.figures, key=lambda each: each.change.log)
    if found.outcome is Outcome.ACCEPTED:
        return f"accepted as the baseline from now on: {found.accepted}"
    if found.outcome is Outcome.BASELINE and not found.is_profiled:
        return "no earlier run of this model on this device: this run is the baseline from now on"
    if found.outcome is Outcome.BASELINE:
        return (
            f"no drift that {found.baseline} could show, which is one of {_percent(worst.visible)} or more (as sure as "
            f"profiled latencies are, {PROFILED:.0%}): this run is the baseline from now on"
        )
    if found.outcome is Outcome.DRIFT:
        named = ", ".join(f"{each.label} {_percent(each.change.relative)}" for each in verdict.drifted)
        because = f" because of {named}" if named else ""
        return f"{worst.exposure.name} {_within(worst.change)}{because}, {against}"
    if found.outcome is Outcome.UNDECIDED:
        return _why_undecided(verdict, worst)
    return f"no drift beyond {_plain(verdict.limit)} of TTFT or TPOT, {against}"


def _why_undecided(verdict: Verdict, worst: FigureVerdict) -> str:
    if verdict.disturbed is not None:
        return f"other processes had the processor for {verdict.disturbed:.0%} of the time, so that nothing can be said"
    if verdict.crowded is not None:
        more = "more" if verdict.crowded > 0 else "less"
        return (
            f"other processes had {abs(verdict.crowded):.0%} of the processors {more} than at the "
            "baseline, so that nothing can be compared"
        )
    if abs(verdict.alike) > verdict.limit:
        return (
            f"all operations have changed by {_percent(verdict.alike)} alike, which a machine does as well as an "
            "engine; none stands out"
        )
    return f"the noise is too large to say whether {worst.exposure.name} is over the limit of {_plain(verdict.limit)}"


def remedy(found: Found) -> str:
    """What to do about the outcome; empty where nothing is."""
    verdict = found.verdict
    if found.outcome is Outcome.DRIFT and not found.is_own:
        return "Find out what changed the operations named; if it is meant, compare with what is meant from now on."
    if found.outcome is Outcome.DRIFT:
        return (
            'Find out what changed the operations named; if it is meant, run once with --dooly-accept "why", which '
            "moves the baseline."
        )
    if found.outcome in (Outcome.BASELINE, Outcome.ACCEPTED):
        return _calmer(found)
    if found.outcome is Outcome.PASSED and found.is_own and any(each.is_faster for each in verdict.figures):
        return (
            'Faster than the baseline by more than the limit: run once with --dooly-accept "why", or the baseline '
            "stays what it was and hides a slowdown back to it."
        )
    if found.outcome is not Outcome.UNDECIDED:
        return ""
    if verdict.disturbed is not None:
        return (
            "Run it when nothing else runs: too few turns were left undisturbed within --dooly-gate-budget, and what "
            "other processes do to long calls no reference tells. It is no baseline either."
        )
    if verdict.crowded is not None:
        return (
            "Run it when as much else runs as at the baseline, best nothing: who shares caches and memory slows "
            "operations down, some of them more than others."
        )
    if abs(verdict.alike) > verdict.limit:
        return (
            "Run it again: a machine in another state is slower, or faster, at everything. If it stays so, "
            "--dooly-against with the interpreter of before lets both engines take turns, and tells which it is."
        )
    if verdict.unmatched:
        then = ', then run once with --dooly-accept "why"' if found.is_own else ""
        return (
            f"The operations are not the baseline's ({'; '.join(verdict.unmatched)}), so that figures cannot be "
            f"compared: look at those that can{then}."
        )
    beside = "" if found.interleaved else ", or let both engines take turns with --dooly-against"
    if found.is_profiled:
        return f"No number of turns would decide it: profiled latencies are no surer. Name a run of the gate{beside}."
    turns = verdict.needed_turns()
    if turns is None:
        return (
            "No number of turns would decide it: the change is too near to the limit. Raise or lower "
            f"--dooly-gate-limit{beside}."
        )
    minutes = turns * verdict.spent_s / verdict.turns / 60
    calm = " Where the baseline was recorded in more noise than this, accept a calm run." if found.is_own else ""
    return (
        f"About {turns:,} turns would decide it, {minutes:.2g} minutes as the machine is now: run with "
        f"--dooly-gate-budget={max(1, round(1.2 * minutes + 0.5))}, on a quieter machine{beside}.{calm}"
    )


def _calmer(found: Found) -> str:
    """What to do about a baseline that nothing can be decided against; empty where it is calm enough."""
    verdict = found.verdict
    worst = max((each.visible for each in verdict.figures), default=0.0)
    if found.is_profiled or worst <= 2 * verdict.limit:
        return ""
    return (
        f"This baseline is noisy: a slowdown below {worst:.1%} would not be seen against it. Record it again on a "
        'quieter machine, or for longer (--dooly-gate-budget), with --dooly-accept "calmer".'
    )


def gate_lines(found: Found) -> list[str]:
    """For a terminal."""
    verdict = found.verdict
    lines = [f"{found.model}: {found.outcome}: {headline(found)}"]
    lines += [f"  {_said(found, each.outcome)}: {_figure_text(each)}" for each in verdict.figures]
    lines += [f"  {_operation_text(each)}" for each in _worth_listing(found) if each.is_slower or each.is_faster]
    lines += [f"  not compared: {line}" for line in verdict.unmatched]
    lines.append(f"  {verdict.turns} turns in {verdict.spent_s:.0f} s{_apart(found)}")
    return [*lines, *([f"  {remedy(found)}"] if remedy(found) else [])]


def gate_summary(found: Found) -> str:
    """Markdown for a job's summary: verdict, figures, operations, and what to do."""
    verdict = found.verdict
    lines = [
        f"## {_MARKS[found.outcome]} {found.model}: {found.outcome}",
        "",
        f"{headline(found)[0].upper()}{headline(found)[1:]}.",
        *(["", f"**What to do:** {remedy(found)}"] if remedy(found) else []),
        "",
        f"| figure | baseline | now | change | {CONFIDENCE:.0%} sure it is above | outcome |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
        *(
            f"| {each.exposure.name} | {format_latency(each.exposure.latency_s)} | {format_latency(each.predicted_s)} "
            f"| {_percent(each.change.relative)} | {_percent(each.change.bound(1 - CONFIDENCE))} "
            f"| {_said(found, each.outcome)} |"
            for each in verdict.figures
        ),
        "",
        "| operation | share of a figure | change | worth | false discovery rate | would have been seen | outcome |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
        *(
            f"| `{each.label}` | {each.share:.1%} | {_percent(each.change.relative)} | {_percent(each.worth)} "
            f"| {min(each.q, each.q_faster):.2g} | {_percent(each.visible)} | {_operation_outcome(found, each)} |"
            for each in _worth_listing(found)
        ),
        "",
        *(f"- not compared: {line}" for line in verdict.unmatched),
        f"{verdict.turns} turns in {verdict.spent_s:.0f} s on {found.environment}{_apart(found)}.",
    ]
    hidden = len(verdict.operations) - len(_worth_listing(found))
    if hidden:
        lines.append(f"{hidden} operations more have not changed; `--dooly-gate-json` has all.")
    return "\n".join(lines) + "\n"


def gate_annotations(found: Found) -> list[str]:
    """GitHub's workflow commands: an error for drift, a warning where nothing is decided, a notice for speed-ups.

    Source: docs.github.com, "Workflow commands for GitHub Actions".
    """
    lines = []
    if found.outcome is Outcome.DRIFT:
        lines.append(_command("error", f"latency drift of {found.model}", headline(found)))
        lines += [
            _command("error", f"latency drift of {found.model}", _operation_text(each))
            for each in found.verdict.drifted
        ]
    elif found.outcome is Outcome.UNDECIDED:
        lines.append(_command("warning", f"latency drift of {found.model}", f"{headline(found)}. {remedy(found)}"))
    elif found.outcome in (Outcome.BASELINE, Outcome.ACCEPTED):
        lines.append(_command("notice", f"latency baseline of {found.model}", headline(found)))
    faster = [each for each in found.verdict.faster if each.share]
    lines += [_command("notice", f"faster in {found.model}", _operation_text(each)) for each in faster[:_LISTED]]
    return lines


def broken_summary(model: str, reason: str) -> str:
    """Markdown for a job's summary where there is no verdict."""
    return f"## {_MARKS[Outcome.BROKEN]} {model}: broken\n\n{reason}\n"


def unfinished_summary(model: str) -> str:
    """Markdown for a job's summary while the gate is under way, and where it was killed."""
    return f"## {model}: not finished\n\nThe gate is under way, or was interrupted: this run has no verdict.\n"


def broken_annotation(model: str, reason: str) -> str:
    """The same as an error of GitHub's."""
    return _command("error", f"latency gate of {model}", reason)


def gate_document(found: Found) -> dict[str, Any]:
    """Everything, as JSON: latencies in seconds, changes as fractions."""
    verdict = found.verdict
    return {
        "model": found.model,
        "outcome": found.outcome.value,
        "headline": headline(found),
        "remedy": remedy(found),
        "commit": found.commit,
        "environment": dataclasses.asdict(found.environment),
        "baseline": found.baseline,
        "baseline_environment": None if found.before is None else dataclasses.asdict(found.before),
        "baseline_is_profiled": found.is_profiled,
        "interleaved": found.interleaved,
        "is_own": found.is_own,
        "accepted": found.accepted,
        "limit": verdict.limit,
        "turns": verdict.turns,
        "spent_s": verdict.spent_s,
        "needed_turns": verdict.needed_turns() if found.outcome is Outcome.UNDECIDED else None,
        "figures": [
            {
                "case": each.case_id,
                "figure": each.exposure.figure,
                "workload": str(each.exposure.workload),
                "batch": str(each.exposure.batch),
                "seconds": {str(place): seconds for place, seconds in _seconds(found, each).items()},
                "baseline_s": each.exposure.latency_s,
                "now_s": each.predicted_s,
                **_change_document(each.change),
                "visible": each.visible,
                "outcome": each.outcome.value,
            }
            for each in verdict.figures
        ],
        "operations": [
            {
                "case": each.label,
                "signature": each.key,
                "kind": each.kind,
                **_change_document(each.change),
                "shares": dict(each.shares),
                "worth": each.worth,
                "false_discovery_rate": each.q,
                "slower": each.is_slower,
                "faster": each.is_faster,
                "visible": each.visible,
                "outcome": each.outcome.value,
            }
            for each in verdict.operations
        ],
        "unmatched": list(verdict.unmatched),
        "disturbed": verdict.disturbed,
        "crowded": verdict.crowded,
        "alike": verdict.alike,
    }


def case_properties(found: Found, case: str) -> list[tuple[str, str]]:
    """What JUnit XML says of a test case, by name."""
    properties = [("dooly_baseline", found.baseline or "none"), ("dooly_turns", str(found.verdict.turns))]
    judged: list[FigureVerdict | OperationVerdict] = [f for f in found.verdict.figures if f.case_id == case]
    judged += [operation for operation in found.verdict.operations if operation.label == case]
    for each in judged:
        properties += [
            ("dooly_change", f"{each.change.relative:.6f}"),
            ("dooly_change_at_least", f"{each.change.bound(1 - CONFIDENCE):.6f}"),
            ("dooly_visible", f"{each.visible:.6f}"),
        ]
        if isinstance(each, OperationVerdict):
            properties += [("dooly_share", f"{each.share:.6f}"), ("dooly_false_discovery_rate", f"{each.q:.3g}")]
        else:
            properties += [("dooly_now_s", f"{each.predicted_s:.6g}"), ("dooly_limit", f"{each.limit:.6g}")]
    return properties


def case_text(found: Found, case: str) -> str:
    """Why a case fails, on one line."""
    for figure in found.verdict.figures:
        if figure.case_id == case:
            undecided = f"; {remedy(found)}" if figure.outcome is Outcome.UNDECIDED else ""
            return f"{figure.outcome}: {_figure_text(figure)}{undecided}"
    failing = next(each for each in found.verdict.drifted if each.label == case)
    return f"drift: {_operation_text(failing)}"


_MARKS = {
    Outcome.PASSED: "✅",
    Outcome.BASELINE: "📌",
    Outcome.ACCEPTED: "📌",
    Outcome.UNDECIDED: "❔",
    Outcome.DRIFT: "❌",
    Outcome.BROKEN: "💥",
}


def _seconds(found: Found, figure: FigureVerdict) -> dict[Place, float]:
    """What a figure consists of; where the run is accepted, as its own operations have it."""
    changes = {each.key: each.change.log for each in found.verdict.operations}
    moved = found.outcome is Outcome.ACCEPTED and not found.is_profiled
    return {
        place: seconds * math.exp(changes.get(place.signature, 0.0) if moved else 0.0)
        for place, seconds in figure.exposure.seconds.items()
    }


def _figure_text(each: FigureVerdict) -> str:
    return (
        f"{each.exposure.name}: {format_latency(each.exposure.latency_s)} -> {format_latency(each.predicted_s)}, "
        f"{_within(each.change)} (limit {_plain(each.limit)}, from {_percent(each.visible)} on it would have been seen)"
    )


def _operation_text(each: OperationVerdict) -> str:
    state = "fails" if each.outcome is Outcome.DRIFT else "slower, worth too little" if each.is_slower else "faster"
    return (
        f"{each.label}: {_within(each.change)}, {each.share:.1%} of a figure, so worth {_percent(each.worth)} "
        f"(false discovery rate {min(each.q, each.q_faster):.2g}; {state})"
    )


def _operation_outcome(found: Found, each: OperationVerdict) -> str:
    if found.outcome in (Outcome.BASELINE, Outcome.ACCEPTED) and not found.is_profiled:
        return ""
    if each.outcome is Outcome.DRIFT:
        return "**drift**"
    return "slower, worth too little" if each.is_slower else "faster" if each.is_faster else ""


def _said(found: Found, outcome: Outcome) -> str:
    return found.outcome if found.outcome in (Outcome.BASELINE, Outcome.ACCEPTED) else outcome


def _worth_listing(found: Found) -> Sequence[OperationVerdict]:
    """What has changed, and beside it what counts most."""
    operations = found.verdict.operations
    largest = sorted(operations, key=lambda each: -each.share)[:_LISTED]
    return [each for each in operations if each.is_slower or each.is_faster or each in largest]


def _within(change: Change) -> str:
    """A change with its 95 % interval."""
    tail = (1 - POWER) / 2
    return f"{_percent(change.relative)} ({_percent(change.bound(tail))} to {_percent(change.bound(1 - tail))})"


def _apart(found: Found) -> str:
    """What differs between the environments of baseline and run."""
    if found.interleaved:
        return f"; both engines took turns{_versions(found.before, found.environment)}"
    return _versions(found.before, found.environment)


def _versions(before: Environment | None, now: Environment) -> str:
    if before is None or before == now:
        return ""
    pairs = ((f.name, getattr(before, f.name), getattr(now, f.name)) for f in dataclasses.fields(Environment))
    return "; " + ", ".join(f"{name} {one} -> {other}" for name, one, other in pairs if one != other)


def _change_document(change: Change) -> dict[str, float]:
    tail = (1 - POWER) / 2
    return {
        "change": change.relative,
        "low": change.bound(tail),
        "high": change.bound(1 - tail),
        "error": change.error,
        "freedom": change.freedom,
    }


def _percent(relative: float) -> str:
    return f"{relative:+.1%}" if abs(relative) < 0.995 else f"{relative:+.0%}"


def _plain(relative: float) -> str:
    """Without a sign: `3 %`."""
    return f"{100 * relative:.3g} %"


def _command(level: str, title: str, text: str) -> str:
    escaped = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    name = title.replace("%", "%25").replace(":", "%3A").replace(",", "%2C")
    return f"::{level} title={name}::{escaped}"
