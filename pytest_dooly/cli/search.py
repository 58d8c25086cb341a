"""`dooly search`: the cheapest way to serve a traffic under an SLO, on GPUs that need not be here."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytest_dooly.cli.answer import OK, UNMET, WRONG_USAGE, Answer, progress
from pytest_dooly.cli.opening import Opened, grounds_on, opened
from pytest_dooly.cli.traffic import traffic_asked
from pytest_dooly.core.configuration import ServingOptions, resolve
from pytest_dooly.core.device import device_named
from pytest_dooly.errors import ConfigurationError, TraceError, WorkerError
from pytest_dooly.published.estimate import SERVER_S, TOKENISE_S
from pytest_dooly.report.figure import png_path
from pytest_dooly.report.search_report import format_explanation, format_search, save_search, search_document
from pytest_dooly.searching.candidate import Grid
from pytest_dooly.searching.cost import check_prices, parse_prices
from pytest_dooly.searching.evaluate import Question
from pytest_dooly.searching.objective import Objective
from pytest_dooly.searching.search import searched
from pytest_dooly.searching.study import Finished, Traced
from pytest_dooly.simulation.arrivals import Arrivals
from pytest_dooly.simulation.simulate import Engine

__all__ = ["search"]

_AXES = ("tensor_parallel_size", "expert_parallel_size", "data_parallel_size", "max_num_seqs", "max_num_tokens")
"""Options of which several whole numbers are taken."""

_FLAGS = {field.name: field.metadata["flag"] for field in dataclasses.fields(ServingOptions)}


def search(arguments: argparse.Namespace) -> Answer:
    """Every candidate's goodput, and what the best cost."""
    png = None if arguments.png is None else png_path(arguments.png)
    objective = Objective.parse(arguments.slo)
    prices = {} if arguments.price is None else parse_prices(arguments.price)
    grid = _grid(arguments)
    check_prices(prices, grid.devices)
    gpus = [device_named(name) for name in grid.devices]
    asked = traffic_asked(arguments, _rates(arguments))
    with opened(_first(arguments, grid), gpus) as work:
        traced, refused = _traced(work, grid)
        longest = min(each.model.limits.max_model_len for each in traced)
        traffic = asked(longest)
        server_s = SERVER_S if arguments.server_ms is None else arguments.server_ms / 1e3
        engine = Engine(
            kv_blocks=arguments.kv_blocks,
            block_size=work.configuration.options.block_size or 16,
            async_scheduling=not arguments.no_async_scheduling,
            gpu_memory_utilization=arguments.gpu_memory_utilization,
        )
        tokenise_s = TOKENISE_S if arguments.token_us is None else arguments.token_us / 1e6
        question = Question(traffic, objective, engine, server_s, tokenise_s, arguments.tolerance, arguments.routing)
        for gpu in gpus:  # says which are estimates, once the options are known to be right
            grounds_on(gpu, work.db)
        try:
            found = searched(
                grid,
                traced,
                question,
                work.db,
                Path(arguments.db),
                prices=prices,
                rate=arguments.rate,
                trials=arguments.trials,
                jobs=arguments.jobs,
                ray=arguments.ray,
                progress=_bar,
            )
        except KeyboardInterrupt:
            raise WorkerError("interrupted: run the same again to go on; what is finished is kept") from None
        options = dataclasses.replace(found.options, attention_backend=work.attention_backend)
        found = dataclasses.replace(found, options=options)
    if png is not None:
        save_search(found, png)
    status = OK if found.ranked else UNMET
    document = search_document(found) | {"left_out": refused}
    table = Answer(document, [format_search(found, top=arguments.top)], status)
    line: int | None = arguments.explain
    if line is None:
        return table
    if not found.ranked:
        return dataclasses.replace(table, complaint=f"--explain {line}: there is no candidate to explain")
    if line > len(found.ranked):
        lines = "there is line 1 alone" if len(found.ranked) == 1 else f"name a line from 1 to {len(found.ranked)}"
        return dataclasses.replace(table, status=WRONG_USAGE, complaint=f"--explain {line}: {lines}")
    ranked = found.ranked[line - 1]
    return Answer(ranked.to_json(), [format_explanation(ranked, objective)], status)


def _grid(arguments: argparse.Namespace) -> Grid:
    """The values of each option of which several are taken.

    Raises:
        ConfigurationError: no device is named, or one is unknown, or a number cannot be read.
    """
    if not arguments.device:
        raise ConfigurationError("name the GPUs with --device, as in --device h100_sxm h200_sxm")
    numbers: dict[str, list[Any]] = {}
    for field in _AXES:
        texts: Sequence[str] = getattr(arguments, field) or []
        numbers[field] = [_number(_FLAGS[field], text) for text in texts]
    return Grid(
        arguments.model,
        [device_named(name).name for name in arguments.device],
        numbers["tensor_parallel_size"] or [1],
        numbers["expert_parallel_size"] or [1],
        [None if dtype == "auto" else dtype for dtype in arguments.kv_cache_dtype or ["auto"]],
        numbers["max_num_seqs"] or [None],
        numbers["max_num_tokens"] or [None],
        [each == "on" for each in arguments.prefix_caching],
        numbers["data_parallel_size"] or [1],
    )


def _number(flag: str, text: str) -> int:
    """A whole number above 0, with the message of the other commands where it is none."""
    try:
        value = int(text)
    except ValueError:
        raise ConfigurationError(f"{flag} must be a whole number, got {text!r}") from None
    if value < 1:
        raise ConfigurationError(f"{flag} must be at least 1, got {value}")
    return value


def _first(arguments: argparse.Namespace, grid: Grid) -> argparse.Namespace:
    """The options of the engine that are the same for all."""
    first = argparse.Namespace(**vars(arguments))
    first.model, first.device = grid.models[0], None
    for field in (*_AXES, "kv_cache_dtype"):
        setattr(first, field, None)
    return first


def _traced(work: Opened, grid: Grid) -> tuple[list[Traced], list[str]]:
    """Every model with the options of each trace, and what the engine refuses, which is said and left out.

    Raises:
        ConfigurationError: it refuses all.
    """
    traced, refused = [], grid.unused()
    for name, options in grid.options(work.configuration.options):
        try:
            traced.append(Traced(name, options, work.served(resolve(name, options))))
        except (ConfigurationError, TraceError) as error:
            refused.append(f"{_named(name, options)}: {error}")
    if not traced:
        raise ConfigurationError(f"nothing can be served: {refused[0]}")
    for line in refused:
        progress(f"left out: {line}")
    return traced, refused


def _named(name: str, options: ServingOptions) -> str:
    return " ".join([name, *(f"--{_FLAGS[field]} {value}" for field, value in options.named.items())])


def _rates(arguments: argparse.Namespace) -> Arrivals | None:
    """A rate that stands for any; a file's own times."""
    return Arrivals.parse("1", arguments.arrivals) if arguments.trace is None else None


def _bar(finished: Finished) -> None:
    """Writes how far the search has come; on a terminal on one line."""
    line = f"dooly: {finished.done:,} of {finished.total:,} candidates"
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{line} ")
    elif finished.done % _EVERY == 0:
        sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


_EVERY = 20
"""Candidates between two lines of progress in a file."""
