"""Candidates are handed out once each, whoever chooses."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dooly.errors import MissingExtraError
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.searching.candidate import Trial
from pytest_dooly.searching.chooser import InTurn, Sampled, chooser_for, place_of
from pytest_dooly.searching.outcome import Outcome
from tests.searching.samples import grid, outcome, question, trials


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> list[Trial]:
    path = tmp_path_factory.mktemp("grid") / "latency.db"
    LatencyDB.open(path).close()
    axes: dict[str, Sequence[object]] = {
        "max_num_seqs": [4, 8, 16, 32, 64],
        "max_num_tokens": [512, 1024, 2048],
        "prefix_caching": [True, False],
    }
    return trials(path, question(), grid(("h100_sxm", "h200_sxm", "l40s"), **axes))


def test_lanes_keep_their_places_while_there_is_work(several: list[Trial]) -> None:
    chooser, seen = InTurn(several), list[Trial]()
    first, second = chooser.next(), chooser.next()
    assert first is not None
    assert second is not None
    assert place_of(first) != place_of(second)
    while (trial := chooser.next(place_of(first))) is not None:
        seen.append(trial)
    assert {place_of(trial) for trial in seen[:5]} == {place_of(first)}
    assert sorted(trial.key for trial in (first, second, *seen)) == sorted(trial.key for trial in several)


@given(st.lists(st.integers(0, 2)))
def test_whatever_is_liked_each_is_handed_out_once(several: list[Trial], liked: list[int]) -> None:
    places = list(dict.fromkeys(map(place_of, several)))
    chooser = InTurn(several)
    found = [chooser.next(places[place]) for place in liked]
    while (trial := chooser.next()) is not None:
        found.append(trial)
    assert sorted(trial.key for trial in found if trial) == sorted(trial.key for trial in several)


def price(of: Outcome) -> float:
    return 1 / of.rate


def come_to(trial: Trial) -> Outcome:
    """Best with many requests and tokens; nothing at all on an L40S."""
    of = trial.candidate
    return outcome(0.0 if of.device == "l40s" else of.max_num_seqs * of.max_num_tokens / 1e3, of=of)


@pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="needs optuna, of the extra search")
@pytest.mark.parametrize("known", [0, 10])
def test_optuna_chooses_as_many_as_were_asked_for_and_finds_what_is_good(several: list[Trial], known: int) -> None:
    before = {trial.key: come_to(trial) for trial in several[:known]}
    chooser = chooser_for(several, before, 40, price)
    assert isinstance(chooser, Sampled)
    under_way, found = list[Trial](), dict[str, Outcome]()
    while (trial := chooser.next()) is not None:
        under_way.append(trial)
        if len(under_way) == 2:  # two lanes
            ended = under_way.pop(0)
            found[ended.key] = come_to(ended)
            chooser.tell(ended, found[ended.key])
    handed = found.keys() | {trial.key for trial in under_way}
    assert len(handed) == 40 - known
    assert not handed & before.keys()
    best = sorted(map(come_to, several), key=lambda each: -each.rate)[:6]
    assert {each.candidate for each in best} & {each.candidate for each in (*found.values(), *before.values())}


@pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="needs optuna, of the extra search")
def test_a_budget_as_large_as_the_grid_but_one_still_ends(several: list[Trial]) -> None:
    few, handed = several[:9], set[str]()  # the axes have combinations that are no candidates
    chooser = Sampled(few, len(few) - 1, price)
    while (trial := chooser.next()) is not None:
        assert trial.key not in handed
        handed.add(trial.key)
        chooser.tell(trial, come_to(trial))
    assert len(handed) == len(few) - 1


def test_without_optuna_a_larger_grid_is_refused(several: list[Trial], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"90 candidates and 40 --trials need Optuna"):
        chooser_for(several, {}, 40, price)
    assert isinstance(chooser_for(several, {}, 90, price), InTurn)
