"""How a router spreads tokens over experts, and what of it a step is expected to meet.

Each token goes to `top_k` distinct experts, drawn one after the other in proportion to their shares (Plackett and Luce;
the same as the top k of log share plus Gumbel noise, which is what a softmax router with random logits does). Tokens
are independent of each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from pytest_dooly.core.batch import Routing
from pytest_dooly.errors import ConfigurationError

__all__ = ["TRAINED", "UNIFORM", "RoutingDistribution", "busiest_between"]

Array = npt.NDArray[np.float64]

_NODES = 400
"""Of the quadrature over a token's waiting time: inclusion probabilities are then right to six digits."""


_MOST_ALPHA = 100
"""Beyond, the last of hundreds of experts has no share that a float can hold; long before, one has all tokens."""


@dataclass(frozen=True)
class RoutingDistribution:
    """How likely each expert is, relative to the others; uniform by default.

    Attributes:
        alpha: the expert of rank r has a share of r ** -alpha (Zipf); 0 is uniform.
        shares: of each expert, in place of a law; they need not add up to 1.
    """

    alpha: float = 0.0
    shares: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= _MOST_ALPHA:
            raise ConfigurationError(f"zipf needs an exponent between 0 and {_MOST_ALPHA}, got {self.alpha}")
        if self.shares is not None and not all(0 < share < float("inf") for share in self.shares):
            raise ConfigurationError(f"the share of an expert must be a number above 0, got {self.shares}")

    @classmethod
    def parse(cls, text: str) -> RoutingDistribution:
        """The distribution written as `trained`, `uniform`, `zipf:ALPHA` or one share an expert (`4,2,1,1`).

        Raises:
            ConfigurationError: the text is not of that form.
        """
        law, _, alpha = text.strip().partition(":")
        try:
            if law in _NAMED and not alpha:
                return cls(alpha=_NAMED[law])
            if law == "zipf":
                return cls(alpha=float(alpha))
            return cls(shares=tuple(float(share) for share in text.split(",")))
        except ValueError:
            raise ConfigurationError(
                f"cannot read {text!r} as a routing: "
                "write trained, uniform, zipf:ALPHA or a share for each expert, as in 4,2,1"
            ) from None

    def __str__(self) -> str:
        if self.shares is not None:
            return ",".join(f"{share:g}" for share in self.shares)
        return f"zipf:{self.alpha:g}" if self.alpha else "uniform"

    def expected(self, num_tokens: int, experts: int, top_k: int) -> Routing:
        """The routing that a step is expected to meet, in whole experts and tokens.

        Args:
            num_tokens: of the step, at least 1.
            experts: number of experts.
            top_k: distinct experts that each token goes to.

        Raises:
            ConfigurationError: there are fewer experts than top_k, or not as many as shares.
        """
        activated, busiest = self.expectations(np.array([num_tokens]), experts, top_k)
        return Routing(round(float(activated[0])), round(float(busiest[0])))

    def expectations(self, num_tokens: npt.ArrayLike, experts: int, top_k: int) -> tuple[Array, Array]:
        """Expected number of activated experts, and of tokens at the busiest one, for each number of tokens.

        The first is exact: an expert stays idle with probability (1 - p) ** num_tokens. The second takes the experts
        for independent, with variances that make up for their counts' adding up to num_tokens * top_k; it is within
        2 % of simulation, or 0.15 tokens where a step has few.

        Args:
            num_tokens: shape (steps,), each at least 1.
            experts: number of experts.
            top_k: distinct experts that each token goes to.

        Returns:
            Two arrays of shape (steps,).

        Raises:
            ConfigurationError: there are fewer experts than top_k, or not as many as shares.
        """
        if not 1 <= top_k <= experts:
            raise ConfigurationError(f"a token cannot go to {top_k} distinct experts of {experts}")
        if self.shares is not None and len(self.shares) != experts:
            raise ConfigurationError(f"the routing {self} has {len(self.shares)} shares for {experts} experts")
        sizes, places = np.unique(np.asarray(num_tokens, dtype=np.int64), return_inverse=True)
        found = [_expectation(self, int(size), experts, top_k) for size in sizes]
        activated, busiest = np.array(found, dtype=np.float64).reshape(-1, 2).T
        return activated[places], busiest[places]

    def inclusion(self, experts: int, top_k: int) -> Array:
        """Probability that a token goes to each expert, shape (experts,); they add up to top_k."""
        return np.array(_inclusion(self, experts, top_k))

    def _weights(self, experts: int) -> Array:
        law = np.arange(1, experts + 1, dtype=np.float64) ** -self.alpha
        weights = law if self.shares is None else np.array(self.shares)
        return weights / weights.sum()


UNIFORM = RoutingDistribution()
"""What a router with random weights does."""

TRAINED = RoutingDistribution(alpha=0.8)
"""What the router of a trained mixture does: TensorRT-LLM's benchmark of mixtures takes this law and exponent to match
the traces that its authors observed (pull request 19148, September 2026)."""

_NAMED = {"uniform": UNIFORM.alpha, "trained": TRAINED.alpha}


def busiest_between(num_tokens: int, top_k: int, activated: int) -> tuple[int, int]:
    """Fewest and most tokens that the busiest of some activated experts can have: all alike, or every token it can.

    Args:
        num_tokens: of the step.
        top_k: distinct experts that each token goes to.
        activated: experts that get at least one token.
    """
    assigned = num_tokens * top_k
    even = -(-assigned // activated)
    return even, max(even, min(num_tokens, assigned - activated + 1))


@lru_cache(maxsize=64)
def _inclusion(distribution: RoutingDistribution, experts: int, top_k: int) -> tuple[float, ...]:
    """Inclusion probabilities, by exponential clocks: expert e rings at rate w_e, and the first top_k are taken.

    Expert e is taken when it rings at time t before top_k others have: the integral over t of its density times the
    probability that at most top_k - 1 of the others have rung, a Poisson-binomial that is built up expert by expert.
    Source: Efraimidis and Spirakis 2006, weighted sampling without replacement by exponential keys.
    """
    weights = distribution._weights(experts)
    if np.allclose(weights, weights[0]) or top_k == experts:
        return (top_k / experts,) * experts
    # x = log t, by the trapezoidal rule: the integrand vanishes at both ends, where the rule converges fastest.
    log_t, step = np.linspace(np.log(1e-9), np.log(60 / weights.min()), _NODES, retstep=True)
    rung = -np.expm1(-np.outer(weights, np.exp(log_t)))  # (experts, nodes)
    after = np.zeros((experts + 1, top_k, len(log_t)))  # [e]: of the experts from e on, how many have rung
    after[experts, 0] = 1
    for e in range(experts - 1, -1, -1):
        after[e] = _one_more(after[e + 1], rung[e])
    before = np.zeros_like(after[0])
    before[0] = 1
    taken = np.empty(experts)
    for e in range(experts):
        at_most = np.cumsum(after[e + 1], axis=0)[::-1]  # [i]: at most top_k - 1 - i of those after
        others = (before * at_most).sum(axis=0)
        density = weights[e] * np.exp(log_t) * (1 - rung[e])
        taken[e] = (density * others).sum() * step
        before = _one_more(before, rung[e])
    return tuple(map(float, taken * (top_k / taken.sum())))


def _one_more(counts: Array, rung: Array) -> Array:
    """Distribution of how many have rung, cut off at top_k, with one expert more; shape (top_k, nodes)."""
    more = counts * (1 - rung)
    more[1:] += counts[:-1] * rung
    return more


@lru_cache(maxsize=65_536)
def _expectation(distribution: RoutingDistribution, num_tokens: int, experts: int, top_k: int) -> tuple[float, float]:
    """Expected number of activated experts and of the busiest one's tokens."""
    taken = np.array(_inclusion(distribution, experts, top_k))
    activated = float((1 - (1 - np.minimum(taken, 1)) ** num_tokens).sum())
    values, times = np.unique(np.round(taken, 12), return_counts=True)
    return activated, _busiest(num_tokens, values, times, top_k)


def _busiest(num_tokens: int, taken: Array, times: npt.NDArray[np.intp], top_k: int) -> float:
    """Expected largest of the experts' counts: the sum over m of the probability that it exceeds m.

    Counts that must add up differ from each other by more than independent ones of the same variance. Independent
    counts of variance c, where c - c ** 2 / sum(c) is the true one, have differences as the true ones have (Hájek
    1964); by Sudakov and Fernique the differences are what the expected largest depends on.

    Args:
        num_tokens: of the step.
        taken: distinct inclusion probabilities, shape (values,).
        times: how many experts have each, shape (values,).
        top_k: experts of a token.
    """
    variances = taken * (1 - taken)
    if times.sum() == 1 or not variances.any():
        return float(num_tokens * taken.max())
    wider = variances.copy()
    for _ in range(50):
        wider = variances + wider**2 / (wider * times).sum()
    stretch = np.sqrt(np.maximum(wider, 1e-300) / np.maximum(variances, 1e-300))
    counts = np.arange(num_tokens + 1, dtype=np.float64)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(counts[1:]))])
    log_choose = log_factorial[-1] - log_factorial - log_factorial[::-1]
    at_most = np.zeros(num_tokens)  # log of the probability that no expert exceeds m
    for p, factor, number in zip(np.clip(taken, 1e-15, 1 - 1e-15), stretch, times, strict=True):
        pmf = np.exp(log_choose + counts * np.log(p) + (num_tokens - counts) * np.log1p(-p))
        cdf = np.cumsum(pmf)
        mean = num_tokens * p
        at = mean + (counts[:-1] + 0.5 - mean) / factor - 0.5
        at_most += number * np.log(np.clip(np.interp(at, counts, cdf, left=0.0), 1e-300, 1.0))
    largest = float((1 - np.exp(at_most)).sum())
    return min(float(num_tokens), max(largest, num_tokens * float(taken.max()), 1.0))
