"""What is served: operations from the latency DB where this version traced them before, else from a trace."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_dooly.core.environment import Environment
from pytest_dooly.core.operation import Coverage
from pytest_dooly.core.signature import ServedModel, data_parallel_size, experts_of, model_operations, served_key
from pytest_dooly.errors import ConfigurationError, DocumentError, TraceError
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.latency_db.findings import OPTIONS

if TYPE_CHECKING:
    from pytest_dooly.core.configuration import ModelConfiguration
    from pytest_dooly.core.device import Device
    from pytest_dooly.engine.base import Engine

__all__ = ["coverage_of", "serve", "serve_on"]


class _NothingSharedError(ConfigurationError):
    """Ranks are to share experts of which there are none, or too few, on whatever device."""


def serve(
    engine: Engine,
    configuration: ModelConfiguration,
    db: LatencyDB,
    environment: Environment,
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> ServedModel:
    """The configuration's operations: from the latency DB where this version traced it before, else from a trace.

    Args:
        engine: adapter of the serving engine.
        configuration: what is served.
        db: where traces are and go to.
        environment: what is installed.
        progress: called with a line before anything that takes seconds.

    Raises:
        ConfigurationError: the engine refuses the configuration, or engines are to share the experts of a dense model.
        TraceError: an operation or the architecture cannot be traced.
    """
    key = served_key(configuration, environment)
    model = db.load_model(key, environment)
    if model is None:
        progress(f"tracing {_named(configuration)}")
        from pytest_dooly.tracing.trace import trace

        traced, limits = trace(engine, configuration)
        model = ServedModel(key, configuration.name, traced.architecture, limits, model_operations(traced))
        engines, spread = configuration.options.data_parallel_size, configuration.options.expert_parallel_size
        fewest = min(filter(None, (experts_of(each.signature) for each in model.operations)), default=spread)
        if fewest < spread:
            raise _NothingSharedError(
                f"ep {spread} spreads the {fewest} experts of {configuration.name} over more ranks than there are "
                "experts: some would have none"
            )
        if data_parallel_size(model) != engines:
            raise _NothingSharedError(
                f"dp {engines} is for the experts of a mixture, which {configuration.name} has none of: its engines "
                f"share nothing, so simulate them as dooly simulate --replicas {engines}"
            )
        db.save_model(model, environment)
    if db.load_finding(OPTIONS, key, environment) is None:  # new, or traced before options were kept
        db.save_finding(OPTIONS, key, environment, configuration.options.to_json())
    return model


def _named(configuration: ModelConfiguration) -> str:
    """The model, with the ranks that it is traced for."""
    sizes = configuration.options.ranks.items()
    return " ".join([configuration.name, *(f"{flag} {size}" for flag, size in sizes if size > 1)])


def serve_on(
    device: Device,
    engine: Engine,
    configuration: ModelConfiguration,
    db: LatencyDB,
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> ServedModel:
    """The configuration's operations on a GPU that is not here: as traced here, else as that GPU runs them.

    Some architectures have kernels for GPUs alone, and the engine says so in words of its own.

    Args:
        device: that serves it.
        engine: as of `serve`, and so are the others.
        configuration: what is served.
        db: where traces are and go to.
        progress: called with a line before anything that takes seconds.

    Raises:
        ConfigurationError: the engine refuses the configuration, on that GPU too.
        TraceError: an operation or the architecture cannot be traced, as that GPU runs it neither.
    """
    try:
        return serve(engine, configuration, db, engine.environment(configuration), progress=progress)
    except _NothingSharedError:
        raise
    except (ConfigurationError, TraceError) as refusal:
        progress(f"{refusal}; trying what {device.product} would run")
        there = replace(configuration, options=replace(configuration.options, device=device.name))
        return serve(engine, there, db, engine.environment(there), progress=progress)


def coverage_of(
    engine: Engine,
    configuration: ModelConfiguration,
    model: ServedModel,
    db: LatencyDB,
    environment: Environment,
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> Coverage:
    """How much of a real forward pass the model's operations are: known from before, or counted now.

    Raises:
        EngineError: the engine cannot run a small model of the architecture here.
    """
    with suppress(DocumentError):  # counted again
        known = db.load_finding("coverage", model.key, environment)
        if known is not None:
            return Coverage.from_json(known)
    progress(f"running {model.architecture} in small, to count what the trace covers")
    from pytest_dooly.tracing.trace import cover

    coverage = cover(engine, configuration)
    db.save_finding("coverage", model.key, environment, coverage.to_json())
    return coverage
