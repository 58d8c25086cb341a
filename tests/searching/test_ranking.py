"""The order of candidates, those that are not told apart, and the front."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from pytest_dooly.searching.outcome import Outcome
from pytest_dooly.searching.ranking import Search, rank
from tests.searching.samples import SLO, candidate, outcome


def ranked(*outcomes: Outcome, **prices: float) -> Search:
    return rank(outcomes, objective=SLO, prices=prices, tolerance=0.03)


def test_the_cheapest_comes_first_and_what_overlaps_is_equal() -> None:
    dear, cheap, near, none = (outcome(rate, of=candidate(seqs=seqs)) for seqs, rate in enumerate((1.0, 8.0, 6.0, 0.0)))
    found = ranked(dear, cheap, near, none, h200_sxm=3.0)
    assert [each.outcome for each in found.ranked] == [cheap, near, dear]
    assert [each.number for each in found.ranked] == [1, 2, 3]
    assert [each.equal for each in found.ranked] == [True, True, False]
    assert found.missed == (none,)
    assert found.best is found.ranked[0]


def test_without_prices_tokens_per_gpu_decide() -> None:
    one, four = outcome(4.0), outcome(12.0, of=candidate(ranks=4))
    assert [each.outcome for each in ranked(four, one).ranked] == [one, four]
    assert [each.outcome for each in ranked(four, one, h200_sxm=1.0).ranked] == [one, four]


def test_with_no_low_end_nothing_is_told_apart() -> None:
    assert all(each.equal for each in ranked(outcome(9.0, low=0.0), outcome(1.0)).ranked)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12))
def test_the_front_is_what_no_other_beats_in_both(points: list[tuple[int, int]]) -> None:
    found = ranked(*(outcome(float(rate), ms / 1e3, of=candidate(seqs=n)) for n, (rate, ms) in enumerate(points)))

    def beats(one: Outcome, other: Outcome) -> bool:
        return one.rate >= other.rate and one.tpot_s <= other.tpot_s and one != other

    for each in found.ranked:
        beaten = any(
            beats(other.outcome, each.outcome)
            and (other.outcome.rate, other.outcome.tpot_s) != (each.outcome.rate, each.outcome.tpot_s)
            for other in found.ranked
        )
        if each.on_front:
            assert not beaten
    front = [(each.outcome.rate, each.outcome.tpot_s) for each in found.front]
    assert all(one[0] > other[0] and one[1] > other[1] for one, other in itertools.pairwise(front))
    assert found.front[0].outcome == found.ranked[0].outcome


def test_excluded_candidates_are_counted_by_reason() -> None:
    reasons = ("a does not fit on b: 4 GB", "a does not fit on b: 5 GB", "vLLM refuses it")
    excluded = [Outcome(candidate(seqs=n), excluded=reason) for n, reason in enumerate(reasons)]
    found = ranked(outcome(), *excluded)
    assert found.reasons == {"weights do not fit in memory": 2, "vLLM refuses it": 1}
    assert len(found.excluded) == 3


def test_a_frame_has_a_row_for_each_candidate() -> None:
    frame = ranked(outcome(4.0), outcome(0.0), Outcome(candidate(), excluded="too large"), h200_sxm=3.0).frame()
    assert len(frame) == 3
    assert frame["goodput"].tolist() == [4.0, 0.0, 0.0]
    assert frame["number"].notna().tolist() == [True, False, False]
    assert frame["excluded"].tolist()[2] == "too large"
    assert {"device", "tensor_parallel_size", "cost", "tpot_s"} <= set(frame.columns)
