"""Traffic against a model of a latency DB: no engine, no GPU; what `pytest_dooly.simulate` is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_dooly.core.configuration import ServingOptions
from pytest_dooly.core.device import device_named
from pytest_dooly.core.environment import Environment
from pytest_dooly.core.routing import UNIFORM, RoutingDistribution
from pytest_dooly.core.scheduling import SchedulerOptions, blocks_for_all
from pytest_dooly.core.signature import ServedModel
from pytest_dooly.core.traffic import Traffic
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.prediction.forecast import known
from pytest_dooly.simulation.clock import Server, Simulated
from pytest_dooly.simulation.deployment import Deployment, Router, kv_blocks
from pytest_dooly.simulation.step_times import StepTimes
from pytest_dooly.simulation.summary import Slo, overloaded, summary

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Engine", "Simulation", "joined", "room_for_all", "simulate"]


@dataclass(frozen=True)
class Engine:
    """How each engine schedules, beyond the limits that its model was traced with.

    Attributes:
        kv_blocks: of the KV cache; None for what the device's memory leaves, or else for room for all.
        block_size: tokens in one block.
        prefix_caching: whether prompts that begin alike share blocks.
        priority: whether smaller priorities go first.
        long_prefill_token_threshold: most tokens of one prompt in a step where others are there; 0 for no bound.
        async_scheduling: whether a step is scheduled while the one before runs.
    """

    kv_blocks: int | None = None
    block_size: int = 16
    prefix_caching: bool = True
    priority: bool = False
    long_prefill_token_threshold: int = 0
    async_scheduling: bool = True

    def options(self, model: ServedModel, device: str | None) -> SchedulerOptions:
        """For a model on a device, None for one whose memory nobody knows.

        Raises:
            ConfigurationError: the model does not fit in the device's memory, or a request not in the KV cache.
        """
        blocks = self.kv_blocks
        if blocks is None and device is not None:
            blocks = kv_blocks(model, device_named(device), block_size=self.block_size)
        if blocks is None:
            blocks = room_for_all(model, self.block_size)
        return SchedulerOptions(
            model.limits,
            blocks,
            self.block_size,
            self.prefix_caching,
            self.priority,
            self.long_prefill_token_threshold,
            self.async_scheduling,
        )


@dataclass(frozen=True)
class Simulation:
    """Traffic, served.

    Attributes:
        simulated: every request.
        out_of_range: one line for each operation that was asked outside of its known range.
    """

    simulated: Simulated
    out_of_range: tuple[str, ...] = ()

    def summary(self, slo: Slo | str | None = None) -> dict[str, Any]:
        """By the keys of `vllm bench serve --save-result`; where rates change, each under `stages` as well.

        Args:
            slo: for the goodput, as in `ttft:300ms,tpot:40ms`.
        """
        bound = Slo.parse(slo) if isinstance(slo, str) else slo
        document = summary(self.simulated, slo=bound)
        document["sustained_throughput"] = overloaded(self.simulated)
        stages = np.array([request.stage for request in self.simulated.traffic.requests])
        if stages.max():
            document["stages"] = [summary(self.simulated, slo=bound, of=stages == stage) for stage in np.unique(stages)]
        return document

    @property
    def requests(self) -> pd.DataFrame:
        """A row for each request; times in seconds."""
        import pandas as pd

        return pd.DataFrame(self.simulated.columns())

    @property
    def steps(self) -> pd.DataFrame:
        """A row for each step of an engine; times in seconds."""
        import pandas as pd

        return pd.DataFrame([asdict(step) for step in self.simulated.steps])


def simulate(
    model: str,
    traffic: Traffic,
    *,
    db: str | Path = ".dooly/latency.db",
    environment: Environment | None = None,
    options: ServingOptions | None = None,
    device: str | None = None,
    routing: str | RoutingDistribution = UNIFORM,
    engine: Engine | None = None,
    server: Server | None = None,
    replicas: int = 1,
    router: Router = "round_robin",
) -> Simulation:
    """Latencies of every request of a traffic, from a latency DB alone.

    Args:
        model: name that it was profiled or planned by.
        traffic: drawn (`SyntheticTraffic(...).draw()`), read (`read_trace`) or made by hand.
        db: path of the latency DB.
        environment: as in `predict`.
        options: as in `predict`.
        device: as in `predict`.
        routing: as in `predict`.
        engine: how each engine schedules.
        server: what lies between clients and engines.
        replicas: number of engines.
        router: how requests are spread over them.

    Raises:
        ConfigurationError: a request is longer than max_model_len, or something named is unknown or does not fit.
        DatabaseError: there is no latency DB, or it cannot be read.
        MissingMeasurements: as in `predict`.
    """
    with LatencyDB.open(Path(db), create=False) as opened:
        served, models = known(opened, model, options, device=device, environment=environment)
    engine, server = engine or Engine(), server or Server()
    spread = RoutingDistribution.parse(routing) if isinstance(routing, str) else routing
    times = StepTimes(served, models, routing=spread)
    deployment = Deployment(times, engine.options(served, device), server, replicas, router)
    simulated = joined(deployment.simulate(traffic))
    return Simulation(simulated, times.out_of_range())


def joined(parts: Sequence[Simulated]) -> Simulated:
    """The requests of several replicas as those of one simulation, replica after replica."""
    if len(parts) == 1:
        return parts[0]
    order = np.argsort(np.concatenate([part.sent_s for part in parts]), kind="stable")
    requests = [request for part in parts for request in part.traffic.requests]

    def of(name: str) -> Any:
        return np.concatenate([getattr(part, name) for part in parts])[order]

    return Simulated(
        traffic=Traffic(tuple(requests[place] for place in order)),
        sent_s=of("sent_s"),
        first_s=of("first_s"),
        last_s=of("last_s"),
        cached_tokens=of("cached_tokens"),
        preemptions=of("preemptions"),
        steps=[step for part in parts for step in part.steps],
    )


def room_for_all(model: ServedModel, block_size: int) -> int:
    """KV blocks that all requests of a step have room in at their full length: nothing is ever preempted."""
    return blocks_for_all(model.limits, block_size)
