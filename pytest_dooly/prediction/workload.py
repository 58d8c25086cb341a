"""Workload -> traffic through the scheduler -> TTFT, TPOT."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pytest_dooly.core.device import Device
from pytest_dooly.core.signature import data_parallel_size
from pytest_dooly.core.work import Work
from pytest_dooly.core.workload import Workload
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.prediction.step import check_regressors, is_admission
from pytest_dooly.prediction.step_times import StepTimes
from pytest_dooly.published.estimate import SERVER_S, TOKENISE_S
from pytest_dooly.published.footprint import cache_room
from pytest_dooly.scheduling.clock import Server, Simulated, run
from pytest_dooly.scheduling.lockstep import scheduler_of
from pytest_dooly.scheduling.scheduler import SchedulerOptions, room_for_all

__all__ = ["WorkloadPrediction", "in_process", "predict_served", "predict_workload", "serve_workload"]


@dataclass(frozen=True)
class WorkloadPrediction:
    """Predicted latencies of a workload, in seconds, as vLLM's own benchmark defines them.

    Attributes:
        workload: what was asked.
        ttft_s: mean over the requests of arrival to first token.
        tpot_s: mean over the requests of (latency - TTFT) / (output_len - 1); None where output_len is 1.
        num_steps: engine steps simulated.
        duration_s: first arrival to last token.
        out_of_range: one line for each operation that was asked outside of its measured range.
    """

    workload: Workload
    ttft_s: float
    tpot_s: float | None
    num_steps: int
    duration_s: float
    out_of_range: tuple[str, ...] = ()


def predict_workload(
    times: StepTimes,
    workload: Workload,
    *,
    options: SchedulerOptions | None = None,
    server: Server | None = None,
) -> WorkloadPrediction:
    """TTFT and TPOT of a workload that arrives at an idle engine.

    Args:
        times: of the steps.
        workload: equal requests.
        options: how the engine schedules; None for one without async scheduling whose KV cache has room for all.
        server: around the engine; None where the client drives it in its own process, as `in_process` has it.

    Raises:
        ConfigurationError: a request would be longer than max_model_len.
        MissingMeasurements: the admission of requests has no regressor.
    """
    served = serve_workload(times, workload, options=options, server=server)
    tpot_s = float(np.mean(served.tpot_s)) if workload.output_len > 1 else None
    duration_s = float(served.last_s.max())
    return WorkloadPrediction(
        workload, float(np.mean(served.ttft_s)), tpot_s, len(served.steps), duration_s, times.out_of_range()
    )


def serve_workload(
    times: StepTimes,
    workload: Workload,
    *,
    options: SchedulerOptions | None = None,
    server: Server | None = None,
) -> Simulated:
    """Every request of a workload that arrives at an idle engine; arguments and errors as of `predict_workload`."""
    limits = times.model.limits
    if workload.prompt_len + workload.output_len > limits.max_model_len:
        raise ConfigurationError(
            f"prompt and output of {workload.prompt_len} + {workload.output_len} tokens exceed max_model_len "
            f"{limits.max_model_len}"
        )
    options = options or SchedulerOptions(limits, room_for_all(limits), async_scheduling=False)
    options = replace(options, engines=data_parallel_size(times.model))
    return run(workload.traffic(), scheduler_of(options), times, server or in_process(times, workload))


def predict_served(times: StepTimes, workload: Workload, device: Device) -> WorkloadPrediction:
    """TTFT and TPOT of a workload at an idle server: async scheduling, and the KV blocks that the device has room for.

    The server adds `SERVER_S` to each request, and `TOKENISE_S` for each token of its prompt.

    Where the device has no room for the model, they are those that it would have with memory for all.

    Args:
        times: of the steps.
        workload: equal requests.
        device: that serves it.

    Raises:
        ConfigurationError: a request would be longer than max_model_len.
    """
    limits = times.model.limits
    try:
        room = cache_room(times.model, device, seq_len=workload.prompt_len + workload.output_len // 2)
        # Longer requests than these there are none.
        limits = replace(limits, max_model_len=min(limits.max_model_len, workload.prompt_len + workload.output_len))
        options = SchedulerOptions(limits, room.num_blocks, state_blocks=room.of_states)
    except ConfigurationError:
        options = SchedulerOptions(limits, room_for_all(limits))
    processes = data_parallel_size(times.model)
    server = Server.adding(SERVER_S, async_scheduling=True, tokenise_s=TOKENISE_S, processes=processes)
    return predict_workload(times, workload, options=options, server=server)


def in_process(times: StepTimes, workload: Workload) -> Server:
    """A client in the engine's own process, which admits requests one after the other before the next step.

    Raises:
        MissingMeasurements: the admission of requests has no regressor.
    """
    admissions = [operation for operation in times.model.operations if is_admission(operation)]
    check_regressors(times.model, admissions, times.models)
    work = Work.of_sizes([workload.prompt_len])
    each_s = (float(times.models[operation.signature.key].predict_s(work)[0]) for operation in admissions)
    return Server(async_scheduling=False, admission_s=sum(each_s))
