"""A model as it is deployed: scheduler, KV cache, replicas behind a router; traffic is simulated against it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, get_args

import numpy as np

from pytest_dooly.core.device import Device
from pytest_dooly.core.scheduling import Scheduler, SchedulerOptions
from pytest_dooly.core.signature import ServedModel
from pytest_dooly.core.traffic import Traffic, TrafficRequest
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.published.footprint import ENGINE_SHARE, footprint, working_bytes
from pytest_dooly.simulation.clock import Server, Simulated, StepLatency, run
from pytest_dooly.simulation.native import NativeScheduler

__all__ = ["Deployment", "Router", "kv_blocks"]

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
            return [run(traffic, self.scheduler(self.options), self.times, self.server, progress=progress)]
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
            scheduler, part = self.scheduler(self.options), replace(traffic, requests=tuple(share))
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
            home = homes.get(request.segments[0][0]) if self.router == "prefix" and request.segments else None
            for replica, ends_s in enumerate(until_s):
                until_s[replica] = [end_s for end_s in ends_s if end_s > request.arrival_s]
            chosen = int(np.argmin([len(ends_s) for ends_s in until_s])) if home is None else home
            if request.segments:
                homes.setdefault(request.segments[0][0], chosen)
            until_s[chosen].append(request.arrival_s + self._alone_s(request, len(until_s[chosen]) + 1))
            yield chosen

    def _alone_s(self, request: TrafficRequest, at_once: int) -> float:
        """About how long a request takes beside others: what a router sees only later, guessed from the step times."""
        prefill_s = self.times.latency_s(0, 0, [(min(request.prompt_len, self.options.limits.max_num_tokens), 0)])
        step_s = self.times.latency_s(at_once, at_once * (request.prompt_len + request.output_len // 2), [])
        return prefill_s + request.output_len * step_s


def _told(progress: Callable[[int], None], before: int, ended: int) -> None:
    progress(before + ended)


def kv_blocks(model: ServedModel, device: Device, *, block_size: int = 16, share: float = ENGINE_SHARE) -> int:
    """KV blocks that the device's memory leaves beside the weights.

    Args:
        model: one rank of it.
        device: that serves the rank.
        block_size: tokens in one block.
        share: of the memory, that the engine takes (`gpu_memory_utilization`).

    Raises:
        ConfigurationError: the weights alone do not fit, or the model keeps nothing of its requests.
    """
    held = footprint(model, device, num_reqs=1, seq_len=block_size)
    usable_bytes = share * device.memory_bytes
    left_bytes = usable_bytes - held.weights_bytes - working_bytes(model)
    if held.cache_bytes <= 0:
        raise ConfigurationError(f"{model.name} keeps no keys and values: name the number of KV blocks")
    if left_bytes < held.cache_bytes:
        raise ConfigurationError(
            f"{model.name} does not fit on {device.name}: {held.weights_bytes / 1e9:.1f} GB of weights on a rank, "
            f"{usable_bytes / 1e9:.1f} GB that the engine takes; use more ranks (--tp)"
        )
    return int(left_bytes / held.cache_bytes)
