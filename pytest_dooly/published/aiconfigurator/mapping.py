"""What the rows of aiconfigurator's tables stand for: signature and sweep point of one of our operations."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from pytest_dooly.core.batch import Batch, SweepPoint
from pytest_dooly.core.operation import OperationKind
from pytest_dooly.core.signature import Signature, TensorIdentity
from pytest_dooly.errors import PublishedDataError
from pytest_dooly.published.aiconfigurator.routings import routing_of

__all__ = [
    "MAPPING",
    "PACKAGE",
    "Latency",
    "Reader",
    "Row",
    "attention_signature",
    "collective_signature",
    "latent_signature",
    "linear_signature",
    "moe_signature",
    "readers",
]

PACKAGE = "aiconfigurator-core"

MAPPING = 3
"""Raised when a row becomes another operation or point, so that an import replaces what an older one has made."""

_BLOCK_SIZE = 64
"""Tokens in a KV-cache block of the collector."""

_MESSAGE = 128
"""Elements of the smallest published message: the columns of its rows."""

_METHODS: Mapping[str, tuple[str, str]] = {
    "bfloat16": ("unquantized", "bf16"),
    "fp8": ("fp8", "fp8_e4m3fn"),
    "fp8_block": ("fp8_block", "fp8_e4m3fn"),
    "nvfp4": ("nvfp4", "uint8"),
    "w4a16_mxfp4": ("gptossmxfp4", "uint8"),
    "w4a8_mxfp4_mxfp8": ("mxfp4_mxfp8", "uint8"),
    "int4_wo": ("int4", "uint8"),
    "int8_wo": ("int8", "int8"),
}
"""Method and dtype of the weights, by the package's word; two 4-bit weights are packed into a byte."""

_POWER_LAW = re.compile(r"power_law_(0\.\d+|1\.\d*[1-9]|[2-9]\.\d+)")
"""With its exponent, which is not 1."""

_ACTIVATIONS: Mapping[tuple[int, int], str] = {
    (1024, 2688): "relu2_no_mul",
    (2048, 5120): "relu2_no_mul",
    (2688, 1856): "relu2_no_mul",
    (2816, 704): "gelu_tanh",
    (2880, 2880): "swigluoai",
    (6144, 3072): "swigluoai",
}
"""Of experts, by hidden size and inner size, where it is no silu: three sizes of Nemotron, whose experts have no gate,
Gemma 4, GPT-OSS and MiniMax-M3. Source: `_resolve_moe_runtime_config` of the collector."""

_INDEXER = {"index_heads": "index_n_heads", "index_head_size": "index_head_dim", "index_top_k": "index_topk"}
"""Sizes of what chooses the tokens that sparse attention attends to, and what config.json calls them."""

Row = Any
"""A named tuple of one row's columns."""

Latency = tuple[Signature, SweepPoint, str, str]
"""Signature, point, kernel and variant of a row."""


@dataclass(frozen=True)
class Reader:
    """How the rows of one file become latencies.

    Attributes:
        columns: that the file must have, besides those of every file.
        latency: signature, point, kernel and variant of a row, or why there is none.
    """

    columns: tuple[str, ...]
    latency: Callable[[Row], Latency | str]


def readers(root: Path) -> Mapping[str, Reader]:
    """How to read each file, by its name."""
    request = ("batch_size", "isl", "step", "num_heads", "kv_cache_dtype")
    attention = (*request, "num_key_value_heads", "head_dim", "attn_dtype", "window_size")
    latent = (*request, "gemm_type", "mla_dtype", "model", "tp_size")
    experts = ("hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size")
    return {
        "gemm_perf": Reader(("gemm_dtype", "m", "n", "k"), _gemm),
        "context_attention_perf": Reader(attention, _attention),
        "generation_attention_perf": Reader(attention, _attention),
        "mla_context_module_perf": Reader(latent, partial(_latent_attention, root)),
        "mla_generation_module_perf": Reader(latent, partial(_latent_attention, root)),
        "dsa_context_module_perf": Reader(latent, partial(_latent_attention, root)),
        "dsa_generation_module_perf": Reader(latent, partial(_latent_attention, root)),
        "moe_perf": Reader((*experts, "moe_dtype", "num_tokens", "distribution"), _moe),
        "custom_allreduce_perf": Reader(("num_gpus", "message_size", "allreduce_dtype"), _all_reduce),
        "nccl_perf": Reader(("num_gpus", "message_size", "nccl_dtype", "op_name"), _nccl),
    }


def _gemm(row: Row) -> Latency | str:
    if row.gemm_dtype not in _METHODS:
        return f"gemm_dtype {row.gemm_dtype} is unknown"
    return linear_signature(row.gemm_dtype, row.n, row.k), _tokens(row.m), row.kernel_source, ""


def _attention(row: Row) -> Latency | str:
    backend = _backend(row.kernel_source)
    if backend is None:
        return f"kernel {row.kernel_source} is no known attention backend's"
    if row.attn_dtype != "bfloat16":
        return f"attn_dtype {row.attn_dtype}: no operation of a trace says so"
    if row.num_heads % row.num_key_value_heads:
        return "query heads are no multiple of KV heads"
    kv_cache_dtype = _kv_cache_dtype(row.kv_cache_dtype)
    signature = attention_signature(
        backend, row.num_heads, row.num_key_value_heads, row.head_dim, row.window_size, kv_cache_dtype
    )
    return signature, _batch(row.batch_size, row.isl, row.step), row.kernel_source, ""


def _latent_attention(root: Path, row: Row) -> Latency | str:
    if row.tp_size != 1:
        return f"tp_size {row.tp_size}: the heads of a rank are not said"
    if row.gemm_type not in _METHODS:
        return f"gemm_type {row.gemm_type} is unknown"
    if row.mla_dtype != "bfloat16":
        return f"mla_dtype {row.mla_dtype}: no operation of a trace says so"
    config = _config(root, row.model)
    if config is None:
        return f"the package has no config.json with the sizes of {row.model}"
    kv_cache_dtype = _kv_cache_dtype(row.kv_cache_dtype)
    signature = latent_signature(row.kernel_source, row.num_heads, row.gemm_type, kv_cache_dtype, config)
    return signature, _batch(row.batch_size, row.isl, row.step), row.kernel_source, ""


def _moe(row: Row) -> Latency | str:
    if row.moe_dtype not in _METHODS:
        return f"moe_dtype {row.moe_dtype} is unknown"
    if row.num_experts % row.moe_ep_size or row.inter_size % row.moe_tp_size:
        return "experts or their sizes do not divide by the ranks"
    if row.topk > row.num_experts:
        return "a token goes to more experts than there are"
    law = _POWER_LAW.fullmatch(row.distribution)
    if law is None and row.distribution != "balanced":
        return f"distribution {row.distribution} is unknown"
    local, inter = row.num_experts // row.moe_ep_size, row.inter_size // row.moe_tp_size
    activation = _ACTIVATIONS.get((row.hidden_size, row.inter_size), "silu")
    if row.kernel_source == "vllm_fused_moe":
        activation = "silu"
    signature = moe_signature(row.moe_dtype, activation, row.hidden_size, inter, row.topk, row.num_experts, local)
    routing = routing_of(row.num_tokens, row.num_experts, row.topk, row.moe_ep_size, float(law[1]) if law else None)
    return signature, SweepPoint(num_tokens=row.num_tokens, routing=routing), row.kernel_source, row.distribution


def _all_reduce(row: Row) -> Latency | str:
    return _collective("all_reduce", row.allreduce_dtype, row.num_gpus, row.message_size, row.kernel_source)


def _nccl(row: Row) -> Latency | str:
    if row.op_name not in ("all_reduce", "all_gather", "reduce_scatter"):
        return f"no operation of a trace is a {row.op_name}"
    # NCCL's tests count what all ranks gather together; a trace, what each puts in.
    elements = row.message_size // row.num_gpus if row.op_name == "all_gather" else row.message_size
    return _collective(row.op_name, row.nccl_dtype, row.num_gpus, elements, row.kernel_source)


def _collective(name: str, dtype: str, ranks: int, elements: int, kernel: str) -> Latency | str:
    if dtype not in ("bfloat16", "half"):
        return f"{dtype} messages"
    if elements < 1 or elements % _MESSAGE:
        return f"messages that are no multiple of {_MESSAGE} elements"
    return collective_signature(name, ranks), _tokens(elements // _MESSAGE), kernel, ""


def _packed(dtype: str, size: int) -> int:
    return size // 2 if dtype == "uint8" else size


def _backend(kernel: str) -> str | None:
    for prefix, backend in {
        "vllm_flash_attn": "FLASH_ATTN",
        "vllm_flashinfer": "FLASHINFER",
        "vllm_triton_attn": "TRITON_ATTN",
    }.items():
        if kernel.startswith(prefix):
            return backend
    return None


def _kv_cache_dtype(text: str) -> str:
    return "auto" if text == "bfloat16" else text


@cache
def _tokens(num_tokens: int) -> SweepPoint:
    return SweepPoint(num_tokens=num_tokens)


@cache
def _batch(num_reqs: int, query_len: int, context_len: int) -> SweepPoint:
    return SweepPoint(batch=Batch.uniform(num_reqs, query_len, context_len))


@cache
def linear_signature(gemm_dtype: str, n: int, k: int) -> Signature:
    """A product of (num_tokens, k) with the weight (n, k) in the package's `gemm_dtype`."""
    method, dtype = _METHODS[gemm_dtype]
    tensors = (("input_", "bf16", ("num_tokens", k)), ("weight", dtype, (n, _packed(dtype, k))))
    return Signature(OperationKind.LINEAR, "linear", tensors, (("method", method),), "num_tokens")


@cache
def attention_signature(
    backend: str, num_heads: int, num_kv_heads: int, head_size: int, window: int, kv_cache_dtype: str
) -> Signature:
    """Attention over the KV cache; a `window` of 0 tokens is none."""
    tensors = (
        ("query", "bf16", ("num_tokens", num_heads * head_size)),
        ("key", "bf16", ("num_tokens", num_kv_heads * head_size)),
        ("value", "bf16", ("num_tokens", num_kv_heads * head_size)),
        *_cached(("keys", "values"), kv_cache_dtype, (num_kv_heads, head_size)),
    )
    attributes: dict[str, str | int] = {
        "backend": backend,
        "block_size": _BLOCK_SIZE,
        "head_size": head_size,
        "kv_cache_dtype": kv_cache_dtype,
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
    }
    if window:
        attributes["sliding_window"] = window
    return Signature(OperationKind.ATTENTION, "attention", tensors, tuple(sorted(attributes.items())), "batch")


@cache
def latent_signature(
    backend: str, num_heads: int, gemm_dtype: str, kv_cache_dtype: str, config: tuple[tuple[str, int], ...]
) -> Signature:
    """The whole layer of latent attention: its linears, norms and rotary around what a trace calls mla_attention.

    With an indexer, which sizes of it in the config say, it is sparse.
    """
    sizes = dict(config)
    sparse = {"sparse": True} if "index_top_k" in sizes else {}
    tensors = (
        ("hidden_states", "bf16", ("num_tokens", sizes["hidden_size"])),
        *_cached(("latents",), kv_cache_dtype, (sizes["kv_lora_rank"] + sizes["qk_rope_head_dim"],)),
    )
    attributes: dict[str, str | int] = {
        **sizes,
        **sparse,
        "backend": backend,
        "head_size": sizes["kv_lora_rank"] + sizes["qk_rope_head_dim"],
        "kv_cache_dtype": kv_cache_dtype,
        "method": _METHODS[gemm_dtype][0],
        "num_heads": num_heads,
        "num_kv_heads": 1,
    }
    return Signature(OperationKind.ATTENTION, "mla_layer", tensors, tuple(sorted(attributes.items())), "batch")


def _cached(names: tuple[str, ...], kv_cache_dtype: str, shape: tuple[int, ...]) -> tuple[TensorIdentity, ...]:
    """Tensors of the KV cache, and the table of its blocks."""
    dtype = "bf16" if kv_cache_dtype == "auto" else "fp8_e4m3fn"
    blocks = f"((context_len + query_len + {_BLOCK_SIZE - 1}) // {_BLOCK_SIZE})"
    length = "context_len + query_len"
    caches: list[TensorIdentity] = [(name, dtype, (length, *shape)) for name in names]
    return *caches, ("block_table", "int32", (blocks,))


@cache
def _config(root: Path, model: str) -> tuple[tuple[str, int], ...] | None:
    """The sizes of a model's latent attention; None where the package ships no config.json that says them.

    Raises:
        PublishedDataError: the file is damaged.
    """
    path = root / "model_configs" / f"{model.replace('/', '--')}_config.json"
    if not path.is_file():
        return None
    try:
        document = json.loads(path.read_bytes())
    except ValueError as error:
        raise PublishedDataError(f"{path} is no JSON ({error}): install {PACKAGE} again") from error
    document = document.get("text_config", document)
    names = ("hidden_size", "kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    if not all(name in document for name in names):
        return None
    index = [(ours, document[theirs]) for ours, theirs in _INDEXER.items() if theirs in document]
    return tuple((name, int(size or 0)) for name, size in (*((name, document[name]) for name in names), *index))


@cache
def moe_signature(
    moe_dtype: str, activation: str, hidden: int, inter: int, top_k: int, experts: int, local: int
) -> Signature:
    """A mixture without shared experts, whose router's logits are given."""
    method, dtype = _METHODS[moe_dtype]
    columns = inter if activation.endswith("_no_mul") else 2 * inter
    tensors = (
        ("hidden_states", "bf16", ("num_tokens", hidden)),
        ("router_logits", "bf16", ("num_tokens", experts)),
        ("expert_input", "bf16", ("tokens_per_expert", hidden)),
        ("routed_experts.w13_weight", dtype, (local, columns, _packed(dtype, hidden))),
        ("routed_experts.w2_weight", dtype, (local, hidden, _packed(dtype, inter))),
    )
    attributes: dict[str, str | int | bool] = {
        "activation": activation,
        "method": method,
        "num_experts": experts,
        "num_local_experts": local,
        "renormalize": True,
        "scoring": "softmax",
        "top_k": top_k,
    }
    return Signature(OperationKind.MOE, "fused_moe", tensors, tuple(sorted(attributes.items())), "routing")


@cache
def collective_signature(name: str, ranks: int) -> Signature:
    """A collective of `ranks`, its message in rows of the smallest published one."""
    tensors = (("arg0", "bf16", ("num_tokens", _MESSAGE)),)
    return Signature(OperationKind.COLLECTIVE, name, tensors, (("ranks", ranks),), "num_tokens")
