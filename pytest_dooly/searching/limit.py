"""What limits a candidate: where the time goes at the first load that misses the objective, from its steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pytest_dooly.core.batch import Batch, SweepPoint
from pytest_dooly.core.device import Device
from pytest_dooly.core.document import Document
from pytest_dooly.core.operation import OperationKind
from pytest_dooly.core.routing import RoutingDistribution
from pytest_dooly.core.signature import ServedModel, Signature
from pytest_dooly.core.work import Features, Work
from pytest_dooly.prediction.step import predict_step, step_operations
from pytest_dooly.regress.regressor import LatencyModel
from pytest_dooly.scheduling.clock import Server, Simulated, StepLatency
from pytest_dooly.scheduling.scheduler import Scheduled, SchedulerOptions
from pytest_dooly.searching.bounds import decodes_of
from pytest_dooly.sweep.roofline import bytes_of, flops, window_of

__all__ = ["Cause", "Limit", "Watched", "causes_of_step", "limit_of"]

SEATS, TOKENS, BLOCKS = "queueing for seats", "queueing for tokens of a step", "waiting for KV blocks"
UNDER_WAY = "the step under way"
PREFILL, SERVER, INTERFERENCE, PREEMPTION = "prefill", "server and client", "prefill interference", "preemption"
WEIGHTS, PRODUCTS, KEYS = "weight reads", "matrix products", "attention: KV reads"
COLLECTIVES, HOST, OTHERS = "collectives", "launches and host", "other kernels"

_PRODUCTS = (OperationKind.LINEAR, OperationKind.MOE, OperationKind.LOGITS, OperationKind.MIXER)

_SLOW = 90
"""Percentile from which on a TTFT counts among the slow ones, whose time is looked at."""


@dataclass(frozen=True)
class Cause(Document):
    """Where time goes.

    Attributes:
        name: of the cause.
        share: of the latency that misses its bound.
    """

    name: str
    share: float


@dataclass(frozen=True)
class Limit(Document):
    """Why no higher rate meets the objective.

    Attributes:
        bound: the statistic that is missed first, as `tpot_p90`; `queue` where only the queue grows.
        rate: requests per second of the load that misses it.
        ratio: the statistic as a multiple of its bound there.
        causes: where the time of that latency goes, the largest first; shares add up to 1.
        num_decodes: mean of the steps that have any.
        preemptions: of all requests together.
        used_blocks: largest share of the KV blocks that were held.
        num_requests: of the traffic.
    """

    bound: str
    rate: float
    ratio: float
    causes: tuple[Cause, ...]
    num_decodes: float
    preemptions: int
    used_blocks: float
    num_requests: int


class Watched:
    """Step times that remember what each step's decodes would have taken alone.

    Attributes:
        alone_s: of each step that was asked for, in order.
    """

    def __init__(self, times: StepLatency) -> None:
        """Nothing is remembered yet."""
        self._times = times
        self.alone_s: list[float] = []

    def step_s(self, step: Scheduled) -> float:
        """Seconds of the step."""
        step_s = self._times.step_s(step)
        if step.num_decodes and step.chunks:
            self.alone_s.append(self._times.step_s(decodes_of(step)))
        else:
            self.alone_s.append(step_s if step.num_decodes else 0.0)
        return step_s


def limit_of(
    simulated: Simulated,
    watched: Watched,
    options: SchedulerOptions,
    bound: str,
    *,
    rate: float,
    ratio: float,
    server: Server,
    of_step: Mapping[str, float],
) -> Limit:
    """What a load that misses the objective says of why.

    Args:
        simulated: the load.
        watched: its step times.
        options: how the engine schedules.
        bound: the statistic that is missed.
        rate: requests per second.
        ratio: the statistic as a multiple of its bound.
        server: between the clients and the engine.
        of_step: shares of a decode step by cause.
    """
    decode = _decode_shares(simulated, watched, of_step)
    first = _first_shares(simulated, options, server)
    if bound.startswith("tpot"):
        shares = decode
    elif bound.startswith("e2el"):
        of_first = float(simulated.ttft_s.sum() / simulated.latency_s.sum())
        names = dict.fromkeys([*first, *decode])
        shares = {each: of_first * first.get(each, 0) + (1 - of_first) * decode.get(each, 0) for each in names}
    else:
        shares = first
    total = sum(shares.values()) or 1.0
    decodes = [step.num_decodes for step in simulated.steps if step.num_decodes]
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    return Limit(
        bound,
        rate,
        ratio,
        tuple(Cause(name, share / total) for name, share in ordered if share > 0),
        float(np.mean(decodes or [0])),
        int(simulated.preemptions.sum()),
        max(step.used_blocks for step in simulated.steps) / max(options.num_blocks - 1, 1),
        len(simulated.sent_s),
    )


def causes_of_step(
    model: ServedModel,
    models: Mapping[str, LatencyModel],
    device: Device,
    batch: Batch,
    routing: RoutingDistribution,
) -> dict[str, float]:
    """Shares of a step by cause; a matrix product is bound by its weights where these take longer than the product.

    Args:
        model: what is served.
        models: latency models by signature key.
        device: whose data sheet says what takes longer.
        batch: what the step works on.
        routing: how a mixture's router spreads tokens over experts.
    """
    step = predict_step(model, models, batch, routing=routing)
    shares: dict[str, float] = {}
    for operation, latency in zip(step_operations(model), step.operations, strict=True):
        cause = _cause(operation.signature, device, batch)
        shares[cause] = shares.get(cause, 0.0) + latency.latency_s / (step.latency_s or 1.0)
    return shares


def _cause(signature: Signature, device: Device, batch: Batch) -> str:
    if signature.kind is OperationKind.COLLECTIVE:
        return COLLECTIVES
    if signature.kind is OperationKind.OVERHEAD:
        return HOST
    if signature.kind is OperationKind.ATTENTION:
        return KEYS
    if signature.kind not in _PRODUCTS:
        return OTHERS
    sizes = batch.num_reqs if signature.swept == "num_reqs" else batch.num_tokens
    point = SweepPoint(batch=batch) if signature.swept == "batch" else SweepPoint(num_tokens=sizes)
    of = Features(Work.of([point]), window_of(signature))
    read_s = float(bytes_of(signature, of)[0]) / device.memory_bytes_per_s
    return WEIGHTS if read_s >= float(flops(signature, of)[0]) / device.flops_per_s else PRODUCTS


def _decode_shares(simulated: Simulated, watched: Watched, of_step: Mapping[str, float]) -> dict[str, float]:
    """Where the time between tokens goes: each step counts for every request that it gives a token."""
    latencies = np.array([step.latency_s for step in simulated.steps])
    decodes = np.array([step.num_decodes for step in simulated.steps], dtype=np.float64)
    total_s = float(decodes @ latencies) or 1.0
    interference = float(decodes @ (latencies - np.array(watched.alone_s))) / total_s
    generating_s = simulated.last_s - simulated.first_s
    preempted, usual = simulated.preemptions > 0, simulated.preemptions == 0
    lost = 0.0
    if preempted.any() and usual.any():
        further = np.array([request.output_len - 1 for request in simulated.traffic.requests], dtype=np.float64)
        usual_s = float(generating_s[usual].sum() / max(further[usual].sum(), 1.0))
        excess_s = np.maximum(generating_s[preempted] - further[preempted] * usual_s, 0.0)
        lost = float(excess_s.sum() / (generating_s.sum() or 1.0))
    beside = (1 - lost) * interference
    return {PREEMPTION: lost, INTERFERENCE: beside} | {
        name: (1 - lost - beside) * share for name, share in of_step.items()
    }


def _first_shares(simulated: Simulated, options: SchedulerOptions, server: Server) -> dict[str, float]:
    """Where the time to first token goes, of those for whom it is long."""
    ttft_s = simulated.ttft_s
    slow = ttft_s >= np.percentile(ttft_s, _SLOW)
    taking_in_s = np.array([server.taking_in_s(request.prompt_len) for request in simulated.traffic.requests])
    arrived_s = simulated.sent_s + taking_in_s if simulated.arrived_s is None else simulated.arrived_s
    waited_s = float(np.maximum(simulated.scheduled_s - arrived_s, 0.0)[slow].sum())
    total_s = float(ttft_s[slow].sum())
    served_s = float((arrived_s - simulated.sent_s + server.token_s)[slow].sum())
    shares = {PREFILL: max(total_s - waited_s - served_s, 0.0), SERVER: served_s}
    return shares | {reason: waited_s * share for reason, share in _reasons(simulated, options).items()}


def _reasons(simulated: Simulated, options: SchedulerOptions) -> dict[str, float]:
    """Why requests waited, each step that left some waiting by its seconds.

    Of several engines one is full and another not: the reason is what all together have least left of, and of KV
    blocks, the one that holds most of its own.
    """
    limits = options.limits
    spent = {SEATS: 0.0, TOKENS: 0.0, BLOCKS: 0.0}
    for step in simulated.steps:
        if not step.num_waiting:
            continue
        taken = {
            SEATS: step.num_running / (options.engines * limits.max_num_seqs),
            TOKENS: step.num_tokens / (options.engines * limits.max_num_tokens),
            BLOCKS: step.used_blocks / max(options.num_blocks - 1, 1),
        }
        # One engine that has seats and tokens left waits for blocks: a long prompt does so beside many that are empty.
        alone = next((each for each in (SEATS, TOKENS) if taken[each] >= 1), BLOCKS)
        reason = alone if options.engines == 1 else max(taken, key=lambda each: taken[each])
        spent[reason] += step.latency_s * step.num_waiting
    total_s = sum(spent.values())
    # Nobody is left waiting by a step, but who comes while one is under way waits for its end.
    return {name: value / total_s for name, value in spent.items()} if total_s else {UNDER_WAY: 1.0}
