"""Arrival times: as many as the rates say, when they say, and spread as the kind says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dooly.errors import ConfigurationError
from pytest_dooly.simulation import arrivals
from pytest_dooly.simulation.arrivals import AT_ONCE, Arrivals, RateStage, Times

KINDS = ["constant", "poisson", "gamma:1.5", "gamma:0.3", "burstiness:0.5"]


def rng(seed: int = 3) -> np.random.Generator:
    return np.random.default_rng(seed)


def gaps(kind: str, num_requests: int = 20_000, rate: float = 4) -> Times:
    times, _ = Arrivals.parse(str(rate), kind).draw(rng(), num_requests=num_requests)
    return np.diff(times, prepend=0)


def test_a_constant_rate_sends_one_request_after_each_gap() -> None:
    times, stages = Arrivals.parse("4", "constant").draw(rng(), num_requests=5)
    assert times == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.25])
    assert stages.tolist() == [0] * 5


@given(st.integers(1, 500), st.integers(1, 2000), st.sampled_from(KINDS))
def test_a_stage_has_its_rate_times_its_seconds(tenths: int, seconds: int, kind: str) -> None:
    whole = tenths * seconds // 10
    if not whole:
        with pytest.raises(ConfigurationError, match="ends before its first request"):
            Arrivals.parse(f"{tenths / 10}@{seconds}", kind)
        return
    times, _ = Arrivals.parse(f"{tenths / 10}@{seconds}", kind).draw(rng())
    assert len(times) == whole
    assert times[-1] == pytest.approx(whole / (tenths / 10))
    assert len(Arrivals.parse(str(tenths / 10), kind).draw(rng(), duration_s=seconds)[0]) == whole


def test_a_product_that_a_float_makes_too_small_is_whole() -> None:
    assert 0.29 * 100 < 29
    assert len(Arrivals.parse("0.29@100", "constant").draw(rng())[0]) == 29
    assert len(Arrivals.parse("0.29", "constant").draw(rng(), duration_s=100)[0]) == 29


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 30)), min_size=1, max_size=5),
    st.sampled_from(KINDS),
    st.integers(0, 9),
)
def test_stages_follow_each_other_and_keep_to_their_seconds(
    stages: list[tuple[int, int]], kind: str, seed: int
) -> None:
    stages.append((3, 10))  # not all can be pauses
    text = ",".join(f"{rate}@{seconds}" for rate, seconds in stages)
    times, numbers = Arrivals.parse(text, kind).draw(rng(seed))
    assert (np.diff(times) >= 0).all()
    assert np.bincount(numbers, minlength=len(stages)).tolist() == [rate * seconds for rate, seconds in stages]
    ends = np.cumsum([seconds for _, seconds in stages])
    assert (times <= ends[numbers] * (1 + 1e-9)).all()
    assert (times >= (ends - [seconds for _, seconds in stages])[numbers]).all()


def test_the_same_seed_gives_the_same_times_and_another_does_not() -> None:
    drawn = Arrivals.parse("5@600,10@600")
    assert drawn.draw(rng(1))[0].tolist() == drawn.draw(rng(1))[0].tolist() != drawn.draw(rng(2))[0].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_times_are_stretched_to_the_rate_as_vllm_stretches_them(kind: str) -> None:
    assert gaps(kind, 100).sum() == pytest.approx(25, rel=1e-12)


@pytest.mark.parametrize(
    ("kind", "cv"), [("poisson", 1), ("gamma:1.5", 1.5), ("gamma:0.3", 0.3), ("burstiness:4", 0.5)]
)
def test_gaps_spread_as_the_kind_says(kind: str, cv: float) -> None:
    # Of 20,000 gaps the standard error of the CV is below 2 % for all of these; of the mean there is none.
    drawn = gaps(kind)
    assert drawn.mean() == pytest.approx(0.25)
    assert drawn.std() / drawn.mean() == pytest.approx(cv, rel=0.08)


def test_poisson_gaps_are_exponential_and_independent() -> None:
    drawn = gaps("poisson")
    for multiple in (0.1, 1, 3):
        share = math.exp(-multiple)
        error = math.sqrt(share * (1 - share) / len(drawn))
        assert (drawn > multiple * 0.25).mean() == pytest.approx(share, abs=5 * error)
    assert np.corrcoef(drawn[1:], drawn[:-1])[0, 1] == pytest.approx(0, abs=5 / math.sqrt(len(drawn)))


def test_equal_gaps_are_the_limit_of_burstiness() -> None:
    assert Arrivals.parse("4", "constant") == Arrivals.parse("4", "burstiness:inf") == Arrivals.parse("4", "gamma:0")
    assert Arrivals.parse("4", "poisson") == Arrivals.parse("4", "gamma:1") == Arrivals.parse("4", "burstiness:1")
    assert gaps("gamma:0.00001", 100) == pytest.approx(gaps("constant", 100), rel=1e-3)


def test_an_infinite_rate_sends_all_at_once() -> None:
    times, stages = Arrivals.parse("inf").draw(rng(), num_requests=3)
    assert times.tolist() == [0, 0, 0]
    assert stages.tolist() == [0, 0, 0]
    assert Arrivals.parse("inf").stages == AT_ONCE.stages
    with pytest.raises(ConfigurationError, match="need a number"):
        AT_ONCE.draw(rng(), duration_s=3)


def test_an_infinite_rate_may_come_last() -> None:
    times, stages = Arrivals.parse("1@2,inf", "constant").draw(rng(), num_requests=4, duration_s=9)
    assert times.tolist() == [1, 2, 2, 2]
    assert stages.tolist() == [0, 0, 1, 1]


def test_the_last_stage_lasts_until_number_or_duration_end_it() -> None:
    drawn = Arrivals.parse("2@5,10", "constant")
    assert drawn.duration_s is None
    assert len(drawn.draw(rng(), duration_s=8)[0]) == 10 + 30
    assert len(drawn.draw(rng(), num_requests=17)[0]) == 17
    assert len(drawn.draw(rng(), num_requests=17, duration_s=5.5)[0]) == 15
    assert drawn.draw(rng(), duration_s=2.6)[0].tolist() == [0.5, 1, 1.5, 2, 2.5]
    assert drawn.draw(rng(), duration_s=5)[1].tolist() == [0] * 10


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_requests_of_timed_stages_are_their_beginning(kind: str) -> None:
    drawn = Arrivals.parse("5@6,10@6", kind)
    assert drawn.duration_s == 12
    assert drawn.draw(rng(), num_requests=40)[0].tolist() == drawn.draw(rng())[0][:40].tolist()
    assert drawn.draw(rng(), num_requests=1000)[1].tolist() == [0] * 30 + [1] * 60


def test_a_rate_of_nothing_is_a_pause() -> None:
    times, stages = Arrivals.parse("1@2,0@10,1@2", "constant").draw(rng())
    assert times.tolist() == [1, 2, 13, 14]
    assert stages.tolist() == [0, 0, 2, 2]


def test_bursts_too_short_for_a_float_fall_together() -> None:
    class Nothing(np.random.Generator):
        def gamma(self, shape: float, scale: float = 1.0, size: int | None = None) -> Times:  # type: ignore[override]
            return np.zeros(size or 0)

    nothing = Nothing(np.random.PCG64(0))
    assert Arrivals.parse("3", "gamma:100").draw(nothing, num_requests=4)[0].tolist() == [0] * 4


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ("", "cannot read '' as rates"),
        ("fast", "cannot read 'fast' as rates"),
        ("5@", "cannot read '5@' as rates"),
        ("5@1@2", "cannot read '5@1@2' as rates"),
        ("5@600,", "cannot read '5@600,' as rates"),
        ("-3", "not negative: -3"),
        ("nan", "not negative: nan"),
        ("0", "0 needs its seconds"),
        ("0@60", "no request: name a rate above 0"),
        ("5,10", "the rate 5 is not the last one"),
        ("5@0", "above 0, got 5@0"),
        ("5@inf", "above 0, got 5@inf"),
        ("5@nan", "above 0, got 5@nan"),
        ("inf@3", "not infinite"),
        ("1e9@1e9", "has more than 10,000,000 requests"),
        ("0.1@5", "the stage 0.1@5 ends before its first request"),
    ],
)
def test_rates_that_cannot_be_are_told_apart(rates: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Arrivals.parse(rates)


@pytest.mark.parametrize(
    "kind", ["", "uniform", "gamma", "gamma:", "gamma:-1", "gamma:nan", "gamma:101", "burstiness:0", "poisson:2"]
)
def test_a_kind_that_is_none_is_refused(kind: str) -> None:
    with pytest.raises(ConfigurationError, match=f"cannot read {kind!r} as a kind of arrivals"):
        Arrivals.parse("5", kind)


def test_what_has_no_end_or_no_request_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at 2@5,10 requests per second have no end"):
        Arrivals.parse("2@5,10").draw(rng())
    with pytest.raises(ConfigurationError, match=r"no request arrives within 0.1 s at 1@5"):
        Arrivals.parse("1@5", "constant").draw(rng(), duration_s=0.1)
    with pytest.raises(ConfigurationError, match="duration above 0 seconds, got -1"):
        Arrivals.parse("1@5").draw(rng(), duration_s=-1)
    for number in (0, arrivals.MOST_REQUESTS + 1):
        with pytest.raises(ConfigurationError, match="name a number of requests from 1"):
            Arrivals.parse("1").draw(rng(), num_requests=number)
    with pytest.raises(ConfigurationError, match="arrivals need a rate"):
        Arrivals(())
    with pytest.raises(ConfigurationError, match="burstiness must be"):
        Arrivals((RateStage(1),), burstiness=1e-9)
