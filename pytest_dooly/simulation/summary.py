"""What a simulation comes to, by the names, units and keys of `vllm bench serve --save-result`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_dooly.errors import ConfigurationError
from pytest_dooly.simulation.clock import Simulated

__all__ = ["PERCENTILES", "Slo", "overloaded", "summary"]

Array = npt.NDArray[np.float64]

PERCENTILES = (50, 90, 95, 99)
"""That are told of every metric."""

_FALLING_BEHIND = 0.9
"""Share of the rate of arrival that must be served while requests arrive; less, and the queue grows without end."""

_FEWEST = 50
"""Requests from which on a rate is worth the name."""

_UNITS = {"ms": 1e-3, "s": 1.0}


@dataclass(frozen=True)
class Slo:
    """What a request must meet to count as good, in seconds; None for no bound.

    Attributes:
        ttft_s: time to first token.
        tpot_s: time per output token.
        e2el_s: end-to-end latency.
    """

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2el_s: float | None = None

    @classmethod
    def parse(cls, text: str) -> Slo:
        """Bounds written as `ttft:300ms,tpot:40ms,e2el:10s`.

        Raises:
            ConfigurationError: a bound cannot be read; names it.
        """
        bounds: dict[str, float] = {}
        for part in text.split(","):
            name, _, value = part.strip().partition(":")
            unit = "ms" if value.endswith("ms") else "s"
            try:
                seconds = float(value.removesuffix(unit)) * _UNITS[unit]
            except ValueError:
                seconds = -1.0
            if name not in ("ttft", "tpot", "e2el") or not 0 < seconds < float("inf"):
                raise ConfigurationError(f"cannot read {part!r} of the SLO: write it as ttft:300ms,tpot:40ms,e2el:10s")
            bounds[f"{name}_s"] = seconds
        return cls(**bounds)

    def met(self, simulated: Simulated) -> npt.NDArray[np.bool_]:
        """Which requests meet it, shape (requests,); one that generates a single token has no TPOT to miss."""
        good = np.ones(len(simulated.sent_s), dtype=bool)
        pairs = (self.ttft_s, simulated.ttft_s), (self.tpot_s, simulated.tpot_s), (self.e2el_s, simulated.latency_s)
        for bound_s, values_s in pairs:
            if bound_s is not None:
                good &= ~(values_s > bound_s)
        return good


def summary(simulated: Simulated, *, slo: Slo | None = None, of: npt.NDArray[np.bool_] | None = None) -> dict[str, Any]:
    """The document of a simulation, or of some of its requests; latencies in ms, as vLLM's benchmark writes them.

    Args:
        simulated: the simulation.
        slo: for the goodput.
        of: which requests, shape (requests,); all where it is None.
    """
    chosen = np.ones(len(simulated.sent_s), dtype=bool) if of is None else of
    requests = [request for request, wanted in zip(simulated.traffic.requests, chosen, strict=True) if wanted]
    prompts, outputs = (sum(getattr(r, name) for r in requests) for name in ("prompt_len", "output_len"))
    duration_s = float(simulated.last_s[chosen].max() - simulated.sent_s[chosen].min()) or 1e-9
    document: dict[str, Any] = {
        "duration": duration_s,
        "completed": len(requests),
        "failed": 0,
        "total_input_tokens": prompts,
        "total_output_tokens": outputs,
        "request_throughput": len(requests) / duration_s,
        "request_goodput": None if slo is None else float((slo.met(simulated) & chosen).sum()) / duration_s,
        "output_throughput": outputs / duration_s,
        "total_token_throughput": (prompts + outputs) / duration_s,
        "max_concurrent_requests": _most_at_once(simulated.sent_s[chosen], simulated.last_s[chosen]),
        "prefix_cache_hit_rate": float(simulated.cached_tokens[chosen].sum()) / prompts,
        "num_preemptions": int(simulated.preemptions[chosen].sum()),
    }
    document |= _statistics("ttft", simulated.ttft_s[chosen]) | _statistics("tpot", simulated.tpot_s[chosen])
    if of is None:
        document |= _weighted("itl", *_intervals(simulated))
    return document | _statistics("e2el", simulated.latency_s[chosen])


def overloaded(simulated: Simulated) -> float | None:
    """Requests a second that are served where more arrive than can be, for good; None where the engine keeps up.

    While requests arrive, one must end for one that comes, but for those under way: the second half of the arrivals is
    looked at, when those are there already.
    """
    if simulated.traffic.concurrency is not None or len(simulated.sent_s) < _FEWEST:
        return None
    begin_s, end_s = np.median(simulated.sent_s), simulated.sent_s.max()
    arrived = float((simulated.sent_s > begin_s).sum())
    ended = float(((simulated.last_s > begin_s) & (simulated.last_s <= end_s)).sum())
    if end_s <= begin_s or ended >= _FALLING_BEHIND * arrived:
        return None
    return float(ended / (end_s - begin_s))


def _statistics(name: str, values_s: Array) -> dict[str, float | None]:
    known = values_s[~np.isnan(values_s)] * 1e3
    names = ("mean", "median", "std", *(f"p{p}" for p in PERCENTILES))
    if not len(known):
        return {f"{each}_{name}_ms": None for each in names}
    values = (known.mean(), np.median(known), known.std(), *np.percentile(known, PERCENTILES))
    return {f"{each}_{name}_ms": float(value) for each, value in zip(names, values, strict=True)}


def _weighted(name: str, values_s: Array, weights: Array) -> dict[str, float | None]:
    """Statistics of values that occur so many times each."""
    if not weights.sum():
        return _statistics(name, np.empty(0))
    order = np.argsort(values_s)
    ascending, share = values_s[order] * 1e3, np.cumsum(weights[order]) / weights.sum()
    mean = float(np.average(values_s, weights=weights)) * 1e3
    spread = float(np.sqrt(np.average((values_s * 1e3 - mean) ** 2, weights=weights)))
    places = np.minimum(np.searchsorted(share, np.array([50, *PERCENTILES]) / 100), len(ascending) - 1)
    median, *percentiles = ascending[places]
    names = ("mean", "median", "std", *(f"p{p}" for p in PERCENTILES))
    values: Sequence[float] = (mean, median, spread, *percentiles)
    return {f"{each}_{name}_ms": float(value) for each, value in zip(names, values, strict=True)}


def _intervals(simulated: Simulated) -> tuple[Array, Array]:
    """Time between the ends of consecutive steps, and how many requests got a further token in the later one."""
    ends_s = np.array([step.begin_s + step.latency_s for step in simulated.steps])
    decodes = np.array([step.num_decodes for step in simulated.steps], dtype=np.float64)
    # Where the steps of the next replica follow, their time starts anew.
    onwards = np.diff(ends_s) > 0
    return np.diff(ends_s)[onwards], decodes[1:][onwards]


def _most_at_once(begin_s: Array, end_s: Array) -> int:
    times = np.concatenate([begin_s, end_s])
    steps = np.concatenate([np.ones(len(begin_s)), -np.ones(len(end_s))])
    # Of equal times ends come first: a seat is free before it is taken again.
    order = np.lexsort((steps, times))
    return int(np.cumsum(steps[order]).max())
