"""What a simulation comes to, by the names, units and keys of `vllm bench serve --save-result`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_dooly.core.duration import duration_s
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.scheduling.clock import Simulated

__all__ = ["PERCENTILES", "Slo", "overloaded", "summary"]

Array = npt.NDArray[np.float64]

PERCENTILES = (50, 90, 95, 99)
"""That are told of every metric."""

_GROWTH, _QUEUED, _FEWEST = 1.5, 5.0, 20
"""How much longer the last quarter waits than the second, and than those that wait least, where a queue grows; requests
from which on that is looked at. Under a steady load both quarters are alike; where a queue grows evenly, their ratio
is 2.3."""


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
        """Bounds written as `ttft:300ms,tpot:40ms,e2el:10s`, each with its unit.

        Raises:
            ConfigurationError: a bound cannot be read; names it.
        """
        bounds: dict[str, float] = {}
        for part in text.split(","):
            name, _, value = part.strip().partition(":")
            seconds = duration_s(value)
            if name not in ("ttft", "tpot", "e2el") or seconds is None:
                why = "; it bounds each request, where dooly search bounds statistics" if "_" in name else ""
                raise ConfigurationError(
                    f"cannot read {part!r} of the SLO: write it as ttft:300ms,tpot:40ms,e2el:10s (ms or s){why}"
                )
            if f"{name}_s" in bounds:
                raise ConfigurationError(f"the SLO {text!r} bounds {name} twice: name one bound of each")
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


def summary(simulated: Simulated, *, slo: Slo | None = None, stage: int | None = None) -> dict[str, Any]:
    """The document of a simulation, or of one of its stages; latencies in ms, as vLLM's benchmark writes them.

    Args:
        simulated: the simulation.
        slo: for the goodput.
        stage: whose requests; all where it is None.
    """
    stages = np.array([request.stage for request in simulated.traffic.requests])
    chosen = np.ones(len(stages), dtype=bool) if stage is None else stages == stage
    requests = [request for request, wanted in zip(simulated.traffic.requests, chosen, strict=True) if wanted]
    prompts, outputs = (sum(getattr(r, name) for r in requests) for name in ("prompt_len", "output_len"))
    duration_s = float(simulated.last_s[chosen].max() - simulated.sent_s[chosen].min()) or 1e-9
    document: dict[str, Any] = {
        "num_prompts": len(requests),
        "request_rate": _asked_rate(simulated.traffic.rates, stage),
        "max_concurrency": simulated.traffic.concurrency,
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
    document |= _weighted("itl", *_intervals(simulated, stage))
    return document | _statistics("e2el", simulated.latency_s[chosen])


def overloaded(simulated: Simulated) -> float | None:
    """Requests a second that are served where more arrive, so that the queue grows; None where the engine keeps up.

    A queue that grows shows in the time to first token: that of the last quarter of the requests is well above that of
    the second quarter, and many times what a request waits that meets none.
    """
    ttft_s = simulated.ttft_s[np.argsort(simulated.sent_s, kind="stable")]
    if simulated.traffic.concurrency is not None or len(ttft_s) < _FEWEST or np.ptp(simulated.sent_s) == 0:
        return None
    quarter = len(ttft_s) // 4
    earlier_s, later_s = np.median(ttft_s[quarter : 2 * quarter]), np.median(ttft_s[-quarter:])
    if later_s < _GROWTH * earlier_s or later_s < _QUEUED * np.percentile(ttft_s, 5):
        return None
    return len(ttft_s) / float(simulated.last_s.max() - simulated.sent_s.min())


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


def _asked_rate(rates: Sequence[float], stage: int | None) -> float | str | None:
    """Requests per second as vLLM's benchmark writes them; None where nobody named them, or several of them."""
    if not rates or (stage is None and len(rates) > 1):
        return None
    rate = rates[stage or 0]
    return "inf" if np.isinf(rate) else rate


def _intervals(simulated: Simulated, stage: int | None) -> tuple[Array, Array]:
    """Time between the ends of consecutive steps, and how many requests got a further token in the later one.

    Args:
        simulated: the simulation.
        stage: whose requests count; all where it is None.
    """
    begins_s = np.array([step.begin_s for step in simulated.steps])
    ends_s = begins_s + [step.latency_s for step in simulated.steps]
    if stage is None or not simulated.stage_decodes:
        decodes = np.array([step.num_decodes for step in simulated.steps], dtype=np.float64)
    else:
        decodes = np.array(simulated.stage_decodes, dtype=np.float64)[:, stage]
    # Neither idle time nor the beginning of the next replica's steps is anybody's wait.
    onwards = np.abs(begins_s[1:] - ends_s[:-1]) <= 1e-9 * ends_s[:-1]
    return np.diff(ends_s)[onwards], decodes[1:][onwards]


def _most_at_once(begin_s: Array, end_s: Array) -> int:
    times = np.concatenate([begin_s, end_s])
    steps = np.concatenate([np.ones(len(begin_s)), -np.ones(len(end_s))])
    # Of equal times ends come first: a seat is free before it is taken again.
    order = np.lexsort((steps, times))
    return int(np.cumsum(steps[order]).max())
