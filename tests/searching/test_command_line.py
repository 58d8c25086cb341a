"""The command of a candidate is one that vLLM takes."""

from __future__ import annotations

import dataclasses
import shlex

from pytest_dooly.core.configuration import ServingOptions
from pytest_dooly.searching.command_line import vllm_serve
from pytest_dooly.simulation.simulate import Engine
from tests.searching.samples import candidate

OF = dataclasses.replace(candidate(ranks=4), expert_parallel_size=4, kv_cache_dtype="fp8", prefix_caching=False)
OPTIONS = ServingOptions(max_model_len=4096, quantization="fp8", dtype="bfloat16", block_size=32)
COMMAND = (
    "vllm serve small --tensor-parallel-size 4 --enable-expert-parallel --max-num-seqs 64 --max-num-batched-tokens "
    "2048 --kv-cache-dtype fp8 --no-enable-prefix-caching --gpu-memory-utilization 0.8 --no-async-scheduling "
    "--max-model-len 4096 --quantization fp8 --dtype bfloat16 --block-size 32"
)


def test_every_option_that_was_searched_is_named() -> None:
    assert vllm_serve(OF, OPTIONS, Engine(gpu_memory_utilization=0.8, async_scheduling=False)) == COMMAND
    plain = vllm_serve(candidate(), ServingOptions(), Engine())
    assert plain == (
        "vllm serve small --tensor-parallel-size 1 --max-num-seqs 64 --max-num-batched-tokens 2048 "
        "--enable-prefix-caching --gpu-memory-utilization 0.92"
    )


def test_a_name_with_a_blank_is_one_word() -> None:
    spaced = dataclasses.replace(candidate(), model="my models/llama")
    assert shlex.split(vllm_serve(spaced, ServingOptions(), Engine()))[2] == "my models/llama"
