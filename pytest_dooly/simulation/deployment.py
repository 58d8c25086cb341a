"""A model as it is deployed: scheduler, KV cache, replicas behind a router; traffic is simulated against it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, get_args

import numpy as np

from pytest_dooly.core.traffic import Traffic, TrafficRequest
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.scheduling.clock import Server, Simulated, StepLatency, run
from pytest_dooly.scheduling.lockstep import scheduler_of
from pytest_dooly.scheduling.native import NativeScheduler
from pytest_dooly.scheduling.scheduler import Scheduled, Scheduler, SchedulerOptions

__all__ = ["Deployment", "Router"]

_FEW_MORE, _MUCH_MORE = 64, 1.5
"""By how many requests, and how many times, an engine with the same beginnings may have more under way than another.

Source: the cache-aware policy of SGLang's router, `balance_abs_threshold` and `balance_rel_threshold`, by default. A
beginning counts from half of the prompt on, its `cache_threshold`.
"""

Router = Literal["round_robin", "least_outstanding", "prefix"]
"""How requests are spread over replicas: in turn; to the one with the fewest under way, as far as arrivals tell; to the
one that has served the same beginning."""


@dataclass(frozen=True)
class Deployment:
    """Replicas of one model.

    Attributes:
        times: of the steps of one replica.
        options: how each replica schedules.
        server: around each engine.
        replicas: number of engines.
        router: how requests are spread over them.
        scheduler: makes an idle scheduler of one replica.
    """

    times: StepLatency
    options: SchedulerOptions
    server: Server = field(default_factory=Server)
    replicas: int = 1
    router: Router = "round_robin"
    scheduler: Callable[[SchedulerOptions], Scheduler] = NativeScheduler

    def __post_init__(self) -> None:
        if self.replicas < 1:
            raise ConfigurationError(f"a deployment needs at least one replica, got {self.replicas}")
        if self.router not in get_args(Router):
            raise ConfigurationError(f"unknown router {self.router!r}: name one of {', '.join(get_args(Router))}")

    def simulate(self, traffic: Traffic, *, progress: Callable[[int], None] = lambda _: None) -> list[Simulated]:
        """Each replica with its share of the traffic; a replica that gets none is left out.

        Args:
            traffic: that arrives.
            progress: called now and then with the number of requests that have ended.

        Raises:
            ConfigurationError: a request is longer than max_model_len, or a closed loop or a session meets several
                replicas, whose ends would decide over others' arrivals.
        """
        if self.replicas == 1:
            scheduler = scheduler_of(self.options, self.scheduler)
            return [run(traffic, scheduler, self.times, self.server, progress=progress)]
        if traffic.concurrency is not None or any(request.follows is not None for request in traffic.requests):
            raise ConfigurationError("several replicas take open arrivals alone: drop --concurrency and sessions")
        shares: list[list[TrafficRequest]] = [[] for _ in range(self.replicas)]
        for request, replica in zip(traffic.requests, self._routed(traffic.requests), strict=True):
            shares[replica].append(request)
        simulated: list[Simulated] = []
        for replica, share in enumerate(shares):
            if not share:
                continue
            done = sum(len(each.sent_s) for each in simulated)
            scheduler, part = scheduler_of(self.options, self.scheduler), replace(traffic, requests=tuple(share))
            told = partial(_told, progress, done)
            simulated.append(run(part, scheduler, self.times, self.server, engine=replica, progress=told))
        return simulated

    def _routed(self, requests: Sequence[TrafficRequest]) -> Iterator[int]:
        """The replica of each request."""
        if self.router == "round_robin":
            yield from (place % self.replicas for place in range(len(requests)))
            return
        homes: dict[int, int] = {}
        until_s: list[list[float]] = [[] for _ in range(self.replicas)]
        for request in requests:
            chain = _chain(request) if self.router == "prefix" else []
            for replica, ends_s in enumerate(until_s):
                until_s[replica] = [end_s for end_s in ends_s if end_s > request.arrival_s]
            loads = [len(ends_s) for ends_s in until_s]
            known = [homes[key] for key, tokens in chain if key in homes and 2 * tokens >= request.prompt_len]
            chosen = int(np.argmin(loads))
            if known and not _lopsided(loads[known[-1]], loads[chosen]):
                chosen = known[-1]
            homes |= dict.fromkeys((key for key, _ in chain), chosen)
            until_s[chosen].append(request.arrival_s + self._alone_s(request, len(until_s[chosen]) + 1))
            yield chosen

    def _alone_s(self, request: TrafficRequest, at_once: int) -> float:
        """About how long a request takes beside others: what a router sees only later, guessed from the step times."""
        limits, engines = self.options.limits, self.options.engines
        prompt_len, context_len = request.prompt_len, request.prompt_len + request.output_len // 2
        prefill_s = self.times.step_s(Scheduled([0], [min(prompt_len, limits.max_num_tokens)], [0], []))
        decodes = min(-(-at_once // engines), limits.max_num_seqs)  # of an engine's step; the others wait for a seat
        step_s = self.times.step_s(Scheduled(range(decodes), [1] * decodes, [context_len] * decodes, []))
        return prefill_s + request.output_len * step_s * max(1.0, at_once / (engines * decodes))


def _chain(request: TrafficRequest) -> list[tuple[int, int]]:
    """A key of each beginning of the prompt that others may have too, and its tokens; the shortest first."""
    found, key, tokens = [], 0, 0
    for identity, length in request.segments:
        key, tokens = hash((key, identity)), tokens + length
        found.append((key, tokens))
    return found


def _lopsided(most: int, least: int) -> bool:
    return most - least > _FEW_MORE and most > _MUCH_MORE * least


def _told(progress: Callable[[int], None], before: int, ended: int) -> None:
    progress(before + ended)
