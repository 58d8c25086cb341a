"""What commands work on, as their options name it: engine, model, latency DB, GPUs that are not here."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_dooly.cli.answer import progress
from pytest_dooly.cli.arguments import DB, serving_flags
from pytest_dooly.core.configuration import ModelConfiguration, ServingOptions, parse_options, resolve
from pytest_dooly.core.device import Device, device_named, served_on
from pytest_dooly.core.environment import CUDA_GRAPH, EAGER, Environment
from pytest_dooly.core.signature import ServedModel, attending_by
from pytest_dooly.engine import load_engine
from pytest_dooly.errors import ConfigurationError, DatabaseError
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.published.basis import Foundation
from pytest_dooly.published.grounds import Grounds
from pytest_dooly.serving import serve, serve_on

if TYPE_CHECKING:
    from pytest_dooly.engine.base import Engine  # torch, whose import load_engine speeds up

__all__ = ["OnDevice", "Opened", "grounds_on", "on_devices", "opened", "other_gpu"]


@dataclass(frozen=True)
class Opened:
    """An engine, a model's configuration and a latency DB.

    Attributes:
        engine: that is installed here.
        configuration: of the model.
        db: where latencies are.
        attention_backend: that GPUs which are not here are to use; None for the one that most is known of.
    """

    engine: Engine
    configuration: ModelConfiguration
    db: LatencyDB
    attention_backend: str | None = None

    @property
    def environment(self) -> Environment:
        """What latencies measured here are true for."""
        return self.engine.environment(self.configuration)

    def served(self, configuration: ModelConfiguration | None = None, *, device: Device | None = None) -> ServedModel:
        """The model's operations, or those of another configuration; with the limits of a GPU that is not here."""
        asked = configuration or self.configuration
        if device is None:
            model = serve(self.engine, asked, self.db, self.engine.environment(asked), progress=progress)
        else:
            model = serve_on(device, self.engine, asked, self.db, progress=progress)
        if self.attention_backend is not None:
            if all(each.signature.name != "attention" for each in model.operations):
                raise ConfigurationError(
                    f"nothing tells attention backends of {model.name} apart: leave --attention-backend out"
                )
            model = attending_by(model, self.attention_backend)
        return model if device is None else served_on(model, device, asked.options)


@dataclass(frozen=True)
class OnDevice:
    """Models on one GPU with one tensor-parallel size.

    Attributes:
        device: that serves them.
        ranks: tensor-parallel size.
        models: one rank of each.
        founded: of each model, the foundation of each operation by signature key.
    """

    device: Device
    ranks: int
    models: Sequence[ServedModel]
    founded: Sequence[Mapping[str, Foundation]]


@contextlib.contextmanager
def opened(arguments: argparse.Namespace, gpus: Sequence[Device] = ()) -> Iterator[Opened]:
    """What the options of serving and of the latency DB name.

    Args:
        arguments: of the command.
        gpus: that are not here, whose options they then are.
    """
    options, backend = parse_options(serving_flags(arguments)), None
    if gpus:
        options, backend = _of_gpus(arguments, options)
    configuration = resolve(arguments.model, options)
    path = Path(arguments.db)
    if arguments.command in _READERS and arguments.db != DB and not path.exists():
        gpu = (gpus[0].like or gpus[0].name) if gpus else "h200_sxm"
        raise DatabaseError(
            f"there is no latency DB at {path}: name one that there is, or make it with dooly import aiconfigurator "
            f"--system {gpu} --db {path} or pytest --dooly-model={arguments.model} --dooly-db={path}"
        )
    engine = load_engine(arguments.engine)
    with LatencyDB.open(path) as db:
        if backend is not None:
            _check_backend(backend, gpus, db)
        yield Opened(engine, configuration, db, backend)


_READERS = ("predict", "simulate", "search", "compare")
"""Commands that a latency DB which is named and not there is a mistake to, and none to be made."""


def _of_gpus(arguments: argparse.Namespace, options: ServingOptions) -> tuple[ServingOptions, str | None]:
    """Options as the engine here traces a model for other GPUs, and the attention backend that those are to use.

    Whether graphs are replayed and what computes attention changes no trace, and this machine might do neither. Graphs
    are replayed unless `eager` is named, which is to capture none.

    Raises:
        ConfigurationError: graphs are asked for and excluded.
    """
    if arguments.execution is not None:
        captured = 0 if options.execution == EAGER else options.max_captured
        if options.max_captured not in (None, captured) or (captured == 0 and options.execution == CUDA_GRAPH):
            raise ConfigurationError(
                f"--execution {options.execution} contradicts --max-cudagraph-capture-size {options.max_captured}: "
                "name one of them"
            )
        options = dataclasses.replace(options, execution=EAGER, max_captured=captured)
    return dataclasses.replace(options, attention_backend=None), options.attention_backend


def _check_backend(backend: str, gpus: Sequence[Device], db: LatencyDB) -> None:
    """Checks that something is known of attention by that backend on each GPU.

    Raises:
        ConfigurationError: there is not; names the backends that there are.
    """
    for gpu in gpus:
        known = Grounds(db, gpu).attention_backends
        if backend not in known:
            there = f"name {' or '.join(known)}, or none" if known else "leave --attention-backend out"
            raise ConfigurationError(f"nothing is known of attention by {backend} on {gpu.product}: {there}")


def other_gpu(arguments: argparse.Namespace) -> Device | None:
    """The GPU that is to be predicted for, taken out of the options that the engine here gets."""
    if arguments.device in (None, "cpu", "cuda"):
        return None
    device = device_named(arguments.device)
    arguments.device = None
    return device


def on_devices(arguments: argparse.Namespace) -> Iterator[OnDevice]:
    """Every device and tensor-parallel size asked for, with the models and the foundations of their operations.

    Raises:
        ConfigurationError: no device is named.
    """
    devices = [device_named(name) for name in arguments.device or ()]
    if not devices:
        raise ConfigurationError("name the GPUs with --device, as in --device h200_sxm")
    asked = [parse_options({"tp": size}).tensor_parallel_size for size in arguments.tensor_parallel_size or ["1"]]
    first = argparse.Namespace(**vars(arguments))
    first.model, first.device, first.tensor_parallel_size = arguments.model[0], None, str(asked[0])
    with opened(first, devices) as work:
        for device in devices:
            grounds = grounds_on(device, work.db)
            for ranks in asked:
                options = dataclasses.replace(work.configuration.options, tensor_parallel_size=ranks)
                models = [work.served(resolve(name, options), device=device) for name in arguments.model]
                yield OnDevice(device, ranks, models, [grounds.of(model) for model in models])


def grounds_on(device: Device, db: LatencyDB) -> Grounds:
    """What the latency DB knows of the device; says so where that is nothing."""
    grounds = Grounds(db, device, progress=progress)
    if grounds.empty:
        where = "" if str(db.path) == DB else f" --db {db.path}"
        like = "" if device.like is None else ", whose latencies stand in for it"
        progress(
            f"nothing of {device.product} is in the latency DB: every figure is an estimate; "
            f"run dooly import aiconfigurator --system {device.like or device.name}{where}{like}"
        )
    elif not grounds.has_own and grounds.stand_in is not None:
        progress(
            f"nothing of {device.product} is in the latency DB: latencies of {grounds.stand_in.device.product} "
            "stand in, scaled by both data sheets"
        )
    return grounds
