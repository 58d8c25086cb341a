"""Arguments of vLLM that mean a configuration, and what vLLM makes of them: a configuration of its own, an engine."""

from __future__ import annotations

import math
from typing import Any

from pytest_dooly.core.batch import Limits
from pytest_dooly.core.configuration import ModelConfiguration
from pytest_dooly.engine.vllm.installation import installed_version
from pytest_dooly.engine.vllm.refusals import reason
from pytest_dooly.errors import ConfigurationError, EngineError, reason_of

__all__ = ["GRAPHS", "MOE_PRECISION", "engine_arguments", "engine_config", "limits_of", "sizes_by_default", "start"]

MOE_PRECISION = "dooly_moe_precision"
"""Key in vLLM's additional configuration: what experts are computed from, whatever their checkpoint says."""

GRAPHS = {"enforce_eager": False, "compilation_config": {"mode": 0, "cudagraph_mode": "FULL"}}
"""Arguments of an engine that replays CUDA graphs of the same kernels that it runs eagerly: nothing is compiled."""


def engine_arguments(configuration: ModelConfiguration) -> dict[str, Any]:
    """Arguments of vLLM's engine that mean the configuration, for tracing and for running alike."""
    options = configuration.options
    arguments: dict[str, Any] = {
        "model": str(configuration.directory or configuration.name),
        "skip_tokenizer_init": True,
        "load_format": "dummy",
        "allow_deprecated_quantization": True,
        # Compiled graphs fuse leaf layers into kernels that no layer can be timed for.
        "enforce_eager": True,
        # Scheduling that overlaps the device's work would be hidden behind it to an extent that no part shows alone.
        "async_scheduling": False,
        # Random prompts share no prefix; a cache hit would hide work that the prediction counts.
        "enable_prefix_caching": False,
        # Towers for images and sound are left out: requests here are text.
        "language_model_only": True,
        "dtype": options.dtype or "bfloat16",
        "tensor_parallel_size": options.tensor_parallel_size,
        "data_parallel_size": options.data_parallel_size,
        "enable_expert_parallel": options.expert_parallel_size > 1,
        "quantization": options.quantization,
        "block_size": options.block_size,
        "max_num_batched_tokens": options.max_num_tokens,
        "max_num_seqs": options.max_num_seqs,
        "max_model_len": options.max_model_len,
        "kv_cache_dtype": options.kv_cache_dtype,
        "attention_backend": options.attention_backend,
        # vLLM passes it on unread: how a GPU's kernels are chosen is an environment variable, and no CPU has them.
        "additional_config": options.moe_precision and {MOE_PRECISION: options.moe_precision},
    }
    return {name: value for name, value in arguments.items() if value is not None}


def engine_config(configuration: ModelConfiguration) -> Any:
    """VLLM's own configuration, as `vllm.LLM` would make it.

    Raises:
        ConfigurationError: vLLM refuses it.
    """
    from vllm.engine.arg_utils import EngineArgs
    from vllm.usage.usage_lib import UsageContext

    try:
        return EngineArgs(**engine_arguments(configuration)).create_engine_config(UsageContext.LLM_CLASS)
    except Exception as error:
        raise _refused(configuration, error) from error


def sizes_by_default(configuration: ModelConfiguration) -> dict[str, Any]:
    """Fields of the language model's configuration as vLLM reads it, those that config.json does not say included.

    Raises:
        ConfigurationError: vLLM refuses it.
    """
    from vllm.transformers_utils.config import get_config, get_hf_text_config

    try:
        known: dict[str, Any] = get_hf_text_config(get_config(str(configuration.directory), False)).to_dict()
    except Exception as error:
        raise _refused(configuration, error) from error
    return known


def limits_of(config: Any) -> Limits:
    """The engine's own bounds of a batch."""
    return Limits(
        max_num_tokens=int(config.scheduler_config.max_num_batched_tokens),
        max_num_seqs=int(config.scheduler_config.max_num_seqs),
        max_model_len=int(config.model_config.max_model_len),
    )


def start(arguments: dict[str, Any], kv_tokens: int) -> Any:
    """VLLM's engine, running in this process.

    Args:
        arguments: of `vllm.LLM`.
        kv_tokens: tokens that the KV cache must hold at once.

    Raises:
        EngineError: the engine does not start.
    """
    from vllm import LLM
    from vllm.engine.arg_utils import EngineArgs

    try:
        block_size = EngineArgs(**arguments).create_engine_config().cache_config.block_size
        max_len = arguments.get("max_model_len") or 0
        blocks = math.ceil(max(kv_tokens, max_len) / block_size) + arguments.get("max_num_seqs", 256) + 1
        # The number of blocks decides; the budget in bytes only has to pass vLLM's check of free memory.
        return LLM(**arguments, disable_log_stats=False, kv_cache_memory_bytes=2**30, num_gpu_blocks_override=blocks)
    except Exception as error:
        raise EngineError(f"vLLM does not start: {reason_of(error)}") from error


def _refused(configuration: ModelConfiguration, error: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"vLLM {installed_version()} refuses the configuration of {configuration.name}: {reason(error)}"
    )
