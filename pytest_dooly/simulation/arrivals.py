"""When requests arrive: constant, Poisson and gamma gaps, at one rate or at several one after the other."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pytest_dooly.errors import ConfigurationError

__all__ = ["AT_ONCE", "MOST_REQUESTS", "Arrivals", "RateStage"]

Times = npt.NDArray[np.float64]
Stages = npt.NDArray[np.int64]

MOST_REQUESTS = 10_000_000
"""Of one traffic; each takes some 200 bytes of memory."""

_MOST_CV = 100
"""Beyond, nearly all gaps are too short for a float, and one is as long as the whole."""

_STAGE = re.compile(r"([^@]+)(?:@([^@]+))?")


@dataclass(frozen=True)
class RateStage:
    """A time of one rate.

    Attributes:
        rate: requests per second; infinite for all at once, 0 for a pause.
        duration_s: how long it lasts; None for as long as there are requests.
    """

    rate: float
    duration_s: float | None = None

    def __post_init__(self) -> None:
        if math.isnan(self.rate) or self.rate < 0:
            raise ConfigurationError(f"a rate must be a number of requests per second that is not negative: {self}")
        if self.duration_s is None:
            if self.rate == 0:
                raise ConfigurationError("a rate of 0 needs its seconds, as in 0@60")
            return
        if not 0 < self.duration_s < math.inf:
            raise ConfigurationError(f"a stage must last a number of seconds above 0, got {self}")
        if math.isinf(self.rate):
            raise ConfigurationError(f"a stage that lasts {self.duration_s:g} s needs a rate that is not infinite")
        if self.rate * self.duration_s > MOST_REQUESTS:
            raise ConfigurationError(f"the stage {self} has more than {MOST_REQUESTS:,} requests: name fewer")
        if self.rate and not self.num_requests:
            raise ConfigurationError(f"the stage {self} ends before its first request: name more seconds")

    def __str__(self) -> str:
        return f"{self.rate:g}" if self.duration_s is None else f"{self.rate:g}@{self.duration_s:g}"

    @property
    def num_requests(self) -> int:
        """Requests of a stage that lasts its seconds: as many as its rate makes whole ones."""
        assert self.duration_s is not None
        return math.floor(self.rate * self.duration_s * (1 + 1e-12))  # 0.29 * 100 is a little less than 29


@dataclass(frozen=True)
class Arrivals:
    """Arrival times as `vllm bench serve` makes them.

    Gaps are gamma distributed with shape `burstiness` and mean 1 / rate, each request comes after its gap, and all
    times are stretched so that n requests at a rate take n / rate seconds, the last one at the end (`get_request` in
    `vllm/benchmarks/serve.py` of vLLM 0.32.0; the same distribution from another generator, so not the same numbers).
    Each stage is such a run, of as many requests as its rate gives in its seconds, and begins when the one before has
    lasted its own: there are no stages in vLLM, inference-perf normalises each of its stages in this way too.

    Attributes:
        stages: one after the other; only the last may have no end.
        burstiness: shape of the gamma distribution; 1 for Poisson, below for bursts, infinite for equal gaps. The
            coefficient of variation is burstiness ** -0.5.
    """

    stages: tuple[RateStage, ...]
    burstiness: float = 1.0

    def __post_init__(self) -> None:
        if not self.stages:
            raise ConfigurationError("arrivals need a rate, as in 8 or 5@600,10@600")
        for stage in self.stages[:-1]:
            if stage.duration_s is None:
                raise ConfigurationError(f"the rate {stage} is not the last one: name its seconds, as in {stage}@600")
        if not any(stage.rate for stage in self.stages):
            raise ConfigurationError(f"arrivals at {self.rates} have no request: name a rate above 0")
        if not self.burstiness >= _MOST_CV**-2:
            raise ConfigurationError(f"burstiness must be a number from {_MOST_CV**-2:g}, got {self.burstiness:g}")

    @classmethod
    def parse(cls, rates: str, kind: str | None = None) -> Arrivals:
        """The arrivals written as rates and a kind of gaps.

        Args:
            rates: requests per second, as in `8` or `inf`, or with the seconds that each lasts, as in `5@600,10@600`.
            kind: `constant`, `poisson`, `gamma:CV` with the gaps' coefficient of variation (standard deviation /
                mean), or `burstiness:SHAPE` as `vllm bench serve --burstiness` has it, which is CV ** -2; None for
                `poisson`.

        Raises:
            ConfigurationError: one of them is not of that form.
        """
        stages = tuple(_stage(part, rates) for part in rates.split(","))
        return cls(stages, _burstiness("poisson" if kind is None else kind.strip()))

    @property
    def rates(self) -> str:
        """The rates, as they are written."""
        return ",".join(map(str, self.stages))

    @property
    def each_rate(self) -> tuple[float, ...]:
        """Requests per second of each stage."""
        return tuple(stage.rate for stage in self.stages)

    @property
    def duration_s(self) -> float | None:
        """Seconds that all stages last; None where the last has no end."""
        return _total([stage.duration_s for stage in self.stages])

    def draw(
        self, rng: np.random.Generator, *, num_requests: int | None = None, duration_s: float | None = None
    ) -> tuple[Times, Stages]:
        """Times of arrival in seconds, ascending, and the stage that each belongs to.

        Args:
            rng: where chance comes from; constant rates take nothing from it.
            num_requests: most requests.
            duration_s: most seconds; the last stage without an end lasts until then.

        Returns:
            Two arrays of shape (requests,).

        Raises:
            ConfigurationError: neither ends the traffic, or it has no request.
        """
        most = MOST_REQUESTS if num_requests is None else num_requests
        if not 1 <= most <= MOST_REQUESTS:
            raise ConfigurationError(f"name a number of requests from 1 to {MOST_REQUESTS:,}, got {most:,}")
        if duration_s is not None and not duration_s > 0:
            raise ConfigurationError(f"name a duration above 0 seconds, got {duration_s:g}")
        times: list[Times] = []
        numbers: list[int] = []
        start_s = 0.0
        for stage in self._ending(num_requests, duration_s):
            left = most - sum(numbers)
            numbers.append(left if stage.duration_s is None else min(left, stage.num_requests))
            times.append(start_s + self._gaps(rng, stage, left)[: numbers[-1]])
            start_s += stage.duration_s or 0.0
        all_s = np.maximum.accumulate(np.concatenate(times))  # the last of a stage may end an ulp after it
        end_s = math.inf if duration_s is None else duration_s * (1 + 1e-12)
        within = slice(0, int(np.searchsorted(all_s, end_s, side="right")))
        if not len(all_s[within]):
            raise ConfigurationError(f"no request arrives within {duration_s:g} s at {self.rates} requests per second")
        return all_s[within], np.repeat(np.arange(len(numbers)), numbers)[within]

    def _ending(self, num_requests: int | None, duration_s: float | None) -> Iterator[RateStage]:
        """The stages, of which one without an end has one where the duration sets it."""
        *before, last = self.stages
        yield from before
        if last.duration_s is not None or (duration_s is None and num_requests is not None):
            yield last
            return
        if math.isinf(last.rate):
            if num_requests is None:
                raise ConfigurationError("requests that arrive all at once need a number: name how many there are")
            yield last
            return
        if duration_s is None:
            raise ConfigurationError(
                f"arrivals at {self.rates} requests per second have no end: name a --duration or --requests"
            )
        left_s = duration_s - sum(stage.duration_s or 0.0 for stage in before)
        if left_s > 0 or not before:
            yield replace(last, duration_s=left_s)

    def _gaps(self, rng: np.random.Generator, stage: RateStage, left: int) -> Times:
        """Times of a stage's requests since it began, those beyond the most among them."""
        if math.isinf(stage.rate):
            return np.zeros(left)
        number = left if stage.duration_s is None else stage.num_requests
        if math.isinf(self.burstiness):
            return np.arange(1, number + 1) / stage.rate
        arrived = np.cumsum(rng.gamma(self.burstiness, size=number))
        if not number or not arrived[-1]:
            return np.zeros(number)
        return arrived * (number / stage.rate / arrived[-1])


AT_ONCE = Arrivals((RateStage(math.inf),))
"""All requests at the beginning; with a bounded concurrency, a closed loop."""


def _total(durations_s: list[float | None]) -> float | None:
    known = [duration for duration in durations_s if duration is not None]
    return sum(known) if len(known) == len(durations_s) else None


def _stage(part: str, rates: str) -> RateStage:
    match = _STAGE.fullmatch(part.strip())
    try:
        if match is not None:
            rate, duration_s = match.groups()
            return RateStage(float(rate), None if duration_s is None else float(duration_s))
    except ValueError:
        pass
    raise ConfigurationError(
        f"cannot read {rates!r} as rates: write requests per second, as in 8 or inf, or with seconds for each, as in "
        "5@600,10@600"
    )


def _burstiness(kind: str) -> float:
    law, _, value = kind.partition(":")
    if kind in ("constant", "poisson"):
        return math.inf if kind == "constant" else 1.0
    try:
        number = float(value) if law in ("gamma", "burstiness") else math.nan
    except ValueError:
        number = math.nan
    if not (0 <= number <= _MOST_CV if law == "gamma" else number > 0):
        raise ConfigurationError(
            f"cannot read {kind!r} as a kind of arrivals: write constant, poisson, gamma:CV with a coefficient of "
            f"variation up to {_MOST_CV}, or burstiness:SHAPE"
        )
    if law == "burstiness":
        return number
    return float(number**-2) if number > 1e-6 else math.inf  # below, gaps are equal to six digits
