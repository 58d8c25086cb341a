"""The traffic that `dooly simulate` and `dooly search` are asked for: drawn from laws, or read from a file."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from pytest_dooly.cli.answer import progress
from pytest_dooly.core.traffic import Traffic
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.report.text import counted
from pytest_dooly.simulation.arrivals import AT_ONCE, Arrivals
from pytest_dooly.simulation.lengths import Lengths, PromptAndOutput
from pytest_dooly.simulation.synthetic import SharedPrefix, SyntheticTraffic
from pytest_dooly.simulation.traces import TraceOptions, read_trace

__all__ = ["traffic_asked"]


def traffic_asked(arguments: argparse.Namespace, rates: Arrivals | None) -> Callable[[int], Traffic]:
    """What the options ask for, a file's requests or synthetic ones, of at most so many tokens each.

    Args:
        arguments: with the options of traffic.
        rates: when requests arrive; None for the times of a file, or for a closed loop.

    Returns:
        What draws or reads it, once it is known how long a request may be; longer ones of a file are left out.

    Raises:
        ConfigurationError: the options do not go together.
    """
    if rates is None and arguments.arrivals is not None:
        raise ConfigurationError("--arrivals says how requests of a --rate come: drop it, or name one")
    if arguments.trace is not None:
        _refuse_beside_a_trace(arguments)
        return partial(_traced, arguments, rates)
    for name in ("trace_model", "trace_hash_tokens", "trace_time_unit"):
        if getattr(arguments, name) is not None:
            raise ConfigurationError(f"--{name.replace('_', '-')} says how a file is read: name it with --trace")
    if arguments.prompt is None:
        raise ConfigurationError("name the tokens of each prompt with --prompt, or a file with --trace")
    if rates is None and arguments.duration is not None:
        raise ConfigurationError("--duration goes with --rate: a closed loop ends with its --requests")
    if rates is None and arguments.concurrency is None:
        raise ConfigurationError("name a rate (--rate 8), a closed loop (--concurrency 8) or a file (--trace)")
    generated = "64" if arguments.output is None else arguments.output
    prompt, output = (_lengths(text, arguments.range_ratio) for text in (arguments.prompt, generated))
    prefix = None if arguments.shared_prefix is None else SharedPrefix.parse(arguments.shared_prefix)
    synthetic = SyntheticTraffic(
        rates or AT_ONCE, PromptAndOutput(prompt, output), prefix, concurrency=arguments.concurrency
    )
    requests = arguments.requests or (None if rates is not None else 10 * arguments.concurrency)
    return lambda _: synthetic.draw(arguments.seed, num_requests=requests, duration_s=arguments.duration)


def _traced(arguments: argparse.Namespace, rates: Arrivals | None, max_model_len: int) -> Traffic:
    """A file's requests, with what is to be said of them."""
    path = Path(arguments.trace)
    options = TraceOptions(
        limit=arguments.requests,
        max_model_len=max_model_len,
        model=arguments.trace_model,
        hash_tokens=arguments.trace_hash_tokens or 512,
        time_unit_s=arguments.trace_time_unit,
    )
    untimed = arguments.concurrency is not None
    file = read_trace(path, options, arrivals=rates, seed=arguments.seed, untimed=untimed)
    for reason, number in file.rejected.items():
        progress(f"{counted(number, 'request')} of {path} left out: {reason}")
    if file.late:
        progress(f"{counted(file.late, 'request')} of {path} with a time before the one above, sent right after it")
    number = len(file.traffic.requests)
    if arguments.requests is not None and number < arguments.requests:
        progress(f"{path} gives {counted(number, 'request')}, fewer than the {arguments.requests:,} of --requests")
    return _until(file.traffic.capped(arguments.concurrency), arguments.duration)


def _until(traffic: Traffic, duration_s: float | None) -> Traffic:
    """What arrives in so many seconds; all where it is None.

    Raises:
        ConfigurationError: there are sessions, whose later turns have no time of their own.
    """
    if duration_s is None:
        return traffic
    if any(request.follows is not None for request in traffic.requests):
        raise ConfigurationError("--duration does not cut sessions short: use --requests")
    return replace(traffic, requests=tuple(r for r in traffic.requests if r.arrival_s < duration_s))


def _refuse_beside_a_trace(arguments: argparse.Namespace) -> None:
    """Refuses what a file says itself.

    Raises:
        ConfigurationError: it is asked for beside the file.
    """
    for name in ("prompt", "output", "range_ratio", "shared_prefix"):
        if getattr(arguments, name) is not None:
            raise ConfigurationError(f"--{name.replace('_', '-')} does not go with --trace, whose file says it")


def _lengths(text: str, ratio: float | None) -> Lengths:
    lengths = Lengths.parse(text)
    if ratio is None:
        return lengths
    if lengths.only is None:
        raise ConfigurationError(f"--range-ratio goes with a number of tokens, not with {text!r}")
    return Lengths.below(lengths.only, ratio)
