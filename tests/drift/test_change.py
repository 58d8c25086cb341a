"""What changes are told from the turns of runs, on a machine that has spells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from pytest_dooly.core.turn import Place, Turn
from pytest_dooly.drift.change import (
    PROFILED,
    Timed,
    changes,
    common_change,
    less_sure,
    paired_changes,
    profiled_changes,
)
from tests.drift.machine import LATENCIES_S, turns

SUMS = {
    "linear": {Place("linear", "T4"): 1.0, Place("linear", "T64"): 0.1},
    "attention": {Place("attention", "4x1+48"): 1.0},
    "rotary": {Place("rotary", "T4"): 1.0},
    "all": dict.fromkeys(LATENCIES_S, 1.0),
}


def run(seed: int, **how: object) -> Timed:
    return Timed.of(turns(seed, **how))  # type: ignore[arg-type]


def test_without_a_change_few_are_said_to_be_there() -> None:
    """Forty runs, each against one to five: what a test at 1 % may say of them, and no more."""
    probabilities = [
        change.p_slower
        for seed in range(40)
        for change in changes(run(seed), [run(1000 + 7 * seed + i) for i in range(1 + seed % 5)], SUMS).values()
    ]
    assert 0.4 < np.mean(np.array(probabilities) < 0.5) < 0.6
    assert sum(each < 0.01 for each in probabilities) <= 5
    assert sum(each > 0.99 for each in probabilities) <= 5


@pytest.mark.parametrize("number", [1, 3])
def test_a_change_is_told_with_its_size(number: int) -> None:
    found = [
        changes(run(seed, slower={"attention": 0.05}), [run(500 + 10 * seed + i) for i in range(number)], SUMS)
        for seed in range(20)
    ]
    told = [each["attention"].relative for each in found]
    assert np.mean(told) == pytest.approx(0.05, abs=0.01)
    assert np.std(told) < 1.5 * np.mean([each["attention"].error for each in found])
    assert sum(each["attention"].p_slower < 0.01 for each in found) >= 18
    assert sum(each["rotary"].p_slower < 0.01 for each in found) <= 2


def test_a_machine_that_is_slower_as_a_whole_is_no_change() -> None:
    """The references say so; spells have shown how operations follow them."""
    fast = [run(i) for i in range(3)]
    found = changes(Timed.of([*turns(7), *turns(8, speed=1.0)]), fast, SUMS)
    assert abs(found["all"].relative) < 0.03
    raw = np.median(run(9, speed=1.1).log_of(SUMS["all"])) - np.median(fast[0].log_of(SUMS["all"]))
    corrected = changes(run(9, speed=1.1), fast, SUMS)["all"].log
    assert raw > 0.08
    assert abs(corrected) < raw


def started(seed: int, layouts: Sequence[int], *, slower: float = 0.0, shift: float = 0.0) -> Timed:
    """A run of as many starts: each puts operations off by its layout, the run by what all starts have."""
    taken = []
    of_run = np.random.default_rng(seed)
    shifts = {place.signature: float(of_run.normal(0, shift)) for place in LATENCIES_S}
    for number, layout in enumerate(layouts, start=1):
        rng = np.random.default_rng(layout)
        put = {signature: float(rng.normal(0, 0.04)) + shifts[signature] for signature in shifts}
        put["rotary"] = (1 + put["rotary"]) * (1 + slower) - 1
        made = turns(100 * seed + number, 24, slower=put, noise=0.003)
        taken += [replace(turn, start=number) for turn in made]
    return Timed.of(taken)


def test_starts_of_one_layout_are_compared_with_each_other() -> None:
    """As long as the engine is the same one they put operations off alike; how they were mixed says nothing."""
    found = [changes(started(seed, range(4), slower=0.03), [started(50 + seed, range(4))], SUMS) for seed in range(10)]
    assert [each["rotary"].relative for each in found] == pytest.approx([0.03] * 10, abs=0.01)
    assert all(each["rotary"].p_slower < 0.01 for each in found)
    assert sum(each[name].p_slower < 0.01 for each in found for name in ("linear", "attention")) <= 1


def test_layouts_that_have_become_others_are_an_error() -> None:
    """Of another version of the engine: what one start shows and the others do not is no change."""
    runs = [(started(seed, range(10 + 8 * seed, 14 + 8 * seed)), started(70 + seed, range(4))) for seed in range(20)]
    found = [changes(new, [old], SUMS, apart=True) for new, old in runs]
    told = [each[name] for each in found for name in SUMS]
    assert np.std([each.log for each in told]) > 0.02
    assert sum(each.p_slower < 0.01 for each in told) <= 3
    one = [changes(new.of_start(1), [old.of_start(1)], SUMS, apart=True)["rotary"] for new, old in runs]
    assert np.std([each.log / each.error for each in one]) > 1.5  # of a single start nothing tells
    assert np.std([each.log / each.error for each in told]) < 1.5


@pytest.mark.parametrize("number", [1, 4])
def test_what_all_starts_of_a_run_have_is_not_averaged_away(number: int) -> None:
    """Another minute's machine puts operations 2 % off: runs of the baseline tell, however many starts each has."""
    layouts = range(number)
    found = [
        changes(
            started(seed, layouts, shift=0.02),
            [started(300 + 5 * seed + i, layouts, shift=0.02) for i in range(5)],
            SUMS,
        )
        for seed in range(30)
    ]
    told = [each[name] for each in found for name in ("linear", "attention", "rotary")]
    assert np.std([each.log / each.error for each in told]) < 1.5
    assert sum(each.p_slower < 0.01 for each in told) <= 4


def test_without_a_start_in_common_a_layout_s_error_is_there() -> None:
    """Of a session that drew its own, which has no number, and of starts that the others lack."""
    new, old = started(1, (0, 1, 2), slower=0.05), started(2, (0, 1))
    both = changes(new, [old], SUMS)["rotary"]
    assert both.relative == pytest.approx(0.05, abs=0.01)
    assert both == changes(started(1, (0, 1), slower=0.05), [old], SUMS)["rotary"]
    drawn = replace(old, starts=np.zeros_like(old.starts))
    for lacking in (changes(new.of_start(3), [old], SUMS), changes(new, [drawn], SUMS)):
        assert lacking["rotary"].error > 0.04 > both.error


def test_engines_that_take_turns_are_compared_turn_by_turn() -> None:
    """A machine that gets slower and slower tells nothing apart where runs follow each other, but in pairs it does."""
    rng = np.random.default_rng(3)
    drift = np.exp(np.cumsum(rng.normal(0, 0.05, 32)))

    def under(drifting: np.ndarray, made: list[Turn]) -> Timed:
        each = Timed.of(made)
        return replace(each, latencies_s={place: latencies * drifting for place, latencies in each.latencies_s.items()})

    calm = {"noise": 0.003}
    old = under(drift, turns(11, **calm))  # type: ignore[arg-type]
    new = under(drift, turns(11, slower={"linear": 0.04}, **calm))  # type: ignore[arg-type]
    found = paired_changes([(new, old)], [True], SUMS)
    assert found["linear"].relative == pytest.approx(0.04, abs=0.002)
    assert found["linear"].p_slower < 0.001
    assert abs(found["rotary"].relative) < 0.002


def test_engines_that_take_turns_have_started_apart_too() -> None:
    """However many turns they take, an operation that the one start put 1.5 % off has not changed; 5 % has."""
    old = Timed.of(turns(11, 200, noise=0.001))
    for slower, is_told in ((0.015, False), (0.05, True)):
        new = Timed.of(turns(12, 200, slower={"rotary": slower}, noise=0.001))
        found = paired_changes([(new, old)], [True], SUMS, apart=True)["rotary"]
        assert found.relative == pytest.approx(slower, abs=0.002)
        assert (found.p_slower < 0.01) == is_told


def test_engines_that_are_started_in_both_orders_are_no_slower_for_being_the_first() -> None:
    """The first one by 2.5 %, whichever it is; one operation of the new engine by 4 % in truth."""

    def opened(seed: int, *, is_first: bool, linear: float = 0.0) -> Timed:
        put = dict.fromkeys({place.signature for place in LATENCIES_S}, 0.025 if is_first else 0.0)
        put["linear"] = (1 + put["linear"]) * (1 + linear) - 1
        return Timed.of(turns(seed, 20, slower=put, noise=0.002))

    crossed = [
        (opened(1, is_first=True, linear=0.04), opened(2, is_first=False)),
        (opened(3, is_first=False, linear=0.04), opened(4, is_first=True)),
    ]
    both, once = paired_changes(crossed, [True, False], SUMS), paired_changes(crossed[:1], [True], SUMS)
    same = paired_changes([crossed[0]] * 2, [True, False], SUMS)
    assert both["linear"].relative == pytest.approx(0.04, abs=0.003)
    assert abs(both["rotary"].relative) < 0.003
    assert once["rotary"].relative == pytest.approx(0.025, abs=0.003)
    assert all(same[name].error == pytest.approx(once[name].error / 2**0.5) for name in SUMS)


def beside(seed: int, slower: float) -> tuple[Timed, Timed]:
    """A start of an engine whose rotary embedding is slower, beside one of an engine without a change."""
    new = turns(seed, 60, slower={"rotary": slower}, noise=0.002)
    return Timed.of(new), Timed.of(turns(seed, 60, noise=0.002))


@pytest.mark.parametrize(("starts", "is_told"), [((0.054, 0.048), True), ((0.1, 0.002), False)])
def test_what_one_start_has_made_slower_and_the_other_not_is_no_change(
    starts: tuple[float, float], is_told: bool
) -> None:
    """Of one operation beside four others, about 5 % in the mean either way."""
    sums = {place.signature + place.point: {place: 1.0} for place in LATENCIES_S}
    pairs = [beside(seed, slower) for seed, slower in enumerate(starts)]
    found = paired_changes(pairs, [True, False], sums, apart=True)
    assert found["rotaryT4"].relative == pytest.approx(0.05, abs=0.003)
    assert (found["rotaryT4"].p_slower < 0.01) == is_told
    assert all(abs(change.relative) < 0.003 for name, change in found.items() if name != "rotaryT4")


def test_what_all_operations_starts_tell_counts_beside_one_s_own() -> None:
    """Starts of one 2 to 8 % slower, of four others all the same: less unsure than its own four say, and no surer."""
    sums = {place.signature + place.point: {place: 1.0} for place in LATENCIES_S}
    starts = (0.02, 0.08, 0.03, 0.07)
    pairs = [beside(seed, slower) for seed, slower in enumerate(starts)]
    found = paired_changes(pairs, [True, False, False, True], sums, apart=True)
    own = float(np.std(np.log1p(starts), ddof=1)) / 2
    assert 0.5 * own < found["rotaryT4"].error < 0.95 * own
    assert 7 <= found["rotaryT4"].freedom < 20
    assert all(found[name].error < 0.5 * own for name in sums if name != "rotaryT4")


@pytest.mark.parametrize(("apart", "is_told"), [(0.0, True), (0.03, False)])
def test_figures_are_as_unsure_as_starts_of_one_order_are_apart(apart: float, *, is_told: bool) -> None:
    """Four starts with 4 % in the mean, those of one order alike or 3 % either way; the order itself does 2 %."""
    pairs, orders = [], (True, False, False, True)
    for seed, (first, way) in enumerate(zip(orders, (1, 1, -1, -1), strict=True)):
        put = dict.fromkeys({place.signature for place in LATENCIES_S}, 0.04 + way * apart + (0.02 if first else -0.02))
        new = Timed.of(turns(seed, 60, slower=put, noise=0.002))
        pairs.append((new, Timed.of(turns(seed + 9, 60, noise=0.002))))
    found = paired_changes(pairs, orders, SUMS)
    assert all(change.relative == pytest.approx(0.04, abs=0.003) for change in found.values())
    assert all((change.bound(0.01) > 0.03) == is_told for change in found.values())


def test_engines_that_take_turns_are_compared_where_both_were_calm() -> None:
    """Processes that disturb one of both now and then: 24 calm turns of one engine, 23 of the other."""
    new, old = turns(1, 40), turns(2, 40)
    new[:8] = [replace(turn, held=0.5) for turn in new[:8]]
    old[6] = replace(old[6], held=0.5)
    both = Timed.of_pairs(new, old)
    assert [len(each) for each in both] == [32, 32]
    assert paired_changes([both], [True], SUMS).keys() == SUMS.keys()
    crowd = [replace(turn, held=0.5) for turn in new[:34]] + new[34:]
    assert [len(each) for each in Timed.of_pairs(crowd, old)] == [40, 40]


def test_profiled_latencies_are_much_less_sure() -> None:
    sums = {"rotary": SUMS["rotary"]}
    found = profiled_changes(run(1), LATENCIES_S, {"rotary": 0.1}, sums)["rotary"]
    assert found.error >= math.hypot(PROFILED, 0.1)
    assert found.p_slower > 0.01
    slow = profiled_changes(run(1, slower={"rotary": 1.0}), LATENCIES_S, {"rotary": 0.1}, sums)["rotary"]
    assert slow.p_slower < 0.01


def test_a_turn_that_lacks_a_place_does_not_count_there() -> None:
    made = turns(1)
    lacking = [Turn(t.references_s, {p: s for p, s in t.latencies_s.items() if "rotary" not in p}, 0.3) for t in made]
    found = changes(Timed.of([*lacking[:4], *made[4:]]), [run(2)], SUMS)
    assert abs(found["rotary"].relative) < 0.1


def test_of_a_few_turns_one_may_lack_a_place() -> None:
    """A difference of two times may come out as nothing, which is no latency."""
    rotary = "rotary T4"
    made, few = turns(1, 8), turns(2, 8)
    lacking = replace(made[3], latencies_s={p: s for p, s in made[3].latencies_s.items() if p != rotary})
    found = changes(Timed.of([*made[:3], lacking, *made[4:]]), [Timed.of(few)], SUMS, apart=True)
    assert all(math.isfinite(each.error) and each.error > 0 for each in found.values())
    never = [replace(t, latencies_s={p: s for p, s in t.latencies_s.items() if p != rotary}, start=2) for t in few]
    place = Place.parse(rotary)
    assert (Timed.of(made).has(place), Timed.of([*made, *never]).has(place)) == (True, False)
    assert not Timed.of(never).has(place)


def test_calm_turns_of_each_start_count_where_it_has_enough() -> None:
    calm = [replace(turn, start=1 + at // 8) for at, turn in enumerate(turns(1, 24))]
    busy = [replace(turn, held=0.5, start=3) for turn in turns(2, 8)]
    few = [*calm[:16], *calm[16:20], *busy]
    assert np.unique(Timed.of(few).starts, return_counts=True)[1].tolist() == [8, 8, 12]


def test_calm_turns_alone_count_where_there_are_enough() -> None:
    calm, busy = turns(1, 16), [replace(turn, held=0.5) for turn in turns(2, 40, speed=2.0)]
    assert len(Timed.of([*busy, *calm])) == 16
    assert len(Timed.of([*busy, *calm[:15]])) == 55


def test_runs_of_the_baseline_say_how_far_runs_are_apart() -> None:
    """Where they differ by 5 % without a change, a change of 5 % is none."""
    apart = [run(i, slower=dict.fromkeys(("linear", "attention", "rotary"), 0.1 * (i % 2))) for i in range(5)]
    alike = [run(i) for i in range(5)]
    new = run(77, slower={"attention": 0.05})
    assert changes(new, apart, SUMS)["attention"].error > 2 * changes(new, alike, SUMS)["attention"].error


def test_what_all_operations_are_apart_from_a_profile_is_no_drift_of_one() -> None:
    """llama-tiny on a quiet machine: against its profile one operation took 1.47 times as long, without a change."""
    apart = [1.36, 0.82, 1.47, 0.86, 0.91, 0.76, 0.68, 0.91, 0.91, 0.84, 0.88, 0.95, 1.14, 1.09, 1.05]
    rng = np.random.default_rng(5)
    places = [Place(f"op{each}", "T4") for each in range(len(apart))]
    ratios = dict(zip(map(str, places), apart, strict=True))
    made = [
        Turn({"product": 1e-4}, {of: 1e-5 * ratio * math.exp(rng.normal(0, 0.01)) for of, ratio in ratios.items()}, 0.3)
        for _ in range(48)
    ]
    levels_s = dict.fromkeys(places, 1e-5)
    sums = {place.signature: {place: 1.0} for place in places}
    errors = dict.fromkeys(sums, 0.05)
    found = profiled_changes(Timed.of(made), levels_s, errors, sums)
    assert found["op2"].relative == pytest.approx(0.47, abs=0.02)
    assert min(each.p_slower for each in found.values()) > 0.01 / len(apart)
    assert profiled_changes(Timed.of(made), levels_s | {places[2]: 0.4e-5}, errors, sums)["op2"].p_slower < 0.0007


def crowded_turns(seed: int, *, slower: str = "", crowd: float = 0.0) -> Timed:
    """Turns of six operations that a neighbour slows down unequally, up to 30 %, where no reference notices it."""
    rng = np.random.default_rng(seed)
    notices = {f"op{each}": 0.6 + 0.2 * each for each in range(6)}
    made = []
    for _ in range(64):
        spell = crowd * rng.uniform(0.8, 1.2) + rng.uniform(0, 0.03)
        latencies_s = {
            str(Place(name, "T4")): (1.05e-4 if name == slower else 1e-4)
            * math.exp(much * spell + rng.normal(0, 0.004))
            for name, much in notices.items()
        }
        made.append(Turn({"product": 1e-4 * math.exp(rng.normal(0, 0.004))}, latencies_s, 0.3, start=1))
    return Timed.of(made)


SIX = {f"op{each}": {Place(f"op{each}", "T4"): 1.0} for each in range(6)}


def test_operations_are_compared_with_each_other() -> None:
    """As llama-tiny on a machine whose other core worked: all operations took 4 to 30 % longer, without a change."""
    baseline = [crowded_turns(seed) for seed in range(3)]
    alone = changes(crowded_turns(7, crowd=0.12), baseline, SIX)
    assert sum(each.p_slower < 0.01 / 6 for each in alone.values()) > 3
    apart = changes(crowded_turns(7, crowd=0.12), baseline, SIX, apart=True)
    assert max(abs(each.relative) for each in apart.values()) < 0.035
    slowed = changes(crowded_turns(8, slower="op2", crowd=0.12), baseline, SIX, apart=True)
    assert max(slowed, key=lambda name: slowed[name].log) == "op2"
    assert slowed["op2"].p_slower < 0.01 / 6
    calm = changes(crowded_turns(9, slower="op2"), baseline, SIX, apart=True)
    assert calm["op2"].relative == pytest.approx(0.05, abs=0.01)


def test_few_operations_have_no_others_to_be_compared_with() -> None:
    three = {name: SIX[name] for name in ("op0", "op1", "op2")}
    new, baseline = crowded_turns(7, crowd=0.12), [crowded_turns(1)]
    apart, together = changes(new, baseline, three, apart=True), changes(new, baseline, three)
    assert {name: each.log for name, each in apart.items()} == {name: each.log for name, each in together.items()}
    assert common_change(together) == 0.0


def test_what_all_have_changed_by_alike_makes_no_figure_drift() -> None:
    baseline = [crowded_turns(seed) for seed in range(3)]
    new = crowded_turns(7, crowd=0.12)
    every = {"all": {place: 1.0 for weights in SIX.values() for place in weights}}
    figures, common = changes(new, baseline, every), common_change(changes(new, baseline, SIX))
    assert figures["all"].bound(0.01) > 0.05
    assert less_sure(figures, common)["all"].bound(0.01) < 0.03
    one = common_change(changes(crowded_turns(8, slower="op2"), baseline, SIX))
    assert abs(one) < 0.01
