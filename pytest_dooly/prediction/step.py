"""Batch -> operations -> latency of one engine step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pytest_dooly.core.batch import Batch, SweepPoint
from pytest_dooly.core.operation import ADMISSION, LAUNCH, STEP, OperationKind
from pytest_dooly.core.routing import TRAINED, RoutingDistribution
from pytest_dooly.core.signature import ModelOperation, ServedModel, Signature, engines_of, experts_of
from pytest_dooly.core.work import Work, features_of
from pytest_dooly.errors import ConfigurationError, MissingMeasurements
from pytest_dooly.published.graphs import LayerLaunches
from pytest_dooly.regress.regressor import LatencyModel

__all__ = ["OperationLatency", "StepPrediction", "check_lengths", "predict_step", "predict_steps", "step_operations"]


@dataclass(frozen=True)
class OperationLatency:
    """Share of one operation in a step.

    Attributes:
        label: readable signature.
        kind: what it is.
        multiplicity: how often the step runs it.
        latency_s: of all its runs together, in seconds.
    """

    label: str
    kind: OperationKind
    multiplicity: int
    latency_s: float


@dataclass(frozen=True)
class StepPrediction:
    """One engine step.

    Attributes:
        batch: what the step works on.
        operations: latency of every operation, engine overheads included.
        out_of_range: one line for each operation that was asked outside of its measured range.
    """

    batch: Batch
    operations: tuple[OperationLatency, ...]
    out_of_range: tuple[str, ...] = ()

    @property
    def latency_s(self) -> float:
        """Latency of the whole step, in seconds."""
        return sum(operation.latency_s for operation in self.operations)


def check_lengths(model: ServedModel, batch: Batch) -> None:
    """Checks that the model takes requests as long as those of a batch.

    Raises:
        ConfigurationError: one is longer than max_model_len.
    """
    longest = max((request for request, _ in batch.groups), key=lambda request: request.seq_len)
    if longest.seq_len > model.limits.max_model_len:
        raise ConfigurationError(
            f"a request of {longest.context_len} + {longest.query_len} tokens exceeds max_model_len "
            f"{model.limits.max_model_len}"
        )


def predict_step(
    model: ServedModel,
    regressors: Mapping[str, LatencyModel],
    batch: Batch,
    *,
    routing: RoutingDistribution = TRAINED,
    overlapped: bool = False,
) -> StepPrediction:
    """Latency of one engine step, operation by operation.

    A GPU works through a layer while the host launches the next, so that the slower of the two decides: what launches
    take counts as far as it exceeds the work of the forward pass.

    Args:
        model: what is served.
        regressors: by signature key.
        batch: what the step works on.
        routing: how a mixture's router spreads tokens over experts.
        overlapped: whether the engine's process prepares a step while the device works on the one before, so that what
            it does counts as far as the device is done earlier.

    Raises:
        ConfigurationError: the routing has another number of experts than the model.
        MissingMeasurements: an operation has no regressor; names all of them.
    """
    operations = step_operations(model)
    check_regressors(model, operations, regressors)
    step = Work.of([SweepPoint(batch=batch)])
    latencies, out_of_range = [], []
    for operation in operations:
        signature, regressor = operation.signature, regressors[operation.signature.key]
        work = work_of(signature, step, routing)
        latency_s = operation.multiplicity * float(regressor.predict_s(work)[0])
        latencies.append(OperationLatency(signature.label, signature.kind, operation.multiplicity, latency_s))
        line = regressor.out_of_range(work)
        if line is not None:
            out_of_range.append(f"{signature.label}: {line}")
    launches = [is_launch(operation, regressors) for operation in operations]
    latencies = _beyond(latencies, launches, [is_in_forward(operation) for operation in operations])
    if overlapped:
        hosts = [is_hosts(operation) for operation in operations]
        latencies = _beyond(latencies, hosts, [not each for each in hosts])
    return StepPrediction(batch, tuple(latencies), tuple(out_of_range))


def _beyond(
    latencies: Sequence[OperationLatency], hidden: Sequence[bool], behind: Sequence[bool]
) -> list[OperationLatency]:
    """The same, where some operations run beside others and count as far as they take longer than those."""
    hidden_s = sum(each.latency_s for each, is_hidden in zip(latencies, hidden, strict=True) if is_hidden)
    behind_s = sum(each.latency_s for each, is_behind in zip(latencies, behind, strict=True) if is_behind)
    exposed = max(0.0, 1 - behind_s / hidden_s) if hidden_s else 0.0
    return [
        replace(each, latency_s=exposed * each.latency_s) if is_hidden else each
        for each, is_hidden in zip(latencies, hidden, strict=True)
    ]


def step_operations(model: ServedModel) -> list[ModelOperation]:
    """The operations that every step runs, in the order in which `predict_step` gives their latencies."""
    return [operation for operation in model.operations if not is_admission(operation)]


def is_admission(operation: ModelOperation) -> bool:
    return operation.signature.kind is OperationKind.OVERHEAD and operation.signature.name == ADMISSION


def is_hosts(operation: ModelOperation) -> bool:
    """Whether the engine's process alone does it, which asynchronous scheduling does while the device works."""
    return operation.signature.kind is OperationKind.OVERHEAD and operation.signature.name == STEP


def is_launch(operation: ModelOperation, regressors: Mapping[str, LatencyModel]) -> bool:
    """Whether it is what the host takes to launch layers, which a GPU's work hides."""
    launches = isinstance(regressors[operation.signature.key], LayerLaunches)
    return launches or (operation.signature.kind is OperationKind.OVERHEAD and operation.signature.name == LAUNCH)


def is_in_forward(operation: ModelOperation) -> bool:
    return operation.signature.kind not in (OperationKind.OVERHEAD, OperationKind.LOGITS, OperationKind.SAMPLER)


def check_regressors(
    model: ServedModel, operations: Sequence[ModelOperation], regressors: Mapping[str, LatencyModel]
) -> None:
    missing = [o.signature.label for o in operations if o.signature.key not in regressors]
    if missing:
        raise MissingMeasurements(
            f"{model.name} has no regressor for {', '.join(missing)}: "
            f"run pytest --dooly-model={model.name} with the same options first"
        )


def work_of(signature: Signature, steps: Work, routing: RoutingDistribution) -> Work:
    """What the operation sees of each step.

    Where engines share the experts and nothing is said of the others, all have as many tokens.
    """
    if signature.swept == "batch":
        return steps
    size = "num_reqs" if signature.swept == "num_reqs" else "num_tokens"
    sizes = features_of(steps, (size,), None)[:, 0]
    if signature.swept != "routing":
        return Work.of_sizes(sizes)
    attributes = dict(signature.attributes)
    local, top_k = int(attributes["num_local_experts"]), int(attributes["top_k"])
    experts = experts_of(signature)
    engines = engines_of(signature)
    gathered = steps.gathered if steps.gathered is not None else engines * sizes
    activated, busiest = routing.expectations(gathered, experts, top_k)
    activated *= local / experts
    return Work.of_sizes(sizes, activated=activated, busiest=busiest, gathered=gathered if engines > 1 else None)


def predict_steps(
    model: ServedModel, regressors: Mapping[str, LatencyModel], steps: Work, routing: RoutingDistribution
) -> tuple[npt.NDArray[np.float64], tuple[str, ...]]:
    """Latency of every step in seconds, shape (steps,), and one line for each operation that is out of range.

    Args:
        model: what is served.
        regressors: by signature key.
        steps: the batches.
        routing: how a mixture's router spreads tokens over experts.

    Raises:
        MissingMeasurements: an operation has no regressor; names all of them.
    """
    operations = step_operations(model)
    check_regressors(model, operations, regressors)
    total, forward, launched = (np.zeros(len(steps)) for _ in range(3))
    out_of_range = []
    for operation in operations:
        regressor = regressors[operation.signature.key]
        work = work_of(operation.signature, steps, routing)
        of_steps = operation.multiplicity * regressor.predict_s(work)
        if is_launch(operation, regressors):
            launched += of_steps
        else:
            total += of_steps
        if is_in_forward(operation):
            forward += of_steps
        line = regressor.out_of_range(work)
        if line is not None:
            out_of_range.append(f"{operation.signature.label}: {line}")
    return total + np.maximum(launched - forward, 0), tuple(out_of_range)
