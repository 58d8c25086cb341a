"""What is said of a run of the gate: lines, Markdown, annotations, JSON, JUnit's properties."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pytest_dooly.drift.found import Found
from pytest_dooly.drift.verdict import Outcome, Verdict
from pytest_dooly.report.gate_report import (
    broken_annotation,
    broken_summary,
    case_properties,
    case_text,
    gate_annotations,
    gate_document,
    gate_lines,
    gate_summary,
)
from tests.drift.test_verdict import verdict
from tests.samples import ENVIRONMENT, LINEAR

CASE = "tpot-64+8x4"


def found(of: Verdict, outcome: Outcome | None = None, **values: object) -> Found:
    made = Found(
        model="small",
        environment=ENVIRONMENT,
        baseline="the run from yesterday",
        before=replace(ENVIRONMENT, engine_version="0"),
        verdict=of,
        outcome=outcome or of.outcome(),
        is_profiled=False,
        interleaved=False,
        is_own=True,
        accepted=None,
        commit="c0ffee",
    )
    return replace(made, **values)  # type: ignore[arg-type]


DRIFTED = found(verdict(figure=0.02, linear=0.04, rotary=0.1))


def test_drift_names_what_is_to_blame_and_what_to_do() -> None:
    lines = gate_lines(DRIFTED)
    assert lines[0].startswith(f"small: drift: TPOT of 64+8x4 +2.0% (+1.0% to +3.0%) because of {LINEAR.label} +4.0%")
    assert any("rotary" in line and "slower, worth too little" in line for line in lines)
    assert lines[-2] == "  40 turns in 20 s; engine_version 0 -> 1"
    assert '--dooly-accept "why"' in lines[-1]
    summary = gate_summary(DRIFTED)
    assert summary.startswith("## ❌ small: drift\n\nTPOT of 64+8x4 +2.0%")
    assert f"| `{LINEAR.label}` | 50.0% | +4.0% | +2.0% |" in summary
    assert "**drift** |" in summary


def test_annotations_are_escaped_as_github_asks() -> None:
    first, second = gate_annotations(DRIFTED)
    assert first.startswith("::error title=latency drift of small::TPOT of 64+8x4 +2.0%25 (")
    assert LINEAR.label in second
    assert broken_annotation("a:b", "one\ntwo") == "::error title=latency gate of a%3Ab::one%0Atwo"
    assert broken_summary("small", "why").startswith("## 💥 small: broken\n\nwhy")
    (undecided,) = gate_annotations(found(verdict(error=0.05)))
    assert undecided.startswith("::warning ")
    (faster,) = gate_annotations(found(verdict(linear=-0.2)))
    assert faster.startswith("::notice title=faster in small::")


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (found(verdict(error=0.05)), "turns would decide it"),
        (found(verdict(figure=0.03)), "No number of turns would decide it"),
        (found(verdict(unmatched=("x, which the baseline does not know",))), "The operations are not the baseline's"),
        (found(verdict(disturbed=0.4)), "Other processes had the processor for 40% of the time"),
        (found(verdict(0.1, crowded=0.5)), "Other processes had 50% of the processors more than at the baseline"),
        (found(verdict(figure=-0.1)), "Faster than the baseline by more than the limit"),
        (found(verdict(), Outcome.BASELINE, baseline=None, before=None), "this run is the baseline from now on"),
        (found(verdict(error=0.05), Outcome.BASELINE, baseline=None), "This baseline is noisy: a slowdown below 2"),
        (found(verdict(), Outcome.BASELINE, is_profiled=True), "as sure as profiled latencies are, 10%"),
        (found(verdict(), Outcome.ACCEPTED, accepted="meant"), "Accepted as the baseline from now on: meant."),
        (found(verdict(), interleaved=True), "both engines took turns"),
    ],
)
def test_each_outcome_says_what_it_means(made: Found, words: str) -> None:
    assert words in gate_summary(made)


def test_nothing_is_advised_that_is_done_already() -> None:
    """Beside another engine there is no baseline to accept, and nobody else to take turns with."""
    for of in (verdict(error=0.05), verdict(figure=0.03), verdict(figure=0.1), verdict(figure=-0.1)):
        text = gate_summary(found(of, interleaved=True, is_own=False))
        assert "--dooly-accept" not in text
        assert "--dooly-against" not in text
    unmatched = found(verdict(unmatched=("x",)), interleaved=True, is_own=False)
    assert "look at those that can." in gate_summary(unmatched)
    named = gate_summary(found(verdict(error=0.05), is_own=False))
    assert "--dooly-against" in named
    assert "accept" not in named


def test_a_case_has_its_line_and_its_properties() -> None:
    assert case_text(DRIFTED, LINEAR.label).startswith(f"drift: {LINEAR.label}: +4.0%")
    properties = dict(case_properties(DRIFTED, LINEAR.label))
    assert properties["dooly_change"] == "0.040000"
    assert properties["dooly_share"] == "0.500000"
    assert dict(case_properties(DRIFTED, CASE))["dooly_limit"] == "0.03"
    undecided = found(verdict(error=0.05))
    assert case_text(undecided, CASE).startswith("undecided: TPOT of 64+8x4: ")
    assert dict(case_properties(undecided, "nothing")) == {
        "dooly_baseline": "the run from yesterday",
        "dooly_turns": "40",
    }


def test_json_has_everything() -> None:
    document = json.loads(json.dumps(gate_document(DRIFTED), allow_nan=False))
    assert (document["outcome"], document["needed_turns"]) == ("drift", None)
    assert {each["case"]: each["outcome"] for each in document["operations"]}[LINEAR.label] == "drift"
    assert document["figures"][0]["now_s"] == pytest.approx(0.0102)
    assert gate_document(found(verdict(error=0.05)))["needed_turns"] > 40
