"""`dooly predict`: a step's latency, or TTFT and TPOT of a workload, here or on a GPU that is not here."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from typing import Any

from pytest_dooly.cli.answer import Answer, progress, warn
from pytest_dooly.cli.opening import grounds_on, opened, other_gpu
from pytest_dooly.core.device import Device
from pytest_dooly.core.signature import ServedModel, data_parallel_size
from pytest_dooly.core.workload import Workload
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.prediction.comparison import candidate
from pytest_dooly.prediction.interval import Interval, is_mixture
from pytest_dooly.prediction.shares import bases_at, shares_of, stand_in
from pytest_dooly.prediction.step import StepPrediction, check_lengths, predict_step
from pytest_dooly.prediction.step_times import StepTimes
from pytest_dooly.prediction.workload import predict_workload
from pytest_dooly.published.basis import Foundation
from pytest_dooly.published.footprint import footprint_of_batch
from pytest_dooly.published.grounds import latency_models
from pytest_dooly.regress.foreign import ForeignEstimator
from pytest_dooly.report.device_report import format_footprint, format_founded_step, format_steps
from pytest_dooly.report.terminal import workload_line
from pytest_dooly.report.text import format_step

__all__ = ["predict"]

_OUTPUT_LEN = 64
"""Tokens that a request generates where nobody says."""


def predict(arguments: argparse.Namespace) -> Answer:
    """What the batch or the workload takes, operation by operation or as a whole."""
    workload = _workload(arguments)
    device = other_gpu(arguments)
    if device is None:
        return _here(arguments, workload)
    if arguments.regressor is not None:
        raise ConfigurationError(f"--regressor is fitted to what is measured here: drop --device {device.name}")
    with opened(arguments, [device]) as work:
        model = work.served(device=device)
        founded = grounds_on(device, work.db).of(model)
    options = work.configuration.options
    if workload is None:
        answer = _step_on(device, arguments, model, founded)
    else:
        ranks = options.tensor_parallel_size
        answer = _workload_on(device, arguments, model, founded, workload=workload, ranks=ranks)
    return dataclasses.replace(answer, document=answer.document | options.ranks)


def _workload(arguments: argparse.Namespace) -> Workload | None:
    """What is asked of a workload; None where a batch is.

    Raises:
        ConfigurationError: options of a workload stand beside a batch.
    """
    if arguments.batch is None:
        output_len = _OUTPUT_LEN if arguments.output is None else arguments.output
        return Workload(arguments.prompt, output_len, arguments.concurrency or 1, arguments.requests)
    for name in ("output", "concurrency", "requests"):
        if getattr(arguments, name) is not None:
            raise ConfigurationError(f"--{name} goes with --prompt: a --batch is one step, which says it all")
    return None


def _here(arguments: argparse.Namespace, workload: Workload | None) -> Answer:
    """In the environment that is installed."""
    estimator = None if arguments.regressor is None else ForeignEstimator.named(arguments.regressor)
    with opened(arguments) as work:
        model = work.served()
        models = latency_models(model, work.db, work.environment, estimator=estimator, progress=progress)
    if workload is None:
        check_lengths(model, arguments.batch)
        step = predict_step(model, models, arguments.batch, routing=arguments.routing)
        warn(step.out_of_range)
        return Answer(_step_document(step), [format_step(step)])
    prediction = predict_workload(StepTimes(model, models, routing=arguments.routing), workload)
    warn(prediction.out_of_range)
    return Answer(dataclasses.asdict(prediction), [workload_line(prediction)])


def _step_on(
    device: Device, arguments: argparse.Namespace, model: ServedModel, founded: Mapping[str, Foundation]
) -> Answer:
    """A step on another GPU, with what each operation's figure rests on."""
    check_lengths(model, arguments.batch)
    models = {key: each.model for key, each in founded.items()}
    step = predict_step(model, models, arguments.batch, routing=arguments.routing, overlapped=True)
    warn(step.out_of_range)
    document = _step_document(step)
    bases = bases_at(model, founded, arguments.batch, routing=arguments.routing)
    document["operations"] = [
        each | {"basis": dataclasses.asdict(basis)} for each, basis in zip(document["operations"], bases, strict=True)
    ]
    shares = shares_of(step, bases)
    within = Interval.around(step.latency_s, "tpot", shares, mixture=is_mixture(model))
    document |= {"model": model.name, "device": device.name, "shares": dataclasses.asdict(shares)}
    document["stand_in"] = stand_in(device, shares)
    document["latency_interval_s"] = list(dataclasses.astuple(within))
    held = footprint_of_batch(model, device, arguments.batch)
    document["memory"] = {**dataclasses.asdict(held), "fits": held.fits}
    return Answer(
        document,
        [
            format_founded_step(step, bases, within, device),
            *_together("so does each of", model),
            format_footprint(held),
        ],
    )


def _together(how: str, model: ServedModel) -> list[str]:
    """A line on engines that share experts; none where there is one engine."""
    engines = data_parallel_size(model)
    return [f"{how} {engines} engines, which share experts and wait for each other"] if engines > 1 else []


def _workload_on(
    device: Device,
    arguments: argparse.Namespace,
    model: ServedModel,
    founded: Mapping[str, Foundation],
    *,
    workload: Workload,
    ranks: int,
) -> Answer:
    """A workload on another GPU, with what its steps rest on, and whether it fits in memory."""
    found = candidate(model, founded, device, workload, ranks=ranks, routing=arguments.routing)
    warn(found.prediction.out_of_range)
    lines = [
        workload_line(found.prediction, found.ttft_interval, found.tpot_interval),
        *_together("spread over", model),
        *format_steps(found.prefill, found.shares if workload.output_len > 1 else None, device),
        format_footprint(found.footprint),
    ]
    return Answer(found.to_json() | dataclasses.asdict(found.prediction), lines)


def _step_document(step: StepPrediction) -> dict[str, Any]:
    operations = [dataclasses.asdict(operation) for operation in step.operations]
    document = {"batch": str(step.batch), "latency_s": step.latency_s, "operations": operations}
    return document | {"out_of_range": step.out_of_range}
