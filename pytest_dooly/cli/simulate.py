"""`dooly simulate`: traffic through a scheduler, on a device that need not be here."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

from pytest_dooly.cli.answer import Answer, progress, warn
from pytest_dooly.cli.opening import grounds_on, opened, other_gpu
from pytest_dooly.cli.traffic import traffic_asked
from pytest_dooly.core.configuration import ModelConfiguration
from pytest_dooly.core.device import Device
from pytest_dooly.core.release import NEWEST, Release
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.prediction.interval import is_mixture, log_width
from pytest_dooly.prediction.shares import shares_at, stand_in
from pytest_dooly.prediction.step_times import StepTimes
from pytest_dooly.published.grounds import latency_models
from pytest_dooly.report.device_report import format_steps
from pytest_dooly.report.figure import png_path
from pytest_dooly.report.simulation_report import format_simulation, requests_path, save_requests, save_simulation
from pytest_dooly.scheduling.clock import Server
from pytest_dooly.scheduling.native import NativeScheduler
from pytest_dooly.simulation.arrivals import Arrivals
from pytest_dooly.simulation.deployment import Deployment
from pytest_dooly.simulation.simulate import (
    Engine,
    added_by_server_s,
    joined,
    simulation_of,
    steps_of,
    tokenised_by_server_s,
)
from pytest_dooly.simulation.summary import Slo
from pytest_dooly.simulation.within import within

__all__ = ["simulate"]

_SILENT_S = 2.0
"""Seconds of simulation that go without a word."""

_PATIENCE_S = 3.0
"""Seconds of simulation up to which an overloaded one is done up to eight times more, at other rates."""


def simulate(arguments: argparse.Namespace) -> Answer:
    """TTFT, TPOT and latency of every request, as means and percentiles."""
    png = None if arguments.png is None else png_path(arguments.png)
    slo = None if arguments.slo is None else Slo.parse(arguments.slo)
    out = None if arguments.out is None else requests_path(arguments.out)
    device = other_gpu(arguments)
    release = _release(arguments, device)
    if arguments.gpu_memory_utilization is not None and device is None:
        raise ConfigurationError("--gpu-memory-utilization is of a GPU that is not here: name it with --device")
    rates = None if arguments.rate is None else Arrivals.parse(arguments.rate, arguments.arrivals)
    asked = traffic_asked(arguments, rates)
    with opened(arguments, [] if device is None else [device]) as work:
        configuration, halved = _kept_as(release, work.configuration, device)
        model = work.served(configuration, device=device)
        scheduler = NativeScheduler if arguments.scheduler == "native" else work.engine.scheduler
        traffic = asked(model.limits.max_model_len)
        if device is None:
            models = latency_models(model, work.db, work.environment, progress=progress)
        else:
            founded = grounds_on(device, work.db).of(model)
            models = {key: each.model for key, each in founded.items()}
    ahead = release.async_scheduling and not arguments.no_async_scheduling
    overlapped = device is not None and ahead
    times = StepTimes(model, models, routing=arguments.routing, overlapped=overlapped)
    engine = Engine(
        kv_blocks=arguments.kv_blocks,
        block_size=work.configuration.options.block_size or 16,
        prefix_caching=not arguments.no_prefix_caching,
        long_prefill_token_threshold=arguments.long_prefill_token_threshold,
        async_scheduling=ahead,
        gpu_memory_utilization=_or(arguments.gpu_memory_utilization, release.memory_share),
    )
    gpu = None if device is None else device.name
    options = engine.options(model, gpu, seq_len=traffic.mean_len, is_halved=halved)
    server_ms = _or(arguments.server_ms, added_by_server_s(device) * 1e3)
    token_us = _or(arguments.token_us, tokenised_by_server_s(device) * 1e6)
    server = Server.adding(
        server_ms / 1e3,
        async_scheduling=options.async_scheduling,
        tokenise_s=token_us / 1e6,
        processes=release.server_processes(options.engines),
    )
    deployment = Deployment(times, options, server, arguments.replicas, arguments.router, scheduler)
    begin_s = time.perf_counter()
    simulated = joined(deployment.simulate(traffic, progress=_bar(len(traffic.requests))))
    search = time.perf_counter() - begin_s < _PATIENCE_S
    simulation = simulation_of(deployment, traffic, simulated, times.out_of_range())
    warn(simulation.out_of_range)
    title = f"{model.name} {'here' if device is None else f'on {device.name}'}"
    if png is not None:
        save_simulation(simulation.simulated, png, title=title)
    if out is not None:
        save_requests(simulation.simulated, out)
    document: dict[str, Any] = {"model": model.name, "device": gpu}
    document |= {"options": configuration.options.named, "seed": arguments.seed, "server_ms": server_ms}
    document |= {"token_us": token_us, "async_scheduling": options.async_scheduling}
    document |= {"release": None if arguments.release is None else str(release), "kv_cache_is_halved": halved}
    document |= {"replicas": arguments.replicas, "router": arguments.router}
    document |= {"num_kv_blocks": options.num_blocks, "block_size": options.block_size, **asdict(options.limits)}
    document |= {"gpu_memory_utilization": engine.gpu_memory_utilization}
    document |= {"state_blocks": options.state_blocks, "engines": options.engines}
    document |= simulation.summary(slo, search=search)
    document["overloaded"] = document["sustained_throughput"] is not None
    lines = [_served(document)]
    if device is not None:
        shares = {
            figure: shares_at(model, founded, batch, routing=arguments.routing, overlapped=overlapped)
            for figure, batch in steps_of(simulated, model.limits, options.engines).items()
        }
        if not document["overloaded"]:  # where a queue grows, how long it gets hangs on how long requests come
            mixture, at_once = is_mixture(model), traffic.num_at_once
            widths = {figure: log_width(figure, of, mixture=mixture, at_once=at_once) for figure, of in shares.items()}
            found = within(simulation, widths)
            document |= found.document() | {"may_overload": found.may_overload}
        document["shares"] = asdict(shares["tpot"])
        document["stand_in"] = stand_in(device, shares["tpot"])
        lines += format_steps(shares["ttft"], shares["tpot"], device)
    return Answer(document, [format_simulation(document, title=title), *lines, *_verdict(document)])


def _release(arguments: argparse.Namespace, device: Device | None) -> Release:
    """The release that is named, else the newest.

    Raises:
        ConfigurationError: it is none, or of an engine that is not simulated, or of no GPU.
    """
    if arguments.release is None:
        return NEWEST
    release = Release.parse(arguments.release)
    if device is None:
        raise ConfigurationError("--release is of a GPU that is not here: name it with --device, as in h100_sxm")
    if release.is_v0:
        raise ConfigurationError(
            f"vLLM {release} has an engine before V1, which schedules prompts and decodes apart and is not simulated: "
            "name 0.8 or newer"
        )
    return release


def _kept_as(
    release: Release, configuration: ModelConfiguration, device: Device | None
) -> tuple[ModelConfiguration, bool]:
    """What is served as the release keeps and reads keys and values; whether it keeps them in half of what it reads."""
    options = configuration.options
    dtype = release.kv_cache_dtype(options.kv_cache_dtype, configuration.document)
    halved = device is not None and release.attends_in_two_bytes(device.name, dtype)
    if dtype == options.kv_cache_dtype and not halved:
        return configuration, False
    return replace(configuration, options=replace(options, kv_cache_dtype="bfloat16" if halved else dtype)), halved


def _or(given: float | None, usual: float) -> float:
    return usual if given is None else given


def _served(document: Mapping[str, Any]) -> str:
    """One line on how the model was served."""
    ranks, replicas = document["options"].get("tensor_parallel_size", 1), document["replicas"]
    of_state = document["state_blocks"]
    state = f", {of_state:,} of which the states of a request take" if of_state else ""
    each = "" if replicas == 1 else f" each of {replicas} replicas ({document['router']}),"
    if document["engines"] > 1:
        each += f" each of {document['engines']} engines that share experts,"
    return (
        f"{_by_release(document)}tp {ranks},{each} up to {document['max_num_tokens']:,} tokens and "
        f"{document['max_num_seqs']:,} requests a step,\n{document['num_kv_blocks']:,} KV blocks of "
        f"{document['block_size']} tokens{state}; a server adds "
        f"{document['server_ms']:.3g} ms to a request and {document['token_us']:.3g} µs to a prompt's token"
    )


def _by_release(document: Mapping[str, Any]) -> str:
    """A line on what an older release does by default; nothing where none is named."""
    if document["release"] is None:
        return ""
    done = [f"{document['gpu_memory_utilization']:.0%} of the memory"]
    if not document["async_scheduling"]:
        done.append("a step is prepared when the one before has ended")
    if document["kv_cache_is_halved"]:
        done.append("attention over fp8 takes as long as over two bytes")
    elif document["options"].get("kv_cache_dtype") == "bfloat16":
        done.append("keys and values are kept in two bytes")
    return f"vLLM {document['release']}: {', '.join(done)}\n"


def _bar(number: int) -> Callable[[int], None]:
    """Writes how far a simulation has come, where that takes long enough for somebody to wonder."""
    start_s = time.perf_counter()

    def told(ended: int) -> None:
        if sys.stderr.isatty() and time.perf_counter() - start_s > _SILENT_S:
            sys.stderr.write(f"\rdooly: {ended:,} of {number:,} requests ({ended / number:.0%}) ")
            sys.stderr.flush()

    return told


def _verdict(document: dict[str, Any]) -> list[str]:
    """What a load beyond capacity comes to."""
    served, rate = document["sustained_throughput"], document["sustainable_rate"]
    if served is None and document.get("may_overload"):
        return [
            "",
            "near capacity: with steps as long as they may be by their interval, requests come faster than they are "
            "served",
        ]
    if served is None:
        return []
    found = (
        "no slower rate was searched for, since a simulation takes too long here"
        if rate is None
        else f"the same requests would be kept up with at about {rate:.3g}/s"
    )
    unsure = "" if document["device"] is None else "; no interval is stated of such a load"
    return [
        "",
        "OVERLOADED: requests come faster than they are served, so that the queue grows for as long as they do; "
        f"{served:.3g} requests/s were served, from the first to the last; {found}{unsure}",
    ]
