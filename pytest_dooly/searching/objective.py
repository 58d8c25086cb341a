"""What a deployment must meet: bounds on statistics of TTFT, TPOT and latency over all requests."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pytest_dooly.core.document import Document
from pytest_dooly.core.duration import DURATION, duration_s
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.scheduling.clock import Simulated

__all__ = ["Bound", "Latency", "Objective"]

Latency = Literal["ttft", "tpot", "e2el"]

_BOUND = re.compile(rf"(ttft|tpot|e2el)(?:_(mean|p\d{{1,2}}(?:\.\d+)?))?:({DURATION})")

_TAIL = 99.0
"""Percentile that is meant where none is named."""


@dataclass(frozen=True)
class Bound(Document):
    """One statistic that must not be larger.

    Attributes:
        latency: of a request.
        percentile: over all requests, above 0 and below 100; None for their mean.
        bound_s: in seconds.
    """

    latency: Latency
    percentile: float | None
    bound_s: float

    @property
    def name(self) -> str:
        """As it is written: `ttft_p99`, `e2el_mean`."""
        return f"{self.latency}_{'mean' if self.percentile is None else f'p{self.percentile:g}'}"

    def __str__(self) -> str:
        return f"{self.name}:{self.bound_s * 1e3:.12g}ms"

    def value_s(self, latencies_s: Mapping[Latency, np.ndarray]) -> float:
        """The statistic in seconds; 0 where no request has the latency, as TPOT where all generate one token."""
        values_s = latencies_s[self.latency]
        known_s = values_s[~np.isnan(values_s)]
        if not len(known_s):
            return 0.0
        return float(known_s.mean() if self.percentile is None else np.percentile(known_s, self.percentile))


@dataclass(frozen=True)
class Objective(Document):
    """Bounds, all of which must be met.

    Attributes:
        bounds: at least one, each statistic once.
    """

    bounds: tuple[Bound, ...]

    @classmethod
    def parse(cls, text: str) -> Objective:
        """Bounds written as `ttft_p99:500ms,tpot_p90:40ms,e2el_mean:10s`; without a statistic, p99 is meant.

        Raises:
            ConfigurationError: one cannot be read, or bounds a statistic again; names it.
        """
        bounds: dict[str, Bound] = {}
        for part in text.split(","):
            match = _BOUND.fullmatch(part.strip())
            percentile = _percentile(match[2]) if match else 0.0
            bound_s = duration_s(match[3]) if match else None
            if match is None or percentile == 0 or bound_s is None:
                raise ConfigurationError(
                    f"cannot read {part.strip()!r} of the SLO: write it as ttft_p99:500ms,tpot_p90:40ms,e2el_mean:10s "
                    "(ttft, tpot or e2el; mean or a percentile; ms or s)"
                )
            bound = Bound(match[1], percentile, bound_s)  # type: ignore[arg-type]
            if bound.name in bounds:
                raise ConfigurationError(
                    f"the SLO {text!r} bounds {bound.name} twice: name one bound of each statistic"
                )
            bounds[bound.name] = bound
        return cls(tuple(bounds.values()))

    def __str__(self) -> str:
        return ",".join(map(str, self.bounds))

    def ratios(self, simulated: Simulated) -> tuple[float, ...]:
        """Each bound's statistic as a multiple of the bound: at most 1 where it is met."""
        return self.ratios_of(
            {"ttft": simulated.ttft_s, "tpot": simulated.tpot_s, "e2el": simulated.latency_s},
        )

    def ratios_of(self, latencies_s: Mapping[Latency, np.ndarray]) -> tuple[float, ...]:
        """The same of latencies in seconds, each of shape (requests,)."""
        return tuple(bound.value_s(latencies_s) / bound.bound_s for bound in self.bounds)


def _percentile(statistic: str | None) -> float | None:
    if statistic == "mean":
        return None
    return _TAIL if statistic is None else float(statistic[1:])
