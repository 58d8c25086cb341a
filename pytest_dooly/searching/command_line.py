"""The command that deploys a candidate."""

from __future__ import annotations

import shlex

from pytest_dooly.core.configuration import ServingOptions
from pytest_dooly.searching.candidate import Candidate
from pytest_dooly.simulation.simulate import Engine

__all__ = ["vllm_serve"]


def vllm_serve(candidate: Candidate, options: ServingOptions, engine: Engine) -> str:
    """One replica of a candidate under `vllm serve`, every option that was searched named.

    Args:
        candidate: that is deployed; its model stands as it was named.
        options: that are the same for all candidates.
        engine: how each engine schedules.
    """
    words = ["vllm", "serve", candidate.model, "--tensor-parallel-size", str(candidate.tensor_parallel_size)]
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
    for flag, value in (
        ("--max-model-len", options.max_model_len),
        ("--quantization", options.quantization),
        ("--dtype", options.dtype),
        ("--block-size", options.block_size),
        ("--max-cudagraph-capture-size", options.max_captured),
    ):
        if value is not None:
            words += [flag, str(value)]
    return shlex.join(words)
