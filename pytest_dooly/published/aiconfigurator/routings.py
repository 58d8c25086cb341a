"""How the collector of aiconfigurator spreads tokens over experts, which its tables do not say: drawn again."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from pytest_dooly.core.batch import Routing

__all__ = ["power_law", "routing_of", "uniform"]

_DRAWS = 16
"""Routings whose mean stands for those of a power law, which are not published."""

_Array = npt.NDArray[np.int64]


@cache
def routing_of(num_tokens: int, experts: int, top_k: int, ranks: int, alpha: float | None) -> Routing:
    """What the experts of the rank that is timed get of the tokens, which the tables do not say.

    Spread evenly (`alpha` is None), that is exact and the first rank's. Of a power law it is the mean over draws like
    the collector's, whose rank is the one with most tokens; the draws are alike for every number of tokens.
    """
    if alpha is None:
        counts = _balanced(num_tokens, experts, top_k)[: experts // ranks][None]
    else:
        counts = power_law(num_tokens, experts, top_k, ranks, alpha)
    activated, busiest = (counts > 0).sum(axis=1).mean(), counts.max(axis=1).mean()
    return Routing(max(1, round(float(activated))), max(1, round(float(busiest))))


@cache
def _balanced(num_tokens: int, experts: int, top_k: int) -> _Array:
    """Tokens of each expert, shape (experts,). Source: `balanced_logits` of the collector."""
    stride = -(-experts // top_k)
    first = np.arange(num_tokens)
    if num_tokens < stride:
        first = first * stride // num_tokens
    chosen = (first[:, None] + np.arange(top_k) * stride) % experts
    return np.bincount(chosen.ravel(), minlength=experts)


def power_law(num_tokens: int, experts: int, top_k: int, ranks: int, alpha: float) -> _Array:
    """Tokens of each expert of the rank with most, shape (draws, experts of a rank).

    Each expert's share is drawn from a power law between 1 and 0.8 of the tokens (0.01 and 2 where they are few). What
    rounding and the bound of one expert, the number of tokens, leave over goes to the experts with fewest, rank by
    rank. Source: `_generate_power_law_distribution` of the collector.
    """
    assigned = num_tokens * top_k
    low, high = (1.0, 0.8 * num_tokens) if assigned > experts else (0.01, 2.0)
    shares = uniform(experts, round(alpha * 100)) * (high ** (1 - alpha) - low ** (1 - alpha)) + low ** (1 - alpha)
    shares **= 1 / (1 - alpha)
    counts = np.rint(shares / shares.sum(axis=1, keepdims=True) * assigned).astype(np.int64)
    over = np.maximum(counts - num_tokens, 0).sum(axis=1)
    counts = np.minimum(counts, num_tokens).reshape(_DRAWS, ranks, -1)
    counts = _spread(counts, over, num_tokens)
    lacking = assigned - counts.sum(axis=(1, 2))
    counts = _spread(counts, np.maximum(lacking, 0), num_tokens)
    counts = num_tokens - _spread(num_tokens - counts, np.maximum(-lacking, 0), num_tokens)
    return counts[np.arange(_DRAWS), counts.sum(axis=2).argmax(axis=1)]


@cache
def uniform(experts: int, seed: int) -> npt.NDArray[np.float64]:
    """Numbers that a power law is drawn from, uniform between 0 and 1, shape (draws, experts)."""
    return np.random.default_rng([experts, seed]).random((_DRAWS, experts))


def _spread(counts: _Array, more: _Array, most: int) -> _Array:
    """The counts with more tokens, given out one by one to the expert with fewest, the ranks in turn.

    Args:
        counts: of each expert, shape (draws, ranks, experts of a rank).
        more: to give out, shape (draws,); no more than fits in.
        most: that an expert may have.

    Returns:
        Of the same shape, the experts of a rank in ascending order.
    """
    counts = np.sort(counts, axis=2)
    place = np.arange(counts.shape[2])
    while more.any():
        room = counts.shape[2] * most - counts.sum(axis=2)
        turns = np.cumsum(room > 0, axis=1)
        even, rest = np.divmod(more[:, None], np.maximum(turns[:, -1:], 1))
        given = np.where(room > 0, np.minimum(room, even + (turns <= rest)), 0)
        # All experts that get some end at one level: as many of the fewest as the tokens can bring to the next one's.
        below = np.cumsum(counts, axis=2) - counts
        raised = (place * counts - below <= given[..., None]).sum(axis=2, keepdims=True)
        total = np.take_along_axis(below + counts, raised - 1, axis=2) + given[..., None]
        level, left = np.divmod(total, raised)
        counts = np.sort(np.where(place < raised, level + (place < left), counts), axis=2)
        more = more - given.sum(axis=1)
    return counts
