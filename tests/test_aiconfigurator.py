"""Tables as the package has them, small and written by hand, and those of the package itself."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dooly import aiconfigurator
from pytest_dooly.aiconfigurator import PACKAGE, read_tables, systems
from pytest_dooly.batch import SweepPoint
from pytest_dooly.device import device_of
from pytest_dooly.environment import CUDA_GRAPH, EAGER
from pytest_dooly.errors import ConfigurationError, PublishedDataError
from pytest_dooly.published import PublishedLatency, PublishedTable
from pytest_dooly.signature import Signature

Row = Mapping[str, Any]

ROW: Row = {"framework": "VLLM", "version": "0.24.0", "device": "NVIDIA H200", "latency": 2.0}
GEMM: Row = {**ROW, "kernel_source": "torch.nn.functional.linear", "gemm_dtype": "bfloat16", "m": 64, "n": 3072}
GEMM = {**GEMM, "k": 4096}
ATTENTION: Row = {
    **ROW,
    "kernel_source": "vllm_flash_attn_fa3",
    "batch_size": 8,
    "isl": 1,
    "num_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "attn_dtype": "bfloat16",
    "kv_cache_dtype": "bfloat16",
    "step": 511,
    "window_size": 0,
}
LATENT: Row = {
    **ROW,
    "kernel_source": "FLASHMLA",
    "model": "deepseek-ai/DeepSeek-V3",
    "mla_dtype": "bfloat16",
    "kv_cache_dtype": "bfloat16",
    "gemm_type": "bfloat16",
    "num_heads": 16,
    "batch_size": 2,
    "isl": 1,
    "tp_size": 1,
    "step": 100,
}
MOE: Row = {
    **ROW,
    "kernel_source": "vllm_unquantizedfusedmoe_triton_tritonexperts",
    "moe_dtype": "bfloat16",
    "num_tokens": 128,
    "hidden_size": 4096,
    "inter_size": 14336,
    "topk": 2,
    "num_experts": 8,
    "moe_tp_size": 2,
    "moe_ep_size": 1,
    "distribution": "balanced",
}
ALL_REDUCE: Row = {**ROW, "kernel_source": "vLLM_custom_graph", "allreduce_dtype": "bfloat16", "num_gpus": 4}
ALL_REDUCE = {**ALL_REDUCE, "message_size": 8192}
NCCL: Row = {**ROW, "kernel_source": "NCCL", "op_name": "all_gather", "nccl_dtype": "half", "num_gpus": 4}
NCCL = {**NCCL, "message_size": 8192}

LINEAR = {
    "kind": "linear",
    "name": "linear",
    "tensors": [["input_", "bf16", ["num_tokens", 4096]], ["weight", "bf16", [3072, 4096]]],
    "attributes": [["method", "unquantized"]],
    "swept": "num_tokens",
}
"""As `dooly trace llama3 --tp 2 --json` gives the projection to queries, keys and values."""

GROUPED_QUERIES = {
    "kind": "attention",
    "name": "attention",
    "tensors": [
        ["query", "bf16", ["num_tokens", 2048]],
        ["key", "bf16", ["num_tokens", 512]],
        ["value", "bf16", ["num_tokens", 512]],
        ["keys", "bf16", ["context_len + query_len", 4, 128]],
        ["values", "bf16", ["context_len + query_len", 4, 128]],
        ["block_table", "int32", ["((context_len + query_len + 63) // 64)"]],
    ],
    "attributes": [
        ["backend", "FLASH_ATTN"],
        ["block_size", 64],
        ["head_size", 128],
        ["kv_cache_dtype", "auto"],
        ["num_heads", 16],
        ["num_kv_heads", 4],
    ],
    "swept": "batch",
}
"""As `dooly trace llama3 --tp 2 --block-size 64 --json` gives it, but for the backend, which is the machine's."""

MIXTURE = {
    "kind": "moe",
    "name": "fused_moe",
    "tensors": [
        ["hidden_states", "bf16", ["num_tokens", 4096]],
        ["router_logits", "bf16", ["num_tokens", 8]],
        ["expert_input", "bf16", ["tokens_per_expert", 4096]],
        ["routed_experts.w13_weight", "bf16", [8, 14336, 4096]],
        ["routed_experts.w2_weight", "bf16", [8, 4096, 7168]],
    ],
    "attributes": [
        ["activation", "silu"],
        ["method", "unquantized"],
        ["num_experts", 8],
        ["num_local_experts", 8],
        ["renormalize", True],
        ["scoring", "softmax"],
        ["top_k", 2],
    ],
    "swept": "routing",
}
"""As `dooly trace mixtral-8x7b --tp 2 --json` gives it."""

COLLECTIVE = {
    "kind": "collective",
    "name": "all_reduce",
    "tensors": [["arg0", "bf16", ["num_tokens", 128]]],
    "attributes": [["ranks", 4]],
    "swept": "num_tokens",
}
"""As a trace gives it for a hidden size of 128."""


def write(
    root: Path,
    name: str,
    rows: Sequence[Row] | pa.Table,
    *,
    system: str = "h200_sxm",
    engine: str = "vllm",
    version: str = "0.24.0",
) -> Path:
    path = root / "systems" / "data" / system / name.split("_")[0] / engine / version / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(list(rows)), path)
    return path


def read(root: Path, name: str, rows: Sequence[Row], *, engine: str = "vllm") -> PublishedTable:
    write(root, name, rows, engine=engine)
    (table,) = read_tables("h200_sxm", engine=engine, root=root)
    return table


def latencies(table: PublishedTable) -> list[PublishedLatency]:
    return [latency for rows in table.rows.values() for latency in rows]


def only(root: Path, name: str, row: Row) -> PublishedLatency:
    (latency,) = latencies(read(root, name, [row]))
    return latency


def left_out(root: Path, name: str, row: Row) -> str:
    table = read(root, name, [row])
    assert not table.num_rows
    ((reason, num_rows),) = table.unmapped.items()
    assert num_rows == 1
    return reason


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A package without tables, but with the config.json of one model."""
    (tmp_path / "systems" / "data").mkdir(parents=True)
    (tmp_path / "model_configs").mkdir()
    (tmp_path / "model_configs" / "deepseek-ai--DeepSeek-V3_config.json").write_text(
        '{"hidden_size": 7168, "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128,'
        ' "qk_rope_head_dim": 64, "v_head_dim": 128}'
    )
    return tmp_path


# What a row is a latency of


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


def test_collectives_of_nccl_come_with_every_engine(root: Path) -> None:
    write(root, "gemm_perf", [GEMM])
    write(root, "nccl_perf", [NCCL], engine="nccl", version="2.29.2")
    environments = [environment for table in read_tables("h200_sxm", root=root) for environment in table.rows]
    assert [(e.engine, e.engine_version, e.execution) for e in environments] == [
        ("vllm", "0.24.0", CUDA_GRAPH),
        ("nccl", "2.29.2", EAGER),
    ]


@pytest.mark.parametrize(
    ("name", "row", "execution"),
    [
        ("gemm_perf", GEMM, CUDA_GRAPH),
        ("gemm_perf", {**GEMM, "gemm_dtype": "fp8"}, CUDA_GRAPH),
        ("gemm_perf", {**GEMM, "gemm_dtype": "fp8_block"}, EAGER),
        ("gemm_perf", {**GEMM, "device": "Intel(R) Graphics"}, EAGER),
        ("custom_allreduce_perf", ALL_REDUCE, CUDA_GRAPH),
        ("custom_allreduce_perf", {**ALL_REDUCE, "kernel_source": "vLLM_custom_eager"}, EAGER),
        ("custom_allreduce_perf", {**ALL_REDUCE, "kernel_source": "SGLang_custom_eager"}, EAGER),
    ],
)
def test_what_was_replayed_and_what_the_host_launched_are_different_environments(
    root: Path, name: str, row: Row, execution: str
) -> None:
    (environment,) = read(root, name, [row]).rows
    assert environment.execution == execution
    assert (environment.device, environment.engine_version) == (row["device"], "0.24.0")


def test_blocks_of_fp8_are_replayed_by_another_engine(root: Path) -> None:
    (environment,) = read(root, "gemm_perf", [{**GEMM, "gemm_dtype": "fp8_block"}], engine="sglang").rows
    assert (environment.engine, environment.execution) == ("sglang", CUDA_GRAPH)


def test_a_table_is_split_by_environment_and_loses_nothing(root: Path) -> None:
    rows = [ALL_REDUCE, {**ALL_REDUCE, "kernel_source": "vLLM_custom_eager", "latency": 3.0}]
    table = read(root, "custom_allreduce_perf", rows)
    assert {e.execution: [row.latency_s for row in of] for e, of in table.rows.items()} == {
        CUDA_GRAPH: [2e-3],
        EAGER: [3e-3],
    }
    assert table.unmapped == {}


def test_a_source_says_package_file_and_content(root: Path) -> None:
    table = read(root, "gemm_perf", [GEMM])
    assert (table.source.package, table.source.licence) == (PACKAGE, "Apache-2.0")
    assert table.source.file == "h200_sxm/gemm/vllm/0.24.0/gemm_perf.parquet"
    assert read(root, "gemm_perf", [GEMM]).source == table.source
    assert read(root, "gemm_perf", [{**GEMM, "latency": 2.5}]).source.key != table.source.key


# What is left out


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("gemm_perf", {**GEMM, "gemm_dtype": "fp3"}, "gemm_dtype fp3 is unknown"),
        ("gemm_perf", {**GEMM, "latency": 0.0}, "the latency is no positive number"),
        ("gemm_perf", {**GEMM, "latency": -1.0}, "the latency is no positive number"),
        ("gemm_perf", {**GEMM, "latency": math.nan}, "the latency is no positive number"),
        ("gemm_perf", {**GEMM, "latency": math.inf}, "the latency is no positive number"),
        ("gemm_perf", {**GEMM, "m": 0}, "a m of 0"),
        ("context_attention_perf", {**ATTENTION, "step": -1}, "a step of -1"),
        ("context_attention_perf", {**ATTENTION, "num_key_value_heads": 0}, "a num_key_value_heads of 0"),
        ("context_attention_perf", {**ATTENTION, "num_heads": 6}, "query heads are no multiple of KV heads"),
        ("context_attention_perf", {**ATTENTION, "kernel_source": "new"}, "kernel new is no known attention backend's"),
        (
            "context_attention_perf",
            {**ATTENTION, "attn_dtype": "fp8"},
            "attn_dtype fp8: no operation of a trace says so",
        ),
        ("mla_context_module_perf", {**LATENT, "tp_size": 2}, "tp_size 2: the heads of a rank are not said"),
        ("mla_context_module_perf", {**LATENT, "gemm_type": "fp3"}, "gemm_type fp3 is unknown"),
        ("mla_context_module_perf", {**LATENT, "mla_dtype": "fp8"}, "mla_dtype fp8: no operation of a trace says so"),
        (
            "mla_context_module_perf",
            {**LATENT, "model": "a/b"},
            "the package has no config.json with the sizes of a/b",
        ),
        ("moe_perf", {**MOE, "moe_dtype": "fp3"}, "moe_dtype fp3 is unknown"),
        ("moe_perf", {**MOE, "moe_ep_size": 3}, "experts or their sizes do not divide by the ranks"),
        ("moe_perf", {**MOE, "moe_tp_size": 3}, "experts or their sizes do not divide by the ranks"),
        ("moe_perf", {**MOE, "topk": 9}, "a token goes to more experts than there are"),
        ("moe_perf", {**MOE, "distribution": "zipf_1.1"}, "distribution zipf_1.1 is unknown"),
        ("moe_perf", {**MOE, "distribution": "power_law_x"}, "distribution power_law_x is unknown"),
        ("moe_perf", {**MOE, "distribution": "power_law_1.0"}, "distribution power_law_1.0 is unknown"),
        ("custom_allreduce_perf", {**ALL_REDUCE, "allreduce_dtype": "float32"}, "float32 messages"),
        (
            "custom_allreduce_perf",
            {**ALL_REDUCE, "message_size": 100},
            "messages that are no multiple of 128 elements",
        ),
        ("nccl_perf", {**NCCL, "nccl_dtype": "int8"}, "int8 messages"),
        ("nccl_perf", {**NCCL, "message_size": 256}, "messages that are no multiple of 128 elements"),
        ("nccl_perf", {**NCCL, "message_size": 2}, "messages that are no multiple of 128 elements"),
        ("nccl_perf", {**NCCL, "op_name": "alltoall"}, "no operation of a trace is a alltoall"),
        ("kda_perf", ROW, "no operation of a trace is a kda_perf"),
    ],
)
def test_what_no_operation_stands_for_is_counted_with_its_reason(root: Path, name: str, row: Row, reason: str) -> None:
    assert left_out(root, name, row) == reason


@pytest.mark.parametrize("column", ["latency", "device", "kernel_source", "gemm_dtype", "m"])
def test_a_row_with_a_gap_is_counted_and_its_neighbour_kept(root: Path, column: str) -> None:
    table = read(root, "gemm_perf", [GEMM, {**GEMM, column: None}])
    assert table.num_rows == 1
    assert table.unmapped == {"a value is missing": 1}


def test_of_repeated_rows_the_mean_is_kept_and_the_others_counted(root: Path) -> None:
    other = {**GEMM, "m": 65, "latency": 9.0}
    table = read(root, "gemm_perf", [GEMM, {**GEMM, "latency": 4.0}, other, {**GEMM, "latency": 6.0}])
    assert [(str(row.point), row.latency_s) for row in latencies(table)] == [("T64", 4e-3), ("T65", 9e-3)]
    assert table.unmapped == {"the same operation, point and kernel again: the mean is kept": 2}


def test_rows_of_two_kernels_or_two_distributions_are_both_kept(root: Path) -> None:
    kernels = [GEMM, {**GEMM, "kernel_source": "cutlass"}]
    assert [row.kernel for row in latencies(read(root, "gemm_perf", kernels))] == [GEMM["kernel_source"], "cutlass"]
    skewed = [{**MOE, "distribution": f"power_law_{alpha}"} for alpha in (1.01, 1.2)]
    (root / "systems" / "data" / "h200_sxm" / "gemm" / "vllm" / "0.24.0" / "gemm_perf.parquet").unlink()
    assert [row.variant for row in latencies(read(root, "moe_perf", skewed))] == ["power_law_1.01", "power_law_1.2"]


# How tokens spread over experts


def evenly(num_tokens: int, experts: int, top_k: int) -> list[int]:
    """Tokens of each expert as `balanced_logits` of the collector spreads them, token by token."""
    stride, counts = math.ceil(experts / top_k), [0] * experts
    for token in range(num_tokens):
        first = token if num_tokens >= stride else token * stride / num_tokens
        for choice in range(top_k):
            counts[int((first + choice * stride) % experts)] += 1
    return counts


def in_turns(ranks: list[list[int]], steps: int, most: int, step: int) -> None:
    """`_round_robin_adjust_per_rank` of the collector: one token after the other, rank by rank."""
    while steps > 0:
        for counts in ranks:
            open_to = [i for i, count in enumerate(counts) if (count < most if step > 0 else count > 0)]
            if open_to and steps:
                counts[(min if step > 0 else max)(open_to, key=counts.__getitem__)] += step
                steps -= 1


def by_power_law(uniform: Sequence[float], num_tokens: int, top_k: int, ranks: int, alpha: float) -> list[int]:
    """Tokens of the fullest rank's experts as `_generate_power_law_distribution` of the collector spreads them."""
    experts, assigned = len(uniform), num_tokens * top_k
    low, high = (1, num_tokens * 0.8) if assigned > experts else (0.01, 2)
    law = 1 - alpha
    shares = [((high**law - low**law) * u + low**law) ** (1 / law) for u in uniform]
    rounded = [round(share / sum(shares) * assigned) for share in shares]
    over = sum(max(count - num_tokens, 0) for count in rounded)
    local = experts // ranks
    by_rank = [[min(count, num_tokens) for count in rounded[r * local : (r + 1) * local]] for r in range(ranks)]
    in_turns(by_rank, over, num_tokens, 1)
    lacking = assigned - sum(map(sum, by_rank))
    in_turns(by_rank, abs(lacking), num_tokens, 1 if lacking > 0 else -1)
    return max(by_rank, key=sum)


layers = st.sampled_from([(8, 2), (16, 1), (60, 4), (64, 6), (128, 8), (256, 8)]).flatmap(
    lambda sizes: st.tuples(
        st.just(sizes[0]), st.just(sizes[1]), st.sampled_from([r for r in (1, 2, 4, 8) if sizes[0] % r == 0])
    )
)
num_tokens = st.integers(1, 3000)


@given(num_tokens, layers)
def test_an_even_spread_is_exact(num_tokens: int, layer: tuple[int, int, int]) -> None:
    experts, top_k, ranks = layer
    counts = evenly(num_tokens, experts, top_k)[: experts // ranks]
    routing = aiconfigurator._routing(num_tokens, experts, top_k, ranks, None)
    assert (routing.activated, routing.busiest) == (sum(count > 0 for count in counts), max(counts))


@given(num_tokens, layers, st.sampled_from([1.01, 1.2, 0.6]))
def test_a_power_law_is_spread_as_the_collector_spreads_it(
    num_tokens: int, layer: tuple[int, int, int], alpha: float
) -> None:
    experts, top_k, ranks = layer
    counts = aiconfigurator._power_law(num_tokens, experts, top_k, ranks, alpha)
    draws = aiconfigurator._uniform(experts, round(alpha * 100))
    # A share within an error of rounding of a half may go either way, and the fullest of two ranks with it.
    alike = [
        sorted(by_power_law(list(draw), num_tokens, top_k, ranks, alpha)) == sorted(of)
        for draw, of in zip(draws, counts, strict=True)
    ]
    assert sum(alike) >= len(alike) - 1


@given(num_tokens, layers, st.sampled_from([None, 1.01, 1.2]))
def test_a_routing_is_the_same_again_and_within_what_is_possible(
    num_tokens: int, layer: tuple[int, int, int], alpha: float | None
) -> None:
    experts, top_k, ranks = layer
    routing = aiconfigurator._routing.__wrapped__(num_tokens, experts, top_k, ranks, alpha)
    assert routing == aiconfigurator._routing.__wrapped__(num_tokens, experts, top_k, ranks, alpha)
    assert 1 <= routing.activated <= min(experts // ranks, num_tokens * top_k)
    assert 1 <= routing.busiest <= num_tokens
    assert ranks > 1 or routing.activated * routing.busiest >= num_tokens * top_k - routing.busiest


@pytest.mark.parametrize("layer", [(8, 2, 1), (128, 8, 1), (128, 8, 8), (256, 8, 16)])
@pytest.mark.parametrize("alpha", [None, 1.01, 1.2])
def test_more_tokens_activate_no_fewer_experts_and_a_power_law_no_more_than_an_even_spread(
    layer: tuple[int, int, int], alpha: float | None
) -> None:
    sizes = [2**exponent for exponent in range(14)]
    routings = [aiconfigurator._routing(size, *layer, alpha) for size in sizes]
    assert all(np.diff([routing.activated for routing in routings]) >= 0)
    assert all(np.diff([routing.busiest for routing in routings]) >= 0)
    even = [aiconfigurator._routing(size, *layer, None) for size in sizes]
    assert all(one.busiest >= other.busiest for one, other in zip(routings, even, strict=True))


# Which files


def test_the_latest_version_of_each_kind_is_read_unless_one_is_named(root: Path) -> None:
    for version in ("0.9.0", "0.20.0", "0.24.0", "0.24.0rc2", "nightly"):
        write(root, "gemm_perf", [GEMM], version=version)
    write(root, "moe_perf", [MOE], version="0.9.0")
    read_ = [table.source.file for table in read_tables("h200_sxm", root=root)]
    assert read_ == ["h200_sxm/gemm/vllm/0.24.0/gemm_perf.parquet", "h200_sxm/moe/vllm/0.9.0/moe_perf.parquet"]
    (named,) = read_tables("h200_sxm", engine_version="0.24.0rc2", root=root)
    assert named.source.file == "h200_sxm/gemm/vllm/0.24.0rc2/gemm_perf.parquet"


def test_systems_are_those_with_tables(root: Path) -> None:
    write(root, "gemm_perf", [GEMM], system="l40s")
    write(root, "gemm_perf", [GEMM])
    (root / "systems" / "data" / "empty").mkdir()
    (root / "systems" / "data" / "README").write_text("none")
    assert systems(root) == ("h200_sxm", "l40s")


# Bad input


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"system": "h300"}, r"no tables of system 'h300': name one of h200_sxm$"),
        ({"engine": "tgi"}, r"no tables of engine 'tgi' on h200_sxm: name one of sglang, vllm$"),
        ({"engine_version": "9"}, r"no tables of vllm 9 on h200_sxm: name one of 0\.9\.0, 0\.24\.0$"),
    ],
)
def test_what_the_package_does_not_have_is_named_with_what_it_has(
    root: Path, asked: dict[str, str], message: str
) -> None:
    for version in ("0.24.0", "0.9.0"):
        write(root, "gemm_perf", [GEMM], version=version)
    write(root, "gemm_perf", [GEMM], engine="sglang")
    with pytest.raises(ConfigurationError, match=message):
        list(read_tables(**{"system": "h200_sxm", **asked}, root=root))


def refusal(root: Path) -> str:
    with pytest.raises(PublishedDataError) as raised:
        list(read_tables("h200_sxm", root=root))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_package_that_is_not_installed_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(PublishedDataError, match=r"not installed: run pip install 'pytest-dooly\[public-data\]'"):
        list(read_tables("h200_sxm"))
    with pytest.raises(PublishedDataError, match="not installed"):
        systems()


def test_another_copy_of_the_tables_has_no_version_where_the_package_is_not_installed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    assert read(root, "gemm_perf", [GEMM]).source.version == "unknown"


@pytest.mark.parametrize("folder", ["", "systems", "systems/data", "systems/data/h200_sxm/gemm/vllm/0.24.0"])
def test_a_directory_without_tables_is_said_to_have_none(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    assert f"has no tables under {tmp_path / 'systems' / 'data'}" in refusal(tmp_path)
    with pytest.raises(PublishedDataError, match="has no tables"):
        systems(tmp_path)


def test_a_missing_column_is_named(root: Path) -> None:
    write(root, "gemm_perf", [{name: value for name, value in GEMM.items() if name not in ("k", "device")}])
    assert "gemm_perf.parquet has no column device, k, only framework, version, latency, kernel_source" in refusal(root)


@pytest.mark.parametrize(
    ("column", "values", "type_"),
    [("m", ["many"], "string"), ("m", [1.5], "double"), ("latency", ["fast"], "string"), ("device", [[1]], "list")],
)
def test_a_column_of_another_type_is_named(root: Path, column: str, values: list[Any], type_: str) -> None:
    table = pa.Table.from_pylist([{**GEMM}]).drop_columns(column).append_column(column, pa.array(values))
    write(root, "gemm_perf", table)
    message = refusal(root)
    assert f"has {type_}" in message
    assert f"in its column {column} that cannot be read as " in message


def test_whole_numbers_may_be_written_as_fractions_or_narrow(root: Path) -> None:
    table = pa.Table.from_pylist([{**GEMM}])
    table = table.set_column(table.column_names.index("m"), "m", pa.array([64.0]))
    table = table.set_column(table.column_names.index("n"), "n", pa.array([3072], pa.int16()))
    write(root, "gemm_perf", table)
    (read_,) = read_tables("h200_sxm", root=root)
    assert latencies(read_)[0].signature == Signature.from_json(LINEAR)


@pytest.mark.parametrize("name", ["gemm_perf", "kda_perf"])
def test_a_table_without_rows_is_refused(root: Path, name: str) -> None:
    write(root, name, pa.Table.from_pylist([{**GEMM}]).slice(0, 0))
    assert f"{name}.parquet has no rows" in refusal(root)


@pytest.mark.parametrize("name", ["gemm_perf", "kda_perf"])
def test_a_truncated_file_is_refused(root: Path, name: str) -> None:
    path = write(root, name, [{**GEMM, "m": m} for m in range(1, 500)])
    content = path.read_bytes()
    for length in (0, 3, 8, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        assert f"{name}.parquet cannot be read as Parquet (" in refusal(root)


def test_a_file_of_another_kind_is_refused(root: Path) -> None:
    path = write(root, "gemm_perf", [GEMM])
    for content in (b"m,n,k\n1,2,3\n" * 100, b"PAR1" + bytes(1000) + b"PAR1"):
        path.write_bytes(content)
        assert "cannot be read as Parquet" in refusal(root)


def test_a_damaged_byte_is_refused_or_harmless(root: Path) -> None:
    path = write(root, "gemm_perf", [{**GEMM, "m": m} for m in range(1, 50)])
    content = path.read_bytes()
    refused = 0
    for place in range(0, len(content), 5):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        try:
            list(read_tables("h200_sxm", root=root))
        except PublishedDataError:
            refused += 1
    assert refused


def test_a_damaged_config_is_refused(root: Path) -> None:
    write(root, "mla_context_module_perf", [LATENT])
    (root / "model_configs" / "deepseek-ai--DeepSeek-V3_config.json").write_text('{"hidden_size": ')
    assert "deepseek-ai--DeepSeek-V3_config.json is no JSON" in refusal(root)


def test_a_config_without_latent_attention_has_no_sizes(root: Path) -> None:
    (root / "model_configs" / "deepseek-ai--DeepSeek-V3_config.json").write_text('{"hidden_size": 7168}')
    assert left_out(root, "mla_context_module_perf", LATENT).startswith("the package has no config.json with the sizes")


# The package itself


@pytest.fixture(scope="module", params=["a100_sxm", "h200_sxm"])
def published(request: pytest.FixtureRequest) -> list[PublishedTable]:
    return list(read_tables(request.param))


def test_no_row_of_the_package_is_dropped_silently(published: list[PublishedTable]) -> None:
    files = Path(str(importlib.metadata.distribution(PACKAGE).locate_file("aiconfigurator_core"))) / "systems" / "data"
    for table in published:
        in_file = pq.read_metadata(files / table.source.file).num_rows
        assert table.num_rows + sum(table.unmapped.values()) == in_file > 0, table.source.file
        assert all(reason and number > 0 for reason, number in table.unmapped.items())
        assert table.source.version == importlib.metadata.version(PACKAGE)


def test_every_kind_of_table_of_the_package_is_read(published: list[PublishedTable]) -> None:
    kept = {Path(table.source.file).stem for table in published if table.num_rows}
    usual = {"gemm_perf", "context_attention_perf", "generation_attention_perf", "moe_perf"}
    assert kept >= usual | {"custom_allreduce_perf", "nccl_perf"}
    assert sum(table.num_rows for table in published) > 25_000


def test_latencies_of_the_package_are_of_a_known_device_and_between_a_microsecond_and_a_minute(
    published: list[PublishedTable],
) -> None:
    for table in published:
        for environment, rows in table.rows.items():
            device = device_of(environment.device)
            assert device is not None
            assert table.source.file.startswith(device.name)
            assert all(1e-6 < row.latency_s < 60 for row in rows)
            assert len({(row.signature, row.point, row.kernel, row.variant) for row in rows}) == len(rows)


def test_the_systems_of_the_package_are_those_that_are_promised() -> None:
    assert set(systems()) >= {"h200_sxm", "h100_sxm", "a100_sxm", "b200_sxm", "l40s"}
