"""`dooly validate --traffic`: simulated traffic against the engine's own server and client."""

from __future__ import annotations

import argparse
import dataclasses

from pytest_dooly.cli.answer import FAILED, OK, UNDECIDED, Answer, progress, warn
from pytest_dooly.cli.opening import opened
from pytest_dooly.core.routing import UNIFORM
from pytest_dooly.core.traffic import Traffic
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.prediction.step_times import StepTimes
from pytest_dooly.prediction.validation import Verdict
from pytest_dooly.published.grounds import latency_models
from pytest_dooly.report.traffic_text import format_traffic_validation
from pytest_dooly.scheduling.clock import Server, Simulated, run
from pytest_dooly.scheduling.native import NativeScheduler
from pytest_dooly.simulation.arrivals import AT_ONCE
from pytest_dooly.simulation.lengths import Lengths, PromptAndOutput
from pytest_dooly.simulation.loads import PlannedLoad, planned
from pytest_dooly.simulation.synthetic import SharedPrefix, SyntheticTraffic
from pytest_dooly.validate_traffic import between
from pytest_dooly.validate_traffic import validate_traffic as measure

__all__ = ["STATUSES", "validate_traffic"]

STATUSES = {Verdict.MEETS: OK, Verdict.MISSES: FAILED, Verdict.UNDECIDED: UNDECIDED}
"""That the program exits with."""

_PROMPT, _OUTPUT, _PREFIX = 64, 32, "4x8x256"


def validate_traffic(arguments: argparse.Namespace) -> Answer:
    """How far means and tails of TTFT, TPOT and latency are off under load; into the latency DB."""
    law = _law(arguments)
    with opened(arguments) as work:
        model, environment = work.served(), work.environment
        server = work.engine.server(work.configuration, port=arguments.port)
        latencies = latency_models(model, work.db, environment, progress=progress)
        times = StepTimes(model, latencies, routing=UNIFORM)  # the server's weights are random

        def simulate(traffic: Traffic, between: Server) -> Simulated:
            return run(traffic, NativeScheduler(server.options), times, between)

        loads = planned(
            law,
            lambda traffic: simulate(traffic, between(0.0)),
            server.options.limits.max_num_seqs,
            rates=tuple(arguments.rate or ()),
            seconds=arguments.budget / arguments.repeats / (2 * len(arguments.rate or "123")),
            seed=arguments.seed,
            arrivals=arguments.arrivals,
        )
        progress(_announced(loads, arguments.repeats))
        progress(f"starting {work.engine.name} {work.engine.version} as a server")
        with server:
            validation = measure(
                server,
                simulate,
                loads,
                repeats=arguments.repeats,
                server_s=None if arguments.server_ms is None else arguments.server_ms / 1e3,
                seed=arguments.seed,
                progress=progress,
            )
        work.db.save_finding("traffic_validation", model.key, environment, validation.to_json())
    warn(times.out_of_range())
    verdict = validation.verdict()
    status = STATUSES[verdict]
    document = {
        "model": model.name,
        **validation.to_json(),
        "verdicts": [
            {**dataclasses.asdict(each), "passes": each.verdict is Verdict.MEETS, "verdict": each.verdict}
            for each in validation.verdicts()
        ],
        "num_kv_blocks": server.options.num_blocks,
        "block_size": server.options.block_size,
        **dataclasses.asdict(server.options.limits),
        "passed": verdict is Verdict.MEETS,
        "verdict": verdict,
        "status": status,
    }
    return Answer(document, [format_traffic_validation(validation)], status)


def _law(arguments: argparse.Namespace) -> SyntheticTraffic:
    """What requests are drawn from.

    Raises:
        ConfigurationError: options of a grid stand beside those of traffic, or there are several lengths.
    """
    for name in ("batch", "requests"):
        if getattr(arguments, name) is not None:
            raise ConfigurationError(f"--{name} does not go with --traffic: it is for a grid of workloads")
    prompt, output = (_lengths(arguments, *pair) for pair in (("prompt", _PROMPT), ("output", _OUTPUT)))
    prefix = SharedPrefix.parse(arguments.shared_prefix or _PREFIX)
    return SyntheticTraffic(AT_ONCE, PromptAndOutput(prompt, output), prefix)


def _lengths(arguments: argparse.Namespace, name: str, usual: int) -> Lengths:
    given = getattr(arguments, name) or [usual]
    if len(given) > 1:
        raise ConfigurationError(
            f"--traffic takes one --{name}, got {len(given)}: a number or a law, as in uniform:8,64"
        )
    return Lengths.parse(str(given[0]))


def _announced(loads: list[PlannedLoad], repeats: int) -> str:
    arriving_s = sum(load.traffic.requests[-1].arrival_s for load in loads)
    numbers = [len(load.traffic.requests) for load in loads]
    return (
        f"{len(loads)} loads of {min(numbers)} to {max(numbers)} requests: "
        f"about {repeats * arriving_s:.0f} s for {repeats} rounds"
    )
