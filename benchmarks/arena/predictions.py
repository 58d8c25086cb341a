"""Published runs through the simulated scheduler, from what is published of the GPU's operations and no more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np

from benchmarks.arena.client import longest_of, server_of, traffic_of
from benchmarks.arena.models import written
from benchmarks.arena.runs import PublishedRun
from benchmarks.study.redundancy import import_tables, progress
from pytest_dooly.core.batch import Limits
from pytest_dooly.core.configuration import ServingOptions, resolve
from pytest_dooly.core.device import Device, device_named
from pytest_dooly.core.signature import ServedModel
from pytest_dooly.engine import load_engine
from pytest_dooly.errors import DoolyError
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.prediction.interval import Figure, is_mixture, log_width, typical_steps
from pytest_dooly.prediction.shares import Shares, shares_at
from pytest_dooly.prediction.step_times import StepTimes
from pytest_dooly.published.basis import Foundation
from pytest_dooly.published.footprint import CacheRoom, cache_room
from pytest_dooly.published.grounds import Grounds
from pytest_dooly.scheduling.scheduler import SchedulerOptions, room_for_all
from pytest_dooly.serving import serve_on
from pytest_dooly.simulation.deployment import Deployment
from pytest_dooly.simulation.simulate import Simulation, joined, simulation_of
from pytest_dooly.simulation.summary import overloaded
from pytest_dooly.simulation.within import within


@dataclass(frozen=True)
class Predicted:
    """One run as predicted.

    Attributes:
        ttft_s: time to first token, mean or median as the run has it.
        tpot_s: time per output token, likewise; None for one token.
        tokens_per_s: generated.
        prefill: what a step with a prompt rests on.
        decode: what a step of decodes half-way through the outputs rests on.
        mixture: whether the model is one of experts.
        within_s: where requests come by themselves, the interval that `dooly simulate` states of TTFT and TPOT; of a
            load beyond capacity it states none.
    """

    ttft_s: float
    tpot_s: float | None
    tokens_per_s: float
    prefill: Shares
    decode: Shares
    mixture: bool
    within_s: Mapping[Figure, tuple[float, float] | None] | None = None


def trace_all(runs: Iterable[PublishedRun], db_path: Path, folder: Path) -> dict[tuple[object, ...], str]:
    """Imports tables and traces every model as it was served; returns the message of each that cannot be traced."""
    runs = list(runs)
    refused: dict[tuple[object, ...], str] = {}
    with LatencyDB.open(db_path) as db:
        import_tables(db, sorted({tables_of(device_named(each.device)) for each in runs}))
        engine = load_engine("vllm")
        for each in {served(run): run for run in runs}.values():
            try:
                configuration = resolve(written(each.model, folder), _options(each))
                serve_on(device_named(each.device), engine, configuration, db, progress=progress)
            except DoolyError as error:
                refused[served(each)] = str(error)
    return refused


def tables_of(device: Device) -> str:
    """The GPU whose tables a device is predicted from."""
    return device.like or device.name


def served(run: PublishedRun) -> tuple[object, ...]:
    """What decides over the operations of a run."""
    attention = run.kv_cache_dtype, run.attends_in_two_bytes
    return run.model, run.ranks, run.engines, run.experts, *attention, run.moe_precision, run.max_captured


def predict_all(
    runs: Sequence[PublishedRun], db_path: Path, folder: Path, *, processes: int = 2
) -> Iterator[tuple[PublishedRun, Predicted | str]]:
    """Each run with its prediction, or the message why there is none."""
    ordered = sorted(runs, key=lambda each: (each.device, str(served(each))))
    parts = [(list(of), db_path, folder) for _, of in groupby(ordered, key=lambda each: (each.device, served(each)))]
    with ProcessPoolExecutor(processes) as pool:
        for part, found in zip(parts, pool.map(_predict_part, parts), strict=True):
            progress(f"{part[0][0].model} tp {part[0][0].ranks} on {part[0][0].device}: {len(found)} runs")
            yield from zip(part[0], found, strict=True)


def _predict_part(part: tuple[list[PublishedRun], Path, Path]) -> list[Predicted | str]:
    """Runs of one model as it is served on one device."""
    runs, db_path, folder = part
    device = device_named(runs[0].device)
    try:
        with LatencyDB.open(db_path, create=False) as db:
            engine = load_engine("vllm")
            configuration = resolve(written(runs[0].model, folder), _options(runs[0]))
            model = serve_on(device, engine, configuration, db, progress=progress)
            model = replace(model, limits=replace(model.limits, max_captured=runs[0].max_captured))
            founded = Grounds(db, device, progress=progress).of(model)
            models = {key: each.model for key, each in founded.items()}
    except DoolyError as error:
        return [str(error)] * len(runs)
    longest = max(longest_of(run) for run in runs)
    widest = Limits(max(run.max_num_tokens for run in runs), max(run.max_num_seqs for run in runs), longest + 1)
    kinds = {
        overlapped: StepTimes(replace(model, limits=widest), models, overlapped=overlapped)
        for overlapped in {run.async_scheduling for run in runs}
    }
    served_model = _Served(model, device, founded, kinds)
    return [_predicted(each, served_model) for each in runs]


@dataclass(frozen=True)
class _Served:
    """A model on a device, ready to be sent requests; step times are by whether scheduling is asynchronous."""

    model: ServedModel
    device: Device
    founded: Mapping[str, Foundation]
    times: Mapping[bool, StepTimes]


def _predicted(each: PublishedRun, served_model: _Served) -> Predicted | str:
    """One run, or the message why it cannot be."""
    model, founded = served_model.model, served_model.founded
    limits = Limits(each.max_num_tokens, min(each.max_num_seqs, each.max_num_tokens), longest_of(each) + 1)
    overlapped = each.async_scheduling
    room = _room(replace(model, limits=limits), served_model.device, each)
    try:
        options = SchedulerOptions(
            limits,
            room.num_blocks,
            prefix_caching=False,
            async_scheduling=overlapped,
            state_blocks=room.of_states,
            engines=each.engines,
        )
    except DoolyError as error:
        return str(error)
    deployment, traffic = Deployment(served_model.times[overlapped], options, server_of(each)), traffic_of(each)
    simulated = joined(deployment.simulate(traffic))
    centre = np.nanmedian if each.medians else np.nanmean
    tokens = sum(request.output_len for request in simulated.traffic.requests)
    at_once = max(round(float(simulated.latency_s.sum() / simulated.last_s.max())), 1)
    decodes = each.concurrency or at_once
    steps = typical_steps(each.prompt_len, each.output_len, decodes, limits, engines=each.engines)
    shares = {figure: shares_at(model, founded, batch, overlapped=overlapped) for figure, batch in steps.items()}
    mixture = is_mixture(model)
    widths = {figure: log_width(figure, of, mixture=mixture) for figure, of in shares.items()}
    return Predicted(
        float(centre(simulated.ttft_s)),
        float(centre(simulated.tpot_s)) if each.output_len > 1 else None,
        tokens / float(simulated.last_s.max()),
        shares["ttft"],
        shares["tpot"],
        mixture,
        None if each.rate is None else _within_s(simulation_of(deployment, traffic, simulated, ()), widths, each),
    )


def _within_s(
    simulation: Simulation, widths: Mapping[Figure, float], run: PublishedRun
) -> dict[Figure, tuple[float, float] | None]:
    """As `dooly simulate` states them."""
    if overloaded(simulation.simulated) is not None:
        return dict.fromkeys(widths)
    found, which = within(simulation, widths), "median" if run.medians else "mean"
    keys = {figure: f"{which}_{figure}_ms" for figure in widths}
    return {
        figure: (found.low_ms[key] / 1e3, found.high_ms[key] / 1e3) if key in found.low_ms else None
        for figure, key in keys.items()
    }


def _room(model: ServedModel, device: Device, run: PublishedRun) -> CacheRoom:
    """What the device leaves, at least room for the longest request, which the run has served; or else room for all."""
    try:
        seq_len = run.prompt_len + run.output_len // 2
        room = cache_room(model, device, share=run.memory_share, seq_len=seq_len)
        least = room_for_all(replace(model.limits, max_num_seqs=1)) + room.of_states
        times = 2 if run.attends_in_two_bytes else 1  # as much of half the size
        return replace(room, num_blocks=max(times * room.num_blocks, least))
    except DoolyError:
        return CacheRoom(room_for_all(model.limits))


def _options(run: PublishedRun) -> ServingOptions:
    return ServingOptions(
        tensor_parallel_size=run.ranks,
        expert_parallel_size=run.experts,
        data_parallel_size=run.engines,
        kv_cache_dtype="bfloat16" if run.attends_in_two_bytes else run.kv_cache_dtype,
        moe_precision=run.moe_precision,
        max_captured=run.max_captured,
    )
