"""The shipped configurations have the published hyper-parameters, or those that our own are named after."""

from __future__ import annotations

import pytest

from pytest_dooly.core.configuration import aliases, resolve

PUBLISHED = {
    # alias: layers, hidden, heads, KV heads, intermediate, vocabulary, parameters in thousand millions
    "llama3": (32, 4096, 32, 8, 14336, 128256, 8.03),
    "llama3-70b": (80, 8192, 64, 8, 28672, 128256, 70.55),
    "llama3.2-1b": (16, 2048, 32, 8, 8192, 128256, 1.236),
    "mistral-7b": (32, 4096, 32, 8, 14336, 32768, 7.248),
    "qwen2.5-7b": (28, 3584, 28, 4, 18944, 152064, 7.616),
    "phi4": (40, 5120, 40, 10, 17920, 100352, 14.66),
    "gemma2-9b": (42, 3584, 16, 8, 14336, 256000, 9.242),
    "qwen2.5-32b": (64, 5120, 40, 8, 27648, 152064, 32.76),
    "qwen3-8b": (36, 4096, 32, 8, 12288, 151936, 8.19),
    "command-r7b": (32, 4096, 32, 8, 14336, 256000, 8.028),
    "llama-300m": (12, 1024, 16, 8, 2816, 32000, 0.2073),
    "qwen2-300m": (12, 896, 14, 2, 4864, 64000, 0.2363),
    "moe-300m": (12, 768, 12, 4, 1024, 32000, 0.2946),
}


@pytest.mark.parametrize("alias", PUBLISHED)
def test_sizes_and_parameter_count(alias: str) -> None:
    config = resolve(alias).document
    layers, hidden, heads, kv_heads, intermediate, vocabulary, billions = PUBLISHED[alias]
    assert config["num_hidden_layers"] == layers
    assert config["hidden_size"] == hidden
    assert config["num_attention_heads"] == heads
    assert config["num_key_value_heads"] == kv_heads
    assert config["intermediate_size"] == intermediate
    assert config["vocab_size"] == vocabulary
    head_dim = config.get("head_dim", hidden // heads)
    attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
    tied = config.get("tie_word_embeddings", config["model_type"] == "gemma2")
    experts = config.get("num_local_experts", 1)
    count = layers * (attention + experts * 3 * hidden * intermediate) + vocabulary * hidden * (1 if tied else 2)
    assert count / 1e9 == pytest.approx(billions, rel=0.01)


def test_every_alias_can_be_served() -> None:
    assert set(PUBLISHED) | {"llama-tiny"} <= set(aliases())
    for alias in aliases():
        document = resolve(alias).document
        assert document["architectures"][0].endswith("ForCausalLM")
        assert document["torch_dtype"] == "bfloat16"
