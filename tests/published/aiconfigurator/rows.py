"""Rows as the tables of aiconfigurator-core have them, and how tests write and read them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pytest_dooly.core.published_latency import PublishedLatency, PublishedTable
from pytest_dooly.published.aiconfigurator import read_tables

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
