"""What a row is a latency of: tables small and written by hand, against what traces give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.core.published_latency import PublishedLatency
from pytest_dooly.core.signature import Signature
from tests.published.aiconfigurator.rows import (
    ALL_REDUCE,
    ATTENTION,
    COLLECTIVE,
    GEMM,
    GROUPED_QUERIES,
    LATENT,
    LINEAR,
    MIXTURE,
    MOE,
    NCCL,
    only,
)


def test_a_linear_is_what_a_trace_gives(root: Path) -> None:
    assert only(root, "gemm_perf", GEMM) == PublishedLatency(
        Signature.from_json(LINEAR), SweepPoint(num_tokens=64), 2e-3, "torch.nn.functional.linear"
    )


@pytest.mark.parametrize(
    ("gemm_dtype", "method", "weight"),
    [
        ("fp8", "fp8", ["weight", "fp8_e4m3fn", [3072, 4096]]),
        ("fp8_block", "fp8_block", ["weight", "fp8_e4m3fn", [3072, 4096]]),
        ("nvfp4", "nvfp4", ["weight", "uint8", [3072, 2048]]),
        ("int8_wo", "int8", ["weight", "int8", [3072, 4096]]),
    ],
)
def test_the_dtype_of_a_linear_is_its_method_and_its_weights(
    root: Path, gemm_dtype: str, method: str, weight: list[Any]
) -> None:
    expected = {**LINEAR, "tensors": [LINEAR["tensors"][0], weight], "attributes": [["method", method]]}
    assert only(root, "gemm_perf", {**GEMM, "gemm_dtype": gemm_dtype}).signature == Signature.from_json(expected)


@pytest.mark.parametrize("name", ["context_attention_perf", "generation_attention_perf"])
@pytest.mark.parametrize(("isl", "step", "batch"), [(1, 511, "8x1+511"), (300, 0, "8x300"), (16, 64, "8x16+64")])
def test_attention_is_what_a_trace_gives_at_a_batch_of_equal_requests(
    root: Path, name: str, isl: int, step: int, batch: str
) -> None:
    assert only(root, name, {**ATTENTION, "isl": isl, "step": step}) == PublishedLatency(
        Signature.from_json(GROUPED_QUERIES), SweepPoint.parse(batch), 2e-3, "vllm_flash_attn_fa3"
    )


def test_a_window_and_an_fp8_cache_are_parts_of_attention(root: Path) -> None:
    row = {**ATTENTION, "window_size": 128, "kv_cache_dtype": "fp8", "kernel_source": "vllm_flashinfer_x"}
    signature = only(root, "context_attention_perf", row).signature
    assert dict(signature.attributes) == {
        **dict(Signature.from_json(GROUPED_QUERIES).attributes),
        "backend": "FLASHINFER",
        "kv_cache_dtype": "fp8",
        "sliding_window": 128,
    }
    assert [dtype for _, dtype, _ in signature.tensors] == ["bf16"] * 3 + ["fp8_e4m3fn"] * 2 + ["int32"]


def test_an_older_table_without_windows_has_none(root: Path) -> None:
    older = {name: value for name, value in ATTENTION.items() if name not in ("window_size", "attn_dtype")}
    older["kernel_source"] = "vllm_triton_attn"
    attributes = dict(only(root, "context_attention_perf", older).signature.attributes)
    assert attributes["backend"] == "TRITON_ATTN"
    assert "sliding_window" not in attributes


@pytest.mark.parametrize("name", ["mla_context_module_perf", "mla_generation_module_perf"])
def test_latent_attention_is_a_layer_with_the_sizes_of_its_model(root: Path, name: str) -> None:
    row = {**LATENT, "gemm_type": "fp8_block"}
    if name == "mla_generation_module_perf":
        del row["mla_dtype"]
    latency = only(root, name, row)
    assert (latency.signature.name, latency.point) == ("mla_layer", SweepPoint.parse("2x1+100"))
    assert latency.signature.tensors[:2] == (
        ("hidden_states", "bf16", ("num_tokens", 7168)),
        ("latents", "bf16", ("context_len + query_len", 576)),
    )
    assert dict(latency.signature.attributes) == {
        "backend": "FLASHMLA",
        "head_size": 576,
        "hidden_size": 7168,
        "kv_cache_dtype": "auto",
        "kv_lora_rank": 512,
        "method": "fp8_block",
        "num_heads": 16,
        "num_kv_heads": 1,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
    }


@pytest.mark.parametrize("name", ["dsa_context_module_perf", "dsa_generation_module_perf"])
def test_sparse_attention_is_a_layer_with_the_sizes_of_its_indexer(root: Path, name: str) -> None:
    folder = root / "model_configs"
    document = json.loads((folder / "deepseek-ai--DeepSeek-V3_config.json").read_text())
    document |= {"index_n_heads": 64, "index_head_dim": 128, "index_topk": 2048}
    (folder / "deepseek-ai--DeepSeek-V3.2_config.json").write_text(json.dumps(document))
    row = {**LATENT, "model": "deepseek-ai/DeepSeek-V3.2", "kernel_source": "FLASHMLA_SPARSE"}
    signature = only(root, name, row).signature
    assert (signature.name, signature.tensors[0]) == ("mla_layer", ("hidden_states", "bf16", ("num_tokens", 7168)))
    attributes = dict(signature.attributes)
    assert (attributes["sparse"], attributes["num_heads"]) == (True, 16)
    index = {name: size for name, size in attributes.items() if name.startswith("index")}
    assert index == {"index_head_size": 128, "index_heads": 64, "index_top_k": 2048}


def test_the_sizes_of_a_model_may_stand_in_its_text_config(root: Path) -> None:
    folder = root / "model_configs"
    text = (folder / "deepseek-ai--DeepSeek-V3_config.json").read_text()
    (folder / "moonshotai--Kimi_config.json").write_text(f'{{"text_config": {text}}}')
    signature = only(root, "mla_context_module_perf", {**LATENT, "model": "moonshotai/Kimi"}).signature
    assert signature == only(root, "mla_context_module_perf", LATENT).signature


def test_a_mixture_is_what_a_trace_gives(root: Path) -> None:
    assert only(root, "moe_perf", MOE) == PublishedLatency(
        Signature.from_json(MIXTURE), SweepPoint.parse("T128E8M32"), 2e-3, MOE["kernel_source"], "balanced"
    )


def test_a_rank_of_expert_parallelism_has_its_share_of_whole_experts(root: Path) -> None:
    latency = only(root, "moe_perf", {**MOE, "moe_tp_size": 1, "moe_ep_size": 4})
    assert dict(latency.signature.attributes)["num_local_experts"] == 2
    assert [shape for _, _, shape in latency.signature.tensors[3:]] == [(2, 28672, 4096), (2, 4096, 14336)]
    assert latency.point == SweepPoint.parse("T128E2M32")


@pytest.mark.parametrize(
    ("hidden", "inter", "kernel", "activation", "columns"),
    [
        (2880, 2880, "vllm_gptossmxfp4moe_triton", "swigluoai", 2 * 2880),
        (2688, 1856, "vllm_unquantizedfusedmoe_triton", "relu2_no_mul", 1856),
        (2688, 1856, "vllm_fused_moe", "silu", 2 * 1856),
        (2688, 2048, "vllm_unquantizedfusedmoe_triton", "silu", 2 * 2048),
    ],
)
def test_sizes_tell_the_activation_and_whether_experts_have_a_gate(
    root: Path, hidden: int, inter: int, kernel: str, activation: str, columns: int
) -> None:
    row = {**MOE, "hidden_size": hidden, "inter_size": inter, "moe_tp_size": 1, "kernel_source": kernel}
    signature = only(root, "moe_perf", row).signature
    assert dict(signature.attributes)["activation"] == activation
    assert signature.tensors[3][2] == (8, columns, hidden)


def test_an_all_reduce_counts_the_elements_of_each_rank(root: Path) -> None:
    expected = PublishedLatency(Signature.from_json(COLLECTIVE), SweepPoint.parse("T64"), 2e-3, "vLLM_custom_graph")
    assert only(root, "custom_allreduce_perf", ALL_REDUCE) == expected


@pytest.mark.parametrize(("name", "point"), [("all_reduce", "T64"), ("reduce_scatter", "T64"), ("all_gather", "T16")])
def test_an_all_gather_counts_what_all_ranks_gather_together(root: Path, name: str, point: str) -> None:
    expected = PublishedLatency(
        Signature.from_json({**COLLECTIVE, "name": name}), SweepPoint.parse(point), 2e-3, "NCCL"
    )
    assert only(root, "nccl_perf", {**NCCL, "op_name": name}) == expected
