"""What is said of changes: which figures drift, which operations are to blame, what it would take to decide."""

from __future__ import annotations

import math

import pytest

from pytest_dooly.core.batch import Batch
from pytest_dooly.core.operation import OperationKind
from pytest_dooly.core.signature import Signature
from pytest_dooly.core.turn import Place
from pytest_dooly.core.workload import Workload
from pytest_dooly.drift.change import Change
from pytest_dooly.drift.exposure import Exposure
from pytest_dooly.drift.verdict import Outcome, Verdict, judged, sums_of
from tests.samples import LINEAR, SAMPLER, served, uses

ROTARY = Signature(OperationKind.ROTARY, "rotary", (("q", "bf16", ("num_tokens", 64)),), (), "num_tokens")
MODEL = served(uses(LINEAR), uses(ROTARY), uses(SAMPLER))
TPOT = Exposure(
    Workload(64, 8, 4),
    "tpot",
    Batch.uniform(4, 1, 64),
    {Place(LINEAR.key, "T4"): 5e-3, Place(ROTARY.key, "T4"): 0.03e-3, Place(SAMPLER.key, "R4"): 4.97e-3},
)


def verdict(
    figure: float = 0.0,
    linear: float = 0.0,
    rotary: float = 0.0,
    *,
    error: float = 0.005,
    unmatched: tuple[str, ...] = (),
    disturbed: float | None = None,
    crowded: float | None = None,
    freedom: float = 42,
) -> Verdict:
    def change(relative: float) -> Change:
        return Change(math.log1p(relative), error, freedom)

    operations = {LINEAR.key: change(linear), ROTARY.key: change(rotary), SAMPLER.key: change(0.0)}
    return judged(
        MODEL,
        [TPOT],
        {"tpot-64+8x4": change(figure)},
        operations,
        limit=0.03,
        unmatched=unmatched,
        disturbed=disturbed,
        crowded=crowded,
        turns=40,
        spent_s=20.0,
    )


@pytest.mark.parametrize(
    ("figure", "error", "outcome"),
    [
        (0.0, 0.005, Outcome.PASSED),
        (-0.2, 0.005, Outcome.PASSED),
        (0.05, 0.005, Outcome.DRIFT),
        (0.031, 0.005, Outcome.UNDECIDED),
        (0.0, 0.05, Outcome.UNDECIDED),
        (0.2, 0.05, Outcome.DRIFT),
    ],
)
def test_a_figure_drifts_passes_or_is_undecided(figure: float, error: float, outcome: Outcome) -> None:
    assert verdict(figure, error=error).outcome() is outcome


def test_a_slow_rotary_fails_nothing_and_a_slow_linear_does() -> None:
    found = verdict(figure=0.02, linear=0.04, rotary=0.1)
    linear, rotary = (next(each for each in found.operations if each.key == s.key) for s in (LINEAR, ROTARY))
    assert (linear.outcome, rotary.outcome) == (Outcome.DRIFT, Outcome.PASSED)
    assert rotary.is_slower
    assert rotary.worth == pytest.approx(0.0003, rel=0.01)
    assert found.drifted == (linear,)
    assert found.outcome() is Outcome.DRIFT
    assert found.outcome(frozenset({rotary.label, "tpot-64+8x4"})) is Outcome.PASSED


def test_a_speed_up_is_said_and_fails_nothing() -> None:
    found = verdict(figure=-0.1, linear=-0.2)
    assert [each.label for each in found.faster] == [LINEAR.label]
    assert found.figures[0].is_faster
    assert found.outcome() is Outcome.PASSED


def test_what_one_operation_in_hundreds_shows_by_chance_is_not_said() -> None:
    """A probability of 0.5 % is something alone, and nothing among four hundred."""
    tensors = (("x", "bf16", ("num_tokens", 8)),)
    many = [Signature(OperationKind.OTHER, f"s{i}", tensors, (), "num_tokens") for i in range(400)]
    model = served(*map(uses, many))
    workload = Workload(64, 8, 1)
    spent = Exposure(workload, "tpot", Batch.uniform(1, 1, 64), {Place(each.key, "T1"): 1e-3 for each in many})

    def drifted(number: int) -> int:
        changes = {each.key: Change(0.0, 0.01, 1000.0) for each in many[:number]}
        changes[many[0].key] = Change(0.026, 0.01, 1000.0)
        figures = {"tpot-64+8x1": Change(0.0, 0.001, 99.0)}
        found = judged(model, [spent], figures, changes, limit=0.03, turns=9, spent_s=1.0)
        return sum(each.is_slower for each in found.operations)

    assert (drifted(1), drifted(400)) == (1, 0)


def test_it_says_what_would_decide_it() -> None:
    found = verdict(0.0, error=0.05)
    turns = found.needed_turns()
    assert turns is not None
    assert turns > 40
    better = verdict(0.0, error=0.05 * math.sqrt(40 / turns) * 0.99)
    assert better.outcome() is Outcome.PASSED
    assert verdict(0.03, error=0.005).needed_turns() is None
    near = verdict(0.022, error=0.006)  # turns end once a slowdown of the limit would be seen, as one would have been
    assert near.outcome() is Outcome.UNDECIDED
    assert near.figures[0].visible < 0.03
    assert near.needed_turns() is None
    assert verdict(0.0, unmatched=("x, which the baseline does not know",)).outcome() is Outcome.UNDECIDED
    assert verdict(0.0, unmatched=("x",)).needed_turns() is None


def test_nothing_is_decided_while_other_processes_have_the_processor() -> None:
    assert verdict(0.5, linear=1.0, disturbed=0.4).outcome() is Outcome.UNDECIDED
    assert verdict(0.0, disturbed=0.4).outcome() is Outcome.UNDECIDED
    assert verdict(0.0, disturbed=0.4).needed_turns() is None


def test_a_crowd_leaves_everything_open() -> None:
    """Who shares caches and memory slows all down: beside a build, logits took 26 % longer and a step's Python 12 %."""
    assert verdict(0.1, crowded=0.5).outcome() is Outcome.UNDECIDED
    assert verdict(0.0, crowded=0.5).outcome() is Outcome.PASSED
    assert verdict(0.0, crowded=-0.5).outcome() is Outcome.UNDECIDED
    assert verdict(0.1, crowded=-0.5).outcome() is Outcome.DRIFT
    assert verdict(0.1, linear=0.1, crowded=0.5).outcome() is Outcome.UNDECIDED


def test_sums_are_figures_at_the_levels_of_the_baseline() -> None:
    levels_s = {Place(LINEAR.key, "T4"): 1e-3, Place(ROTARY.key, "T4"): 0.01e-3}
    figures, operations = sums_of([TPOT], levels_s)
    total = sum(weight * levels_s[place] for place, weight in figures["tpot-64+8x4"].items())
    assert total == pytest.approx(5.03e-3)
    assert set(operations) == {LINEAR.key, ROTARY.key}
