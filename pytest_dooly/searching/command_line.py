"""The command that deploys a candidate."""

from __future__ import annotations

import shlex

from pytest_dooly.core.configuration import ServingOptions
from pytest_dooly.searching.candidate import Candidate
from pytest_dooly.simulation.simulate import Engine

__all__ = ["vllm_serve"]

_BLOCK_SIZE = 16
"""Tokens of a KV block of vLLM by default, on GPUs."""


def vllm_serve(candidate: Candidate, options: ServingOptions, engine: Engine) -> str:
    """One replica of a candidate under `vllm serve`: what was searched, and what is not vLLM's default, is named.

    Source of the flags: `EngineArgs.add_cli_args` of vLLM 0.32.0 (vllm/engine/arg_utils.py).

    Args:
        candidate: that is deployed; its model stands as it was named.
        options: that are the same for all candidates.
        engine: how each engine schedules.
    """
    words = ["vllm", "serve", candidate.model, "--tensor-parallel-size", str(candidate.tensor_parallel_size)]
    if candidate.data_parallel_size > 1:
        words += ["--data-parallel-size", str(candidate.data_parallel_size)]
    if candidate.expert_parallel_size > 1:
        words.append("--enable-expert-parallel")
    words += ["--max-num-seqs", str(candidate.max_num_seqs)]
    words += ["--max-num-batched-tokens", str(candidate.max_num_tokens)]
    if candidate.kv_cache_dtype is not None:
        words += ["--kv-cache-dtype", candidate.kv_cache_dtype]
    words.append("--enable-prefix-caching" if candidate.prefix_caching else "--no-enable-prefix-caching")
    words += ["--gpu-memory-utilization", f"{engine.gpu_memory_utilization:g}"]
    if not engine.async_scheduling:
        words.append("--no-async-scheduling")
    if options.max_captured == 0:  # of which vLLM refuses 0
        words.append("--enforce-eager")
    block_size = options.block_size or (None if engine.block_size == _BLOCK_SIZE else engine.block_size)
    for flag, value in (
        ("--max-model-len", options.max_model_len),
        ("--quantization", options.quantization),
        ("--dtype", options.dtype),
        ("--block-size", block_size),
        ("--num-gpu-blocks-override", engine.kv_blocks),
        ("--attention-backend", options.attention_backend),
        ("--max-cudagraph-capture-size", options.max_captured or None),
        ("--long-prefill-token-threshold", engine.long_prefill_token_threshold or None),
        ("--scheduling-policy", "priority" if engine.priority else None),
    ):
        if value is not None:
            words += [flag, str(value)]
    return shlex.join(words)
