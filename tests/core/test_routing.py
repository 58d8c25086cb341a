"""What a step is expected to meet, against routing that is drawn token by token and against closed forms."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dooly.core.batch import Routing
from pytest_dooly.core.routing import RoutingDistribution
from pytest_dooly.errors import ConfigurationError

DISTRIBUTIONS = ["uniform", "zipf:0.6", "zipf:1.2", "zipf:2", "8,4,2,1,1,1,1,1"]
SHAPES = [(2, 1), (8, 1), (8, 2), (16, 4), (64, 6)]
CASES = [
    (text, experts, top_k)
    for text in DISTRIBUTIONS
    for experts, top_k in SHAPES
    if "," not in text or text.count(",") + 1 == experts
]


@lru_cache
def drawn(text: str, experts: int, top_k: int, num_tokens: int, steps: int = 400) -> npt.NDArray[np.int64]:
    """Tokens of each expert in many steps, shape (steps, experts): the top k of log share plus Gumbel noise."""
    distribution = RoutingDistribution.parse(text)
    shares = np.array(distribution.shares or np.arange(1, experts + 1) ** -distribution.alpha)
    noise = np.random.default_rng(5).gumbel(size=(steps, num_tokens, experts))
    chosen = np.argpartition(-(np.log(shares) + noise), top_k - 1, axis=2)[:, :, :top_k]
    counts = np.zeros((steps, experts), dtype=np.int64)
    for step in range(steps):
        counts[step] = np.bincount(chosen[step].ravel(), minlength=experts)
    return counts


@pytest.mark.parametrize("num_tokens", [1, 3, 32, 200])
@pytest.mark.parametrize(("text", "experts", "top_k"), CASES)
def test_expectations_agree_with_routing_that_is_drawn(text: str, experts: int, top_k: int, num_tokens: int) -> None:
    counts = drawn(text, experts, top_k, num_tokens)
    activated, busiest = RoutingDistribution.parse(text).expectations([num_tokens], experts, top_k)
    # Four standard errors of the simulation, which rare events need three more of, and what the estimate of the largest
    # is said to be off by.
    spread, rare = 4 / np.sqrt(len(counts)), 3 / len(counts)
    reached, largest = (counts > 0).sum(1), counts.max(1)
    assert activated[0] == pytest.approx(reached.mean(), abs=spread * reached.std() + rare)
    assert busiest[0] == pytest.approx(largest.mean(), abs=spread * largest.std() + max(0.15, 0.02 * largest.mean()))


@pytest.mark.parametrize(("text", "experts", "top_k"), CASES)
def test_experts_are_taken_as_often_as_they_are_drawn(text: str, experts: int, top_k: int) -> None:
    counts = drawn(text, experts, top_k, 200)
    taken = RoutingDistribution.parse(text).inclusion(experts, top_k)
    assert taken.sum() == pytest.approx(top_k)
    share = counts.sum(0) / (200 * len(counts))
    assert taken == pytest.approx(share, abs=5 * np.sqrt(0.25 / counts.size * experts / 200))


def test_one_expert_a_token_is_taken_by_its_share() -> None:
    taken = RoutingDistribution(shares=(5.0, 3.0, 1.0, 1.0)).inclusion(4, 1)
    assert taken == pytest.approx([0.5, 0.3, 0.1, 0.1], rel=1e-5)


@given(st.lists(st.floats(0.01, 10), min_size=3, max_size=12))
def test_two_experts_a_token_are_drawn_one_after_the_other(shares: list[float]) -> None:
    w = np.array(shares) / sum(shares)
    second = [w[e] * sum(w[j] / (1 - w[j]) for j in range(len(w)) if j != e) for e in range(len(w))]
    taken = RoutingDistribution(shares=tuple(shares)).inclusion(len(shares), 2)
    assert taken == pytest.approx(w + second, abs=1e-4)


def test_a_uniform_router_in_closed_form() -> None:
    activated, _ = RoutingDistribution().expectations([1, 10, 1000], 8, 2)
    assert activated == pytest.approx([2, 8 * (1 - 0.75**10), 8])
    # Two experts, one a token: half of the tokens, and half of the mean distance between the two counts.
    _, busiest = RoutingDistribution().expectations([1000], 2, 1)
    assert busiest[0] == pytest.approx(500 + np.sqrt(1000 / (2 * np.pi)), abs=0.5)


@given(st.integers(1, 3000), st.integers(1, 40), st.integers(1, 40), st.sampled_from(["uniform", "zipf:0.8", "zipf:3"]))
def test_expectations_are_possible(num_tokens: int, experts: int, top_k: int, text: str) -> None:
    top_k = min(top_k, experts)
    activated, busiest = RoutingDistribution.parse(text).expectations([num_tokens], experts, top_k)
    assert min(top_k, experts) * (1 - 1e-9) <= activated[0] <= min(experts, num_tokens * top_k) * (1 + 1e-9)
    assert num_tokens * top_k / experts * (1 - 1e-9) <= busiest[0] <= num_tokens


def test_skew_makes_fewer_experts_busier() -> None:
    ways = [RoutingDistribution(alpha).expectations([64], 32, 4) for alpha in (0, 0.5, 1, 2)]
    assert sorted((float(activated[0]) for activated, _ in ways), reverse=True) == [float(a[0]) for a, _ in ways]
    assert sorted(float(busiest[0]) for _, busiest in ways) == [float(b[0]) for _, b in ways]


def test_steps_may_repeat_and_come_in_any_order() -> None:
    distribution = RoutingDistribution.parse("zipf:1")
    activated, busiest = distribution.expectations([64, 1, 64], 16, 2)
    assert activated[0] == activated[2] > activated[1] == pytest.approx(2)
    assert busiest[0] == busiest[2] > busiest[1] == pytest.approx(1)


def test_a_step_meets_whole_experts_and_tokens() -> None:
    assert RoutingDistribution().expected(1, 8, 2) == Routing(activated=2, busiest=1)
    assert RoutingDistribution().expected(64, 8, 8) == Routing(activated=8, busiest=64)


@pytest.mark.parametrize("text", DISTRIBUTIONS)
def test_text_form_is_read_back(text: str) -> None:
    distribution = RoutingDistribution.parse(text)
    assert str(distribution) == text
    assert RoutingDistribution.parse(str(distribution)) == distribution


@pytest.mark.parametrize("text", ["", "zipf", "zipf:", "zipf:steep", "uniform:2", "1,,2", "normal"])
def test_what_cannot_be_read_is_named_with_what_can(text: str) -> None:
    with pytest.raises(ConfigurationError, match="write trained, uniform, zipf:ALPHA or a share for each expert"):
        RoutingDistribution.parse(text)


@pytest.mark.parametrize("text", ["zipf:-1", "zipf:101", "zipf:inf", "zipf:nan", "1,0,2", "1,-1", "1,nan"])
def test_impossible_shares_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="exponent between 0 and 100|a number above 0"):
        RoutingDistribution.parse(text)


def test_shares_and_experts_must_agree() -> None:
    with pytest.raises(ConfigurationError, match="the routing 1,1,2 has 3 shares for 4 experts"):
        RoutingDistribution(shares=(1, 1, 2)).expected(1, 4, 1)
    with pytest.raises(ConfigurationError, match="cannot go to 3 distinct experts of 2"):
        RoutingDistribution().expected(1, 2, 3)
