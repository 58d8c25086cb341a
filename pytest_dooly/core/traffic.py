"""Traffic: requests with arrival times and lengths, and what their prompts have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pytest_dooly.errors import ConfigurationError

__all__ = ["Segment", "Traffic", "TrafficRequest"]

Segment = tuple[int, int]
"""Identity and length in tokens of a stretch of a prompt: prompts that begin with equal segments begin with equal
tokens."""


_LATEST_S = 1e9
"""Thirty years; beyond, a float cannot tell milliseconds apart."""


@dataclass(frozen=True, slots=True)
class TrafficRequest:
    """One request.

    Attributes:
        arrival_s: seconds after the beginning; for one that follows another, seconds after the end of that one.
        prompt_len: tokens of the prompt.
        output_len: tokens generated.
        segments: of the prompt, whose lengths add up to prompt_len; empty for a prompt that shares nothing with others.
        output: identity of the generated tokens, where a later prompt contains them; None where none does.
        priority: smaller is served first, where the scheduler heeds it.
        follows: place of the request that this one waits for, as a later turn of its session; None for most.
        stage: which part of the traffic it belongs to, as in a series of rates.
    """

    arrival_s: float
    prompt_len: int
    output_len: int
    segments: tuple[Segment, ...] = ()
    output: int | None = None
    priority: int = 0
    follows: int | None = None
    stage: int = 0


@dataclass(frozen=True)
class Traffic:
    """Requests in the order of their arrival.

    Attributes:
        requests: those that follow another stand behind it; all others ascend in time.
        concurrency: most of them that the client has under way at once, the others wait at the client (`vllm bench
            serve --max-concurrency`); None for as many as arrive.
        rates: requests per second of each stage, as they were asked for; empty where times say it all.
    """

    requests: Sequence[TrafficRequest]
    concurrency: int | None = None
    rates: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.requests:
            raise ConfigurationError("traffic needs at least one request")
        if self.concurrency is not None and self.concurrency < 1:
            raise ConfigurationError(f"concurrency must be at least 1, got {self.concurrency}")
        before_s = 0.0
        for place, request in enumerate(self.requests):
            _check(place, request)
            if request.follows is None:
                if request.arrival_s < before_s:
                    raise ConfigurationError(
                        f"requests must be in the order of arrival: number {place} arrives at {request.arrival_s:g} s, "
                        f"after one at {before_s:g} s"
                    )
                before_s = request.arrival_s

    @property
    def num_stages(self) -> int:
        """Parts of the traffic."""
        return 1 + max(request.stage for request in self.requests)

    def longest(self) -> int:
        """Most tokens of a request, prompt and output."""
        return max(request.prompt_len + request.output_len for request in self.requests)

    @property
    def mean_len(self) -> int:
        """Tokens of a request half-way through its output, in the mean."""
        return round(sum(each.prompt_len + each.output_len / 2 for each in self.requests) / len(self.requests))

    @property
    def num_at_once(self) -> int:
        """Requests, where all are sent at once; 0 where some come later, by their own time or as others end."""
        later = any(request.arrival_s or request.follows is not None for request in self.requests)
        capped = self.concurrency is not None and self.concurrency < len(self.requests)
        return 0 if later or capped else len(self.requests)

    @property
    def offered_rate(self) -> float:
        """Requests per second from the beginning to the last one that has a time; infinite for all at once."""
        last_s = max(request.arrival_s for request in self.requests if request.follows is None)
        return len(self.requests) / last_s if last_s else math.inf

    def stretched(self, factor: float) -> Traffic:
        """The same requests at so many times their times: what comes of the same chance at another rate."""
        requests = [r if r.follows is not None else replace(r, arrival_s=factor * r.arrival_s) for r in self.requests]
        return replace(self, requests=requests, rates=tuple(rate / factor for rate in self.rates))

    def repeated(self, times: int) -> Traffic:
        """The same requests so many times, one time after the other, at the same rate.

        Each time they are those of others: what prompts have in common they have in common with those of their own
        time, so that prefixes are found cached as often as among the requests themselves.

        Args:
            times: at least 1.
        """
        number = len(self.requests)
        last_s = max(request.arrival_s for request in self.requests if request.follows is None)
        named = [identity for request in self.requests for identity, _ in request.segments]
        named += [request.output for request in self.requests if request.output is not None]
        new = 1 + max(named, default=0) - min(named, default=0)
        requests = [
            _later(request, turn * last_s, turn * number, turn * new)
            for turn in range(times)
            for request in self.requests
        ]
        return replace(self, requests=requests)

    def capped(self, concurrency: int | None) -> Traffic:
        """The same requests with at most so many under way at once."""
        return replace(self, concurrency=concurrency)


def _later(request: TrafficRequest, by_s: float, places: int, identities: int) -> TrafficRequest:
    """The request so much later, behind so many others, with identities that are so much larger."""
    if not places:
        return request
    return replace(
        request,
        arrival_s=request.arrival_s + (by_s if request.follows is None else 0.0),
        segments=tuple((identity + identities, tokens) for identity, tokens in request.segments),
        output=None if request.output is None else request.output + identities,
        follows=None if request.follows is None else request.follows + places,
    )


def _check(place: int, request: TrafficRequest) -> None:
    if not 0 <= request.arrival_s <= _LATEST_S:
        raise ConfigurationError(
            f"request {place} arrives at {request.arrival_s:g} s: name a time from 0 to {_LATEST_S:g} s"
        )
    if request.prompt_len < 1 or request.output_len < 1:
        raise ConfigurationError(
            f"request {place} has {request.prompt_len} tokens of prompt and {request.output_len} of output: "
            "each needs at least 1"
        )
    if request.segments and sum(tokens for _, tokens in request.segments) != request.prompt_len:
        raise ConfigurationError(f"request {place}: its segments do not add up to its {request.prompt_len} tokens")
    if request.follows is not None and not 0 <= request.follows < place:
        raise ConfigurationError(f"request {place} follows number {request.follows}, which does not stand before it")
