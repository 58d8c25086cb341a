"""Adapter of vLLM, tested with 0.26.0 and 0.32.0: both take the same paths."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from packaging.version import Version

from pytest_dooly.core.configuration import ModelConfiguration
from pytest_dooly.core.environment import CUDA_EVENT, CUDA_GRAPH, PERF_COUNTER, Environment
from pytest_dooly.core.signature import ModelOperation
from pytest_dooly.engine.accelerators import visible
from pytest_dooly.engine.base import Origins, Session, Skeleton, TrafficServer
from pytest_dooly.engine.vllm.absent_gpu import describe
from pytest_dooly.engine.vllm.arguments import GRAPHS, engine_arguments, engine_config, sizes_by_default
from pytest_dooly.engine.vllm.custom_code import read_as_data
from pytest_dooly.engine.vllm.device import (
    absent_gpu,
    between_layers,
    cpu_name,
    cuda_driver,
    device_of,
    permit_tiles,
    runs_here,
)
from pytest_dooly.engine.vllm.installation import check_import, installed_version, quiet
from pytest_dooly.engine.vllm.model_classes import classes_found_here
from pytest_dooly.engine.vllm.patches import without_weights
from pytest_dooly.engine.vllm.skeleton import VllmSkeleton, built
from pytest_dooly.engine.vllm.small import in_small, written
from pytest_dooly.errors import ConfigurationError, EngineError, UntestedEngineWarning
from pytest_dooly.scheduling.scheduler import Scheduler, SchedulerOptions

__all__ = ["VllmEngine"]

_TESTED = ("0.26.0", "0.32.0")
"""The oldest and the newest version that the adapter is tested with."""


class VllmEngine:
    """vLLM, run in this process so that its layers can be taken out of it."""

    name = "vllm"

    def __init__(self) -> None:
        self.version = installed_version()
        oldest, newest = (Version(version) for version in _TESTED)
        if not oldest <= Version(Version(self.version).base_version) <= newest:
            text = (
                f"vLLM {self.version} is outside of the tested range, {oldest} to {newest}: check what dooly says of it"
            )
            warnings.warn(text, UntestedEngineWarning, stacklevel=2)
        # In-process, or the layers live where we cannot reach them; offline, since nothing may be downloaded.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "CRITICAL")  # what goes wrong is raised
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        # Transformers warns of fields of a checkpoint that it does not know, as if the user could change them.
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        # The other runner, which a GPU gets, keeps no attention groups and samples by another kernel.
        os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")

    def environment(self, configuration: ModelConfiguration) -> Environment:
        """What latencies measured here are true for.

        Raises:
            ConfigurationError: the device has no graphs to replay.
        """
        cuda = device_of(configuration) == "cuda"
        execution = configuration.options.execution_on(device_of(configuration))
        absent = self.absent_device(configuration)
        return Environment(
            device=absent or (torch.cuda.get_device_name() if cuda else cpu_name()),
            device_count=configuration.options.tensor_parallel_size if cuda else torch.get_num_threads(),
            driver="none" if absent else cuda_driver() if cuda else torch.backends.cpu.get_cpu_capability(),
            engine=self.name,
            engine_version=self.version,
            torch_version=torch.__version__,
            clock=CUDA_EVENT if cuda else PERF_COUNTER,
            cache_mode="flushed" if execution == CUDA_GRAPH else "in_pass",
            execution=execution,
        )

    def absent_device(self, configuration: ModelConfiguration) -> str | None:
        """The GPU that is described to vLLM; see `Engine.absent_device`."""
        gpu = absent_gpu(configuration)
        return None if gpu is None else gpu.product

    def accelerators(self, configuration: ModelConfiguration) -> tuple[str, ...]:
        """What torch sees, which it asks the driver for without using a device; see `Engine.accelerators`."""
        return visible(torch.cuda.device_count) if device_of(configuration) == "cuda" else ()

    def prepare(self) -> None:
        """Imports vLLM; see `Engine.prepare`."""
        with quiet():
            check_import()

    @contextmanager
    def skeleton(self, configuration: ModelConfiguration, origins: Origins) -> Iterator[Skeleton]:
        """The model without weights; see `Engine.skeleton`."""
        gpu = absent_gpu(configuration)
        if gpu is not None:
            describe(gpu)
        with quiet():
            check_import()
            with classes_found_here(), read_as_data(configuration.document):
                config = engine_config(configuration)
                with without_weights(config, origins):
                    model = built(configuration, config, origins)
                    yield VllmSkeleton(model, config, between_layers=between_layers(configuration))

    @contextmanager
    def small(self, configuration: ModelConfiguration) -> Iterator[ModelConfiguration]:
        """A model of the same architecture in small; see `Engine.small`."""
        self._check_here(configuration)
        if configuration.directory is None:
            raise ConfigurationError(f"{configuration.name} has no config.json here to make a small model of")
        with quiet(), read_as_data(configuration.document):
            check_import()
            document = in_small(configuration.document, sizes_by_default(configuration))
        if not runs_here(document):
            del document["quantization_config"]
        options = replace(configuration.options, max_model_len=256, max_num_tokens=256, max_num_seqs=8)
        options = replace(options, tensor_parallel_size=1, expert_parallel_size=1, data_parallel_size=1)
        with written(document) as folder:
            yield ModelConfiguration(f"{configuration.name} in small", folder, options)

    def open(
        self, configuration: ModelConfiguration, *, isolating: Sequence[ModelOperation] = (), kv_tokens: int = 0
    ) -> Session:
        """A running engine; see `Engine.open`."""
        from pytest_dooly.engine.vllm.session import VllmSession

        self._check_here(configuration)
        options = configuration.options
        if options.num_ranks > 1:
            apart = f" and dp {options.data_parallel_size}" if options.data_parallel_size > 1 else ""
            raise EngineError(
                f"{configuration.name} with tp {options.tensor_parallel_size}{apart} can be traced and planned, not "
                "timed: one process is one rank"
            )
        arguments = engine_arguments(configuration)
        if not isolating and configuration.options.execution_on(device_of(configuration)) == CUDA_GRAPH:
            arguments |= GRAPHS
        with quiet():
            check_import()
            permit_tiles()
            with classes_found_here(), read_as_data(configuration.document):
                return VllmSession(configuration, arguments, isolating=isolating, kv_tokens=kv_tokens)

    def _check_here(self, configuration: ModelConfiguration) -> None:
        absent = self.absent_device(configuration)
        if absent is not None:
            raise EngineError(f"there is no {absent} here: what would run on it can be traced and predicted, not run")

    def scheduler(self, options: SchedulerOptions) -> Scheduler:
        """VLLM's own scheduler over virtual requests; see `Engine.scheduler`."""
        from pytest_dooly.engine.vllm.scheduler import VllmScheduler

        return VllmScheduler(options)

    def server(self, configuration: ModelConfiguration, *, port: int = 0) -> TrafficServer:
        """`vllm serve` and `vllm bench serve`; see `Engine.server`."""
        from pytest_dooly.engine.vllm.server import VllmServer

        self._check_here(configuration)
        with quiet():
            check_import()
            return VllmServer(configuration, port=port)
