"""Traffic against a model of a latency DB: no engine, no GPU; what `pytest_dooly.simulate` is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_dooly.core.batch import Batch, Limits
from pytest_dooly.core.configuration import ServingOptions
from pytest_dooly.core.device import device_named
from pytest_dooly.core.environment import Environment
from pytest_dooly.core.routing import TRAINED, RoutingDistribution
from pytest_dooly.core.signature import ServedModel, data_parallel_size
from pytest_dooly.core.traffic import Traffic
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.prediction.forecast import known
from pytest_dooly.prediction.interval import Figure, typical_steps
from pytest_dooly.prediction.step_times import StepTimes
from pytest_dooly.published.estimate import SERVER_S, TOKENISE_S
from pytest_dooly.published.footprint import ENGINE_SHARE, cache_room, state_blocks
from pytest_dooly.scheduling.clock import Server, Simulated
from pytest_dooly.scheduling.scheduler import SchedulerOptions, room_for_all
from pytest_dooly.simulation.deployment import Deployment, Router
from pytest_dooly.simulation.summary import Slo, overloaded, summary
from pytest_dooly.simulation.sustained import full_rate, sustainable_rate

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Engine",
    "Simulation",
    "added_by_server_s",
    "joined",
    "means_s",
    "simulate",
    "simulation_of",
    "steps_of",
    "tokenised_by_server_s",
]


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
        gpu_memory_utilization: share of the device's memory that the engine takes.
    """

    kv_blocks: int | None = None
    block_size: int = 16
    prefix_caching: bool = True
    priority: bool = False
    long_prefill_token_threshold: int = 0
    async_scheduling: bool = True
    gpu_memory_utilization: float = ENGINE_SHARE

    def __post_init__(self) -> None:
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ConfigurationError(
                f"gpu_memory_utilization must be above 0 and at most 1, got {self.gpu_memory_utilization}"
            )

    def options(
        self, model: ServedModel, device: str | None, *, seq_len: int = 0, is_halved: bool = False
    ) -> SchedulerOptions:
        """For a model on a device.

        Args:
            model: that is served.
            device: None for one whose memory nobody knows.
            seq_len: tokens of a typical request in the KV cache, of which layers with a window keep a part.
            is_halved: whether keys and values are kept in half of what they are read in (`Release`).

        Raises:
            ConfigurationError: the model does not fit in the device's memory, or a request not in the KV cache.
        """
        blocks, of_states = self.kv_blocks, 0
        gpu = None if device is None else device_named(device)
        if gpu is not None and blocks is None:
            share = self.gpu_memory_utilization
            room = cache_room(model, gpu, block_size=self.block_size, share=share, seq_len=seq_len)
            blocks, of_states = (1 + is_halved) * room.num_blocks, room.of_states
        elif gpu is not None:
            of_states = state_blocks(model, gpu, block_size=self.block_size, seq_len=seq_len)
        if blocks is None:
            blocks = room_for_all(model.limits, self.block_size)
        return SchedulerOptions(
            model.limits,
            blocks,
            self.block_size,
            self.prefix_caching,
            self.priority,
            self.long_prefill_token_threshold,
            self.async_scheduling,
            (1 + is_halved) * of_states,
            data_parallel_size(model),
        )


@dataclass(frozen=True)
class Simulation:
    """Traffic, served.

    Attributes:
        simulated: every request.
        out_of_range: one line for each operation that was asked outside of its known range.
        again: simulates the same requests at so many times their times.
        most: requests per second that are served with room for no more, found when it is asked for.
    """

    simulated: Simulated
    out_of_range: tuple[str, ...] = ()
    again: Callable[[float], Simulated] | None = None
    most: Callable[[], float] | None = None

    def summary(self, slo: Slo | str | None = None, *, search: bool = False) -> dict[str, Any]:
        """By the keys of `vllm bench serve --save-result`; where rates change, each under `stages` as well.

        Of a load beyond capacity `sustained_throughput` is what was served of it.

        Args:
            slo: for the goodput, as in `ttft:300ms,tpot:40ms`.
            search: whether `sustainable_rate` is searched for, which takes up to eight more simulations.
        """
        bound = Slo.parse(slo) if isinstance(slo, str) else slo
        document = summary(self.simulated, slo=bound)
        document["sustained_throughput"] = overloaded(self.simulated)
        document["sustainable_rate"] = self.sustainable_rate() if search else None
        stages = sorted({request.stage for request in self.simulated.traffic.requests})
        if stages[-1]:
            document["stages"] = [{"stage": each} | summary(self.simulated, slo=bound, stage=each) for each in stages]
        return document

    def sustainable_rate(self) -> float | None:
        """Requests per second that the same traffic may come at; None where it is kept up with as it is."""
        if self.again is None or overloaded(self.simulated) is None:
            return None
        most = math.inf if self.most is None else self.most()
        return sustainable_rate(self.simulated, self.again, most)

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
    routing: str | RoutingDistribution = TRAINED,
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
        server: what lies between clients and engines; None for what `added_by_server_s` and `tokenised_by_server_s`
            say.
        replicas: number of engines.
        router: how requests are spread over them.

    Raises:
        ConfigurationError: a request is longer than max_model_len, or something named is unknown, does not fit or is of
            another kind.
        DatabaseError: there is no latency DB, or it cannot be read.
        MissingMeasurements: as in `predict`.
    """
    _expect(traffic, Traffic, "traffic")
    _expect(options, ServingOptions, "options")
    _expect(engine, Engine, "engine")
    _expect(server, Server, "server")
    with LatencyDB.open(Path(db), create=False) as opened:
        served, models = known(opened, model, options, device=device, environment=environment)
    engine = engine or Engine()
    server = server or Server.adding(
        added_by_server_s(device),
        async_scheduling=engine.async_scheduling,
        tokenise_s=tokenised_by_server_s(device),
        processes=data_parallel_size(served),
    )
    spread = RoutingDistribution.parse(routing) if isinstance(routing, str) else routing
    overlapped = device is not None and engine.async_scheduling
    times = StepTimes(served, models, routing=spread, overlapped=overlapped)
    options_of_each = engine.options(served, device, seq_len=traffic.mean_len)
    deployment = Deployment(times, options_of_each, server, replicas, router)
    simulated = joined(deployment.simulate(traffic))
    return simulation_of(deployment, traffic, simulated, times.out_of_range())


def _expect(value: object, kind: type, name: str) -> None:
    """Refuses what is neither None nor of a kind.

    Raises:
        ConfigurationError: it is something else; says what is wanted.
    """
    if value is not None and not isinstance(value, kind):
        raise ConfigurationError(f"{name} must be a {kind.__module__}.{kind.__qualname__}, got {value!r}")


def simulation_of(
    deployment: Deployment, traffic: Traffic, simulated: Simulated, out_of_range: tuple[str, ...]
) -> Simulation:
    """What a deployment has made of a traffic, with what finds the rate that it keeps up with.

    Args:
        deployment: that was asked.
        traffic: as it came.
        simulated: every request.
        out_of_range: as of a `Simulation`.
    """
    again, most = partial(_again, deployment, traffic), partial(full_rate, deployment, traffic)
    return Simulation(simulated, out_of_range, again, most)


def _again(deployment: Deployment, traffic: Traffic, factor: float) -> Simulated:
    """The traffic on a deployment, at so many times its times."""
    return joined(deployment.simulate(traffic.stretched(factor)))


def joined(parts: Sequence[Simulated]) -> Simulated:
    """The requests of several replicas as those of one simulation, replica after replica."""
    if len(parts) == 1:
        return parts[0]
    order = np.argsort(np.concatenate([part.sent_s for part in parts]), kind="stable")
    requests = [request for part in parts for request in part.traffic.requests]

    def of(name: str) -> Any:
        return np.concatenate([getattr(part, name) for part in parts])[order]

    return Simulated(
        traffic=Traffic(tuple(requests[place] for place in order), rates=parts[0].traffic.rates),
        sent_s=of("sent_s"),
        scheduled_s=of("scheduled_s"),
        first_s=of("first_s"),
        last_s=of("last_s"),
        cached_tokens=of("cached_tokens"),
        preemptions=of("preemptions"),
        steps=[step for part in parts for step in part.steps],
        stage_decodes=_stage_decodes(parts),
        arrived_s=of("arrived_s"),
    )


def _stage_decodes(parts: Sequence[Simulated]) -> list[list[int]]:
    """Of each step by stage; a replica that was sent one stage alone has kept none."""
    num_stages = max(part.traffic.num_stages for part in parts)
    if num_stages == 1:
        return []
    found = []
    for part in parts:
        kept = part.stage_decodes or [[step.num_decodes] for step in part.steps]
        found += [[*counts, *[0] * (num_stages - len(counts))] for counts in kept]
    return found


def means_s(simulated: Simulated) -> dict[Figure, float]:
    """Mean TTFT and TPOT in seconds; without the latter where no request has one."""
    figures: dict[Figure, Any] = {"ttft": simulated.ttft_s, "tpot": simulated.tpot_s}
    return {name: float(np.nanmean(values)) for name, values in figures.items() if not np.isnan(values).all()}


def steps_of(simulated: Simulated, limits: Limits, engines: int = 1) -> dict[Figure, Batch]:
    """The typical steps of the mean lengths and the mean number of decodes that were served.

    Args:
        simulated: that has at least one request.
        limits: of a step.
        engines: that step together, each with its share of the decodes.
    """
    requests = simulated.traffic.requests
    prompt_len = round(float(np.mean([request.prompt_len for request in requests])))
    output_len = round(float(np.mean([request.output_len for request in requests])))
    decodes = round(float(np.mean([step.num_decodes for step in simulated.steps if step.num_decodes] or [1])))
    return typical_steps(prompt_len, output_len, decodes, limits, engines=engines)


def added_by_server_s(device: object | None) -> float:
    """Seconds that a server and its client add to a request where nobody says: `SERVER_S` on a named device."""
    return 0.0 if device is None else SERVER_S


def tokenised_by_server_s(device: object | None) -> float:
    """Seconds that a server takes over each token of a prompt likewise: `TOKENISE_S`."""
    return 0.0 if device is None else TOKENISE_S
