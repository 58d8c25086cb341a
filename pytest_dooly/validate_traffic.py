"""Simulated traffic against the engine's own server and client: loads, interleaved and repeated."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pytest_dooly.core.traffic import Traffic, TrafficRequest
from pytest_dooly.prediction.traffic_validation import METRICS, STATISTICS, Load, TrafficRow, TrafficValidation
from pytest_dooly.scheduling.clock import Server, Simulated
from pytest_dooly.simulation.loads import PlannedLoad
from pytest_dooly.validate import noise_floor

if TYPE_CHECKING:
    from pytest_dooly.core.replay import Replay
    from pytest_dooly.engine.base import TrafficServer

__all__ = ["between", "validate_traffic"]

_CALIBRATING = 24
"""Requests one after the other that show what the server adds."""

_SHORT_PROMPT, _SHORT_OUTPUT = 16, 4
"""Tokens of each: hardly any time in the engine."""

Simulate = Callable[[Traffic, Server], Simulated]


def validate_traffic(
    server: TrafficServer,
    simulate: Simulate,
    loads: Sequence[PlannedLoad],
    *,
    repeats: int = 2,
    server_s: float | None = None,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> TrafficValidation:
    """Predicted and measured latencies of every load, with the noise floor.

    The loads are sent in a shuffled order, all of them once before any is sent again. A measured value is the median of
    the repeats; the noise floor as in `validate`. What server and client add to a request is no part of a step: it is
    named, or found on requests of their own, short and one after the other: their mean TTFT at the client less what the
    engine itself says they took in it. Neither the loads that are judged nor any prediction has a say in it.

    Args:
        server: that is up.
        simulate: serves traffic by what is predicted, behind such a server.
        loads: to be sent.
        repeats: how often each, at least 2.
        server_s: seconds that server and client add to each request; None to find out.
        seed: of the order.
        progress: called with a line before each load.

    Raises:
        EngineError: the server or the client has died, or no request succeeded.
    """
    progress("warm-up: what server and client add to a request")
    found_s = _server_s(server)
    added_s = found_s if server_s is None else server_s
    simulated = [simulate(load.traffic, between(added_s)) for load in loads]
    replays: list[list[Replay]] = [[] for _ in loads]
    order = random.Random(seed)
    for repeat in range(repeats):
        for place in order.sample(range(len(loads)), len(loads)):
            load = loads[place]
            sharing = "shared" if load.shared else "apart"
            progress(
                f"round {repeat + 1} of {repeats}: {len(load.traffic.requests)} requests at {load.rate:.3g} a second, "
                f"prefixes {sharing}"
            )
            replays[place].append(server.replay(load.traffic))
    rows = [
        row
        for place, (predicted, measured) in enumerate(zip(simulated, replays, strict=True))
        for row in _rows(place, predicted, measured)
    ]
    described = map(_load, loads, simulated, replays)
    return TrafficValidation(tuple(described), tuple(rows), added_s, server_s is None, repeats)


def between(server_s: float) -> Server:
    """Around an engine that schedules and executes one after the other, as the server that is started here does."""
    return Server.adding(server_s, async_scheduling=False)


def _server_s(server: TrafficServer) -> float:
    """Seconds that server and client add to each request; 0 where the engine does not say what it takes."""
    short = TrafficRequest(0.0, _SHORT_PROMPT, _SHORT_OUTPUT)
    replay = server.replay(Traffic((short,) * _CALIBRATING, concurrency=1))
    if replay.engine_ttft_s is None:
        return 0.0
    return max(0.0, float(np.nanmean(replay.ttft_s)) - replay.engine_ttft_s)


def _load(load: PlannedLoad, simulated: Simulated, replays: Sequence[Replay]) -> Load:
    cached = [replay.cached_tokens for replay in replays if replay.cached_tokens is not None]
    return Load(
        rate=load.rate,
        shared=load.shared,
        num_requests=len(load.traffic.requests),
        capacity=load.capacity,
        predicted_cached=int(simulated.cached_tokens.sum()),
        measured_cached=statistics.median(cached) if cached else None,
        failed=sum(len(replay.errors) for replay in replays),
    )


def _rows(place: int, simulated: Simulated, replays: Sequence[Replay]) -> Iterator[TrafficRow]:
    predicted = _statistics(simulated)
    repeats = [_statistics(replay) for replay in replays]
    for (metric, statistic), predicted_s in predicted.items():
        measured_s = [repeat[metric, statistic] for repeat in repeats]
        yield TrafficRow(place, metric, statistic, predicted_s, statistics.median(measured_s), noise_floor(measured_s))


def _statistics(served: Simulated | Replay) -> Mapping[tuple[str, str], float]:
    """Seconds, by metric and statistic; without TPOT where no request has one."""
    values = dict(zip(METRICS, (served.ttft_s, served.tpot_s, served.latency_s), strict=True))
    return {
        (metric, statistic): value
        for metric, values_s in values.items()
        for statistic, value in zip(STATISTICS, _summed(values_s[~np.isnan(values_s)]), strict=False)
    }


def _summed(values_s: npt.NDArray[np.float64]) -> Sequence[float]:
    """By STATISTICS; nothing of nothing."""
    return [float(values_s.mean()), *map(float, np.percentile(values_s, (50, 90, 99)))] if len(values_s) else ()
