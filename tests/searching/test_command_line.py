"""The command of a candidate is one that vLLM takes."""

from __future__ import annotations

import dataclasses
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

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


def test_engines_that_share_experts_are_as_many() -> None:
    shared = dataclasses.replace(candidate(ranks=2), data_parallel_size=4, expert_parallel_size=8)
    command = vllm_serve(shared, ServingOptions(), Engine())
    assert "--tensor-parallel-size 2 --data-parallel-size 4 --enable-expert-parallel" in command


def test_what_was_simulated_and_is_not_vllm_s_default_is_named() -> None:
    options = ServingOptions(attention_backend="FLASHINFER", max_captured=0)
    engine = Engine(kv_blocks=900, block_size=32, priority=True, long_prefill_token_threshold=512)
    assert vllm_serve(candidate(), options, engine).endswith(
        " --enforce-eager --block-size 32 --num-gpu-blocks-override 900 --attention-backend FLASHINFER "
        "--long-prefill-token-threshold 512 --scheduling-policy priority"
    )
    captured = vllm_serve(candidate(), ServingOptions(max_captured=64), Engine())
    assert captured.endswith(" --max-cudagraph-capture-size 64")


def test_every_flag_is_one_of_vllm_s() -> None:
    """By the text of its parser: to import it takes seconds."""
    installed = find_spec("vllm")
    if installed is None or installed.origin is None:
        pytest.skip("vLLM is not installed")
    parser = (Path(installed.origin).parent / "engine/arg_utils.py").read_text()
    engine = Engine(900, 32, priority=True, long_prefill_token_threshold=512, async_scheduling=False)
    of = dataclasses.replace(OF, data_parallel_size=2)
    words = shlex.split(vllm_serve(of, dataclasses.replace(OPTIONS, attention_backend="FLASHINFER"), engine))
    flags = [word.replace("--no-", "--") for word in words if word.startswith("--")]
    assert [flag for flag in flags if f'"{flag}"' not in parser] == []


def test_a_name_with_a_blank_is_one_word() -> None:
    spaced = dataclasses.replace(candidate(), model="my models/llama")
    assert shlex.split(vllm_serve(spaced, ServingOptions(), Engine()))[2] == "my models/llama"
