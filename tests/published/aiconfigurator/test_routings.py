"""How tokens spread over experts: against the collector's way, written out token by token."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dooly.published.aiconfigurator.routings import power_law, routing_of, uniform


def evenly(num_tokens: int, experts: int, top_k: int) -> list[int]:
    """Tokens of each expert as `balanced_logits` of the collector spreads them, token by token."""
    stride, counts = math.ceil(experts / top_k), [0] * experts
    for token in range(num_tokens):
        first = token if num_tokens >= stride else token * stride / num_tokens
        for choice in range(top_k):
            counts[int((first + choice * stride) % experts)] += 1
    return counts


def in_turns(ranks: list[list[int]], steps: int, most: int, step: int) -> None:
    """`_round_robin_adjust_per_rank` of the collector: one token after the other, rank by rank."""
    while steps > 0:
        for counts in ranks:
            open_to = [i for i, count in enumerate(counts) if (count < most if step > 0 else count > 0)]
            if open_to and steps:
                counts[(min if step > 0 else max)(open_to, key=counts.__getitem__)] += step
                steps -= 1


def by_power_law(uniform: Sequence[float], num_tokens: int, top_k: int, ranks: int, alpha: float) -> list[int]:
    """Tokens of the fullest rank's experts as `_generate_power_law_distribution` of the collector spreads them."""
    experts, assigned = len(uniform), num_tokens * top_k
    low, high = (1, num_tokens * 0.8) if assigned > experts else (0.01, 2)
    law = 1 - alpha
    shares = [((high**law - low**law) * u + low**law) ** (1 / law) for u in uniform]
    rounded = [round(share / sum(shares) * assigned) for share in shares]
    over = sum(max(count - num_tokens, 0) for count in rounded)
    local = experts // ranks
    by_rank = [[min(count, num_tokens) for count in rounded[r * local : (r + 1) * local]] for r in range(ranks)]
    in_turns(by_rank, over, num_tokens, 1)
    lacking = assigned - sum(map(sum, by_rank))
    in_turns(by_rank, abs(lacking), num_tokens, 1 if lacking > 0 else -1)
    return max(by_rank, key=sum)


layers = st.sampled_from([(8, 2), (16, 1), (60, 4), (64, 6), (128, 8), (256, 8)]).flatmap(
    lambda sizes: st.tuples(
        st.just(sizes[0]), st.just(sizes[1]), st.sampled_from([r for r in (1, 2, 4, 8) if sizes[0] % r == 0])
    )
)
num_tokens = st.integers(1, 3000)


@given(num_tokens, layers)
def test_an_even_spread_is_exact(num_tokens: int, layer: tuple[int, int, int]) -> None:
    experts, top_k, ranks = layer
    counts = evenly(num_tokens, experts, top_k)[: experts // ranks]
    routing = routing_of(num_tokens, experts, top_k, ranks, None)
    assert (routing.activated, routing.busiest) == (sum(count > 0 for count in counts), max(counts))


@given(num_tokens, layers, st.sampled_from([1.01, 1.2, 0.6]))
def test_a_power_law_is_spread_as_the_collector_spreads_it(
    num_tokens: int, layer: tuple[int, int, int], alpha: float
) -> None:
    experts, top_k, ranks = layer
    counts = power_law(num_tokens, experts, top_k, ranks, alpha)
    draws = uniform(experts, round(alpha * 100))
    # A share within an error of rounding of a half may go either way, and the fullest of two ranks with it.
    alike = [
        sorted(by_power_law(list(draw), num_tokens, top_k, ranks, alpha)) == sorted(of)
        for draw, of in zip(draws, counts, strict=True)
    ]
    assert sum(alike) >= len(alike) - 1


@given(num_tokens, layers, st.sampled_from([None, 1.01, 1.2]))
def test_a_routing_is_the_same_again_and_within_what_is_possible(
    num_tokens: int, layer: tuple[int, int, int], alpha: float | None
) -> None:
    experts, top_k, ranks = layer
    routing = routing_of.__wrapped__(num_tokens, experts, top_k, ranks, alpha)
    assert routing == routing_of.__wrapped__(num_tokens, experts, top_k, ranks, alpha)
    assert 1 <= routing.activated <= min(experts // ranks, num_tokens * top_k)
    assert 1 <= routing.busiest <= num_tokens
    assert ranks > 1 or routing.activated * routing.busiest >= num_tokens * top_k - routing.busiest


@pytest.mark.parametrize("layer", [(8, 2, 1), (128, 8, 1), (128, 8, 8), (256, 8, 16)])
@pytest.mark.parametrize("alpha", [None, 1.01, 1.2])
def test_more_tokens_activate_no_fewer_experts_and_a_power_law_no_more_than_an_even_spread(
    layer: tuple[int, int, int], alpha: float | None
) -> None:
    sizes = [2**exponent for exponent in range(14)]
    by_size = [routing_of(size, *layer, alpha) for size in sizes]
    assert all(np.diff([routing.activated for routing in by_size]) >= 0)
    assert all(np.diff([routing.busiest for routing in by_size]) >= 0)
    even = [routing_of(size, *layer, None) for size in sizes]
    assert all(one.busiest >= other.busiest for one, other in zip(by_size, even, strict=True))
