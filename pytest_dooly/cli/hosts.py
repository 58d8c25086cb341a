"""`dooly export --for …`: files that other simulators read."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path

from pytest_dooly.cli.answer import Answer
from pytest_dooly.cli.opening import Opened, grounds_on, opened, other_gpu
from pytest_dooly.core.device import Device
from pytest_dooly.core.signature import ServedModel
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.hosts.backend import Backend
from pytest_dooly.hosts.dynamo import step_tables
from pytest_dooly.hosts.llm_d import fitted
from pytest_dooly.hosts.llmservingsim import write_bundle
from pytest_dooly.prediction.step_times import StepTimes
from pytest_dooly.regress.regressor import LatencyModel

__all__ = ["export_for"]

_FILES = {"dynamo": "step_times.npz", "llm-d": "latencies.yaml"}
"""What a simulator reads that takes one file, as it is called in a directory."""


def export_for(arguments: argparse.Namespace) -> Answer:
    """A model on a GPU, as the simulator that is named reads it."""
    if arguments.format is not None or arguments.environment is not None:
        raise ConfigurationError("--format and --environment go with all latencies, not with --for")
    if arguments.model is None:
        raise ConfigurationError(f"name the model, as in --for {arguments.host} llama3 --device h100_sxm")
    device = other_gpu(arguments)
    if device is None:
        raise ConfigurationError("name the GPU, as in --device h100_sxm")
    out = _directory(arguments.out) if arguments.host not in _FILES else _file(arguments.out, _FILES[arguments.host])
    with opened(arguments, [device]) as work:
        model = work.served(device=device)
        models = {key: each.model for key, each in grounds_on(device, work.db).of(model).items()}
    if arguments.host == "llmservingsim":
        return _bundle(out, work, device, model, models)
    backend = Backend(StepTimes(model, models, routing=arguments.routing, overlapped=True))
    if arguments.host == "dynamo":
        return _tables(out, backend)
    return _numbers(arguments, out, backend, device)


def _bundle(
    out: Path,
    work: Opened,
    device: Device,
    model: ServedModel,
    models: Mapping[str, LatencyModel],
) -> Answer:
    """Operator tables of LLMServingSim."""
    configuration = work.configuration
    written = write_bundle(
        model,
        models,
        out,
        name=configuration.name if configuration.directory is None else configuration.slug,
        device=device,
        ranks=configuration.options.tensor_parallel_size,
        engine_version=work.environment.engine_version,
        block_size=configuration.options.block_size or 16,
    )
    rows = ", ".join(f"{number:,} rows in {file}" for file, number in written.rows.items())
    lines = [f"{written.directory}: {rows}"]
    if written.left_out:
        lines.append(f"no layer of LLMServingSim stands for: {', '.join(written.left_out)}")
    document = {"directory": str(written.directory), "rows": dict(written.rows), "left_out": list(written.left_out)}
    return Answer(document, lines)


def _tables(path: Path, backend: Backend) -> Answer:
    """Step times of Dynamo's mocker."""
    tables = step_tables(backend)
    tables.write(path)
    points = {name: list(array.shape) for name, array in tables.arrays.items()}
    lines = [
        f"{path}: {len(tables.arrays['prefill_isl']):,} prefills, {tables.arrays['decode_itl'].size:,} decodes",
        f"steps with a prompt and decodes, of which it adds up what each takes alone, are off by {tables.mixed}",
    ]
    return Answer({"file": str(path), "arrays": points, "mixed": dataclasses.asdict(tables.mixed)}, lines)


def _numbers(arguments: argparse.Namespace, path: Path, backend: Backend, device: Device) -> Answer:
    """Numbers of llm-d-inference-sim."""
    numbers = fitted(backend, device, prompt_len=arguments.prompt, output_len=arguments.output)
    numbers.write(path)
    return Answer({"file": str(path), **dataclasses.asdict(numbers)}, [str(path), *numbers.lines])


def _file(out: str, name: str) -> Path:
    """The file that is meant: of that name in a directory."""
    path, suffix = Path(out), Path(name).suffix
    return path if path.suffix == suffix and not path.is_dir() else _directory(out, suffix) / name


def _directory(out: str, suffix: str = "") -> Path:
    """The directory that is meant.

    Args:
        out: as it was named.
        suffix: of the one kind of file that may be named in its place; empty for none.

    Raises:
        ConfigurationError: it is a file, or named like one.
    """
    path = Path(out)
    if path.is_file() or (path.suffix[1:].isalpha() and not path.is_dir()):  # `v1.2` is a directory, `a.txt` none
        wanted = f"a file that ends in {suffix}, or a directory" if suffix else "a directory"
        raise ConfigurationError(f"--out {out}: name {wanted}")
    return path
