"""Signatures as traces of real models on a CPU give them; a device whose numbers are easy to work with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.core.device import Device
from pytest_dooly.core.environment import CUDA_EVENT, CUDA_GRAPH, REPEATED, UNKNOWN, Environment
from pytest_dooly.core.operation import OperationKind
from pytest_dooly.core.published_latency import PublishedLatency, PublishedTable, Source
from pytest_dooly.core.signature import Signature

DEVICE = Device("toy", "Toy GPU", 100, 1e10, 1e12, 1e14, 1e13, 1e11)
"""10 GB at 1 TB/s, 100 TFLOP/s, 100 GB/s between GPUs."""


def linear(n: int, k: int, method: str = "unquantized", dtype: str = "bf16", input_dtype: str = "bf16") -> Signature:
    tensors = (("input_", input_dtype, ("num_tokens", k)), ("weight", dtype, (n, k)))
    return Signature(OperationKind.LINEAR, "linear", tensors, (("method", method),), "num_tokens")


TIMED, KNOWN, BETWEEN = linear(1024, 1024), linear(2048, 1024), linear(3072, 1536)
"""By us; by others; by nobody, between sizes that others have."""


def attention(heads: int, kv_heads: int, size: int, *, window: int = 0, backend: str = "CPU_ATTN") -> Signature:
    attributes: dict[str, str | int] = {
        "backend": backend,
        "block_size": 128,
        "head_size": size,
        "kv_cache_dtype": "auto",
        "num_heads": heads,
        "num_kv_heads": kv_heads,
    }
    if window:
        attributes |= {"sinks": True, "sliding_window": window}
    tensors = (
        ("query", "bf16", ("num_tokens", heads * size)),
        ("key", "bf16", ("num_tokens", kv_heads * size)),
        ("value", "bf16", ("num_tokens", kv_heads * size)),
        ("keys", "bf16", ("context_len + query_len", kv_heads, size)),
        ("values", "bf16", ("context_len + query_len", kv_heads, size)),
        ("block_table", "int32", ("((context_len + query_len + 127) // 128)",)),
    )
    return Signature(OperationKind.ATTENTION, "attention", tensors, tuple(sorted(attributes.items())), "batch")


def collective(name: str, columns: int, ranks: int, swept: str = "num_tokens") -> Signature:
    shape = (swept, columns) if columns > 1 else (swept,)
    return Signature(
        OperationKind.COLLECTIVE,
        name,
        (("arg0", "bf16", shape),),
        (("ranks", ranks),),
        swept,  # type: ignore[arg-type]
    )


LOGITS = Signature(
    OperationKind.LOGITS,
    "logits",
    (("hidden_states", "bf16", ("num_reqs", 4096)), ("weight", "bf16", (32064, 4096))),
    (),
    "num_reqs",
)
EMBEDDING = Signature(
    OperationKind.EMBEDDING,
    "embedding",
    (("input_", "int64", ("num_tokens",)), ("weight", "bf16", (32064, 4096))),
    (),
    "num_tokens",
)
NORM = Signature(
    OperationKind.NORM,
    "rms_norm",
    (("x", "bf16", ("num_tokens", 4096)), ("weight", "bf16", (4096,))),
    (("dispatch", "forward_cpu"),),
    "num_tokens",
)
MAMBA = Signature(
    OperationKind.MIXER,
    "mamba_mixer2",
    (
        ("hidden_states", "bf16", ("num_tokens", 2688)),
        ("state0", "bf16", (3, 3072)),
        ("state1", "fp32", (32, 64, 128)),
        ("A", "fp32", (32,)),
        ("conv1d.weight", "bf16", (3072, 1, 4)),
        ("in_proj.weight", "bf16", (5152, 2688)),
        ("out_proj.weight", "bf16", (2688, 2048)),
    ),
    (("activation", "silu"), ("num_heads", 64)),
    "batch",
)
"""Of Nemotron 3 Nano on one of two ranks."""

MIXTRAL_MOE = Signature(
    OperationKind.MOE,
    "fused_moe",
    (
        ("hidden_states", "bf16", ("num_tokens", 4096)),
        ("router_logits", "bf16", ("num_tokens", 8)),
        ("expert_input", "bf16", ("tokens_per_expert", 4096)),
        ("routed_experts.w13_weight", "bf16", (8, 14336, 4096)),
        ("routed_experts.w2_weight", "bf16", (8, 4096, 7168)),
    ),
    (
        ("activation", "silu"),
        ("method", "unquantized"),
        ("num_experts", 8),
        ("num_local_experts", 8),
        ("renormalize", True),
        ("scoring", "softmax"),
        ("top_k", 2),
    ),
    "routing",
)
"""mixtral-8x7b with 2 ranks."""

DEEPSEEK_MOE = Signature(
    OperationKind.MOE,
    "fused_moe",
    (
        ("hidden_states", "bf16", ("num_tokens", 2048)),
        ("router_logits", "bf16", ("num_tokens", 2048)),
        ("expert_input", "bf16", ("tokens_per_expert", 2048)),
        ("gate.weight", "bf16", (64, 2048)),
        ("routed_experts.w13_weight", "bf16", (64, 2816, 2048)),
        ("routed_experts.w2_weight", "bf16", (64, 2048, 1408)),
        ("_shared_experts._layer.gate_up_proj.weight", "bf16", (5632, 2048)),
        ("_shared_experts._layer.down_proj.weight", "bf16", (2048, 2816)),
    ),
    (
        ("activation", "silu"),
        ("expert_groups", 1),
        ("groups_chosen", 1),
        ("method", "unquantized"),
        ("num_experts", 64),
        ("num_local_experts", 64),
        ("renormalize", False),
        ("scoring", "softmax"),
        ("top_k", 6),
    ),
    "routing",
)
"""deepseek-v2-lite, whose operation runs the router and the shared experts too."""

DEEPSEEK_ATTENTION = Signature(
    OperationKind.ATTENTION,
    "mla_attention",
    (
        ("q", "bf16", ("num_tokens", 16, 192)),
        ("kv_c_normed", "bf16", ("num_tokens", 512)),
        ("k_pe", "bf16", ("num_tokens", 1, 64)),
        ("latents", "bf16", ("context_len + query_len", 576)),
        ("block_table", "int32", ("((context_len + query_len + 15) // 16)",)),
        ("kv_b_proj.weight", "bf16", (4096, 512)),
    ),
    (
        ("backend", "CPU_MLA"),
        ("block_size", 16),
        ("head_size", 576),
        ("kv_cache_dtype", "auto"),
        ("kv_lora_rank", 512),
        ("num_heads", 16),
        ("num_kv_heads", 1),
        ("qk_nope_head_dim", 128),
        ("qk_rope_head_dim", 64),
        ("v_head_dim", 128),
    ),
    "batch",
)
"""deepseek-v2-lite: without the linears around it."""


def replayed(engine_version: str = "0.24.0", *, execution: str = CUDA_GRAPH) -> Environment:
    """What published latencies of the device are true for."""
    return Environment(DEVICE.product, 1, UNKNOWN, "vllm", engine_version, UNKNOWN, CUDA_EVENT, REPEATED, execution)


def table(
    latencies_s: Mapping[tuple[Signature, SweepPoint], float],
    *,
    file: str = "gemm.parquet",
    version: str = "1",
    environment: Environment | None = None,
) -> PublishedTable:
    """One file of published latencies, in seconds."""
    source = Source("tables", version, "MIT", file, f"sha of {file} {version}", mapping=1)
    rows = tuple(PublishedLatency(signature, point, each, "kernel") for (signature, point), each in latencies_s.items())
    return PublishedTable(source, {environment or replayed(): rows}, {})


def product_s(n: int, k: int, num_tokens: int) -> float:
    """What a linear takes on the device: whole tiles of 16 rows at half its peak, after a start."""
    return 4e-6 + 4e-14 * n * k * (16 * -(-num_tokens // 16))


def linears(
    sizes: Iterable[tuple[int, int]], *, factor: float = 1.0, tokens: Sequence[int] = (1, 8, 32, 64, 128, 256)
) -> dict[tuple[Signature, SweepPoint], float]:
    """Latencies of linears, n x k."""
    return {
        (linear(n, k), SweepPoint(num_tokens=each)): factor * product_s(n, k, each) for n, k in sizes for each in tokens
    }


GRID = tuple(
    (n, k) for n in (512, 724, 1024, 1448, 2048, 2896, 4096, 8192) for k in (512, 724, 1024, 2048, 2896, 4096, 8192)
)
"""Sizes of 25 linears."""
