"""The measured tables of the package aiconfigurator-core: their rows as latencies of our operations.

Nothing else knows these tables. Their collector replays a CUDA graph of the operation six times after three to warm up
and publishes the mean in milliseconds; a linear is six layers with weights of their own in turn, everything else runs
again and again on the same inputs.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_dooly.batch import Batch, Routing, SweepPoint
from pytest_dooly.environment import CUDA_EVENT, CUDA_GRAPH, EAGER, REPEATED, UNKNOWN, Environment
from pytest_dooly.errors import ConfigurationError, PublishedDataError
from pytest_dooly.operation import OperationKind
from pytest_dooly.published import PublishedLatency, PublishedTable, Source
from pytest_dooly.signature import Signature, TensorIdentity

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PACKAGE", "read_tables", "systems"]

PACKAGE = "aiconfigurator-core"

_LICENCE = "Apache-2.0"

_MAPPING = 1
"""Raised when a row becomes another operation or point, so that an import replaces what an older one has made."""

_BLOCK_SIZE = 64
"""Tokens in a KV-cache block of the collector."""

_DRAWS = 5
"""Routings that a latency of a power law is the mean of."""

_MESSAGE = 128
"""Elements of the smallest published message: the columns of its rows."""

_LAUNCHED = ("vLLM_custom_eager", "NCCL")
"""Kernels that the host launched one by one; all others were replayed."""

_Row = Any
"""A named tuple of one row's columns."""

_Latency = tuple[Signature, SweepPoint, str]
"""Signature, point and variant of a row."""


@dataclass(frozen=True)
class _Reader:
    """How the rows of one file become latencies.

    Attributes:
        columns: that the file must have, besides those of every file.
        latency: signature, point and variant of a row, or why there is none.
    """

    columns: tuple[str, ...]
    latency: Callable[[_Row], _Latency | str]


def systems(root: Path | None = None) -> tuple[str, ...]:
    """Names of the systems that the package has tables of.

    Args:
        root: directory of the package's files; the installed package's where it is None.

    Raises:
        PublishedDataError: the package is not installed, or has no tables.
    """
    data = _data(root or _installed())
    return tuple(sorted(path.name for path in data.iterdir() if any(path.glob("*/*/*/*.parquet"))))


def read_tables(
    system: str, *, engine: str = "vllm", engine_version: str | None = None, root: Path | None = None
) -> Iterator[PublishedTable]:
    """The latencies of every table of a system, file after file.

    Collectives that the engine leaves to NCCL come from NCCL's own tables.

    Args:
        system: as the package names it (`h200_sxm`).
        engine: that ran the operations.
        engine_version: of the engine; None for the latest of each kind of operation.
        root: directory of the package's files; the installed package's where it is None.

    Raises:
        PublishedDataError: the package is missing, a file is damaged or has other columns.
        ConfigurationError: the package has no such system, engine or version; names those it has.
    """
    root = root or _installed()
    for path in _files(root, system, engine, engine_version):
        yield _read(path, root)


def _installed() -> Path:
    try:
        located = importlib.metadata.distribution(PACKAGE).locate_file("aiconfigurator_core")
    except importlib.metadata.PackageNotFoundError as error:
        raise PublishedDataError(
            f"{PACKAGE} is not installed: run pip install 'pytest-dooly[public-data]', which brings its tables"
        ) from error
    return Path(str(located))


def _data(root: Path) -> Path:
    data = root / "systems" / "data"
    if not data.is_dir():
        raise PublishedDataError(f"{PACKAGE} has no tables under {data}: install {PACKAGE} 0.12 again")
    return data


def _files(root: Path, system: str, engine: str, engine_version: str | None) -> list[Path]:
    """The tables asked for: of each kind of operation those of one version, the latest where none is named."""
    known = systems(root)
    if system not in known:
        raise ConfigurationError(f"{PACKAGE} has no tables of system {system!r}: name one of {', '.join(known)}")
    every = sorted(_data(root).joinpath(system).glob("*/*/*/*.parquet"))
    engines = {path.parent.parent.name for path in every}
    if engine not in engines:
        raise ConfigurationError(
            f"{PACKAGE} has no tables of engine {engine!r} on {system}: name one of {', '.join(sorted(engines))}"
        )
    of_engine = [path for path in every if path.parent.parent.name == engine]
    versions = sorted({path.parent.name for path in of_engine}, key=_version)
    if engine_version is not None and engine_version not in versions:
        raise ConfigurationError(
            f"{PACKAGE} has no tables of {engine} {engine_version} on {system}: name one of {', '.join(versions)}"
        )
    of_nccl = [path for path in every if path.parent.parent.name == "nccl"]
    return [
        path
        for files, asked in ((of_engine, engine_version), (of_nccl, None))
        for path in files
        if path.parent.name == (asked or _latest(path, files))
    ]


def _latest(path: Path, files: list[Path]) -> str:
    """The latest version among the files of the same kind of operation."""
    kind = path.parent.parent
    return max((each.parent.name for each in files if each.parent.parent == kind), key=_version)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else -1 for part in text.split("."))


def _read(path: Path, root: Path) -> PublishedTable:
    """The latencies of one file, those of graphs apart from those that the host launches."""
    file = path.relative_to(_data(root))
    content = path.read_bytes()
    source = Source(
        package=PACKAGE,
        version=_package_version(root),
        licence=_LICENCE,
        file=str(file),
        sha256=hashlib.sha256(content).hexdigest(),
        mapping=_MAPPING,
    )
    reader = _readers(root).get(path.stem)
    table = _rows(path, content, ("device", "kernel_source", "latency", *(reader.columns if reader else ())))
    if reader is None:
        return PublishedTable(source, {}, {f"no operation of a trace is a {path.stem}": len(table)})
    rows, unmapped = {}, Counter[str]()
    launched = table["kernel_source"].isin(_LAUNCHED)
    for (device, eager), chosen in table.groupby(["device", launched]):
        environment = Environment(
            device=device,
            device_count=1,
            driver=UNKNOWN,
            engine=path.parent.parent.name,
            engine_version=path.parent.name,
            torch_version=UNKNOWN,
            clock=CUDA_EVENT,
            cache_mode=REPEATED,
            execution=EAGER if eager else CUDA_GRAPH,
        )
        rows[environment], others = _latencies(chosen, reader)
        unmapped.update(others)
    return PublishedTable(source, rows, dict(unmapped))


def _package_version(root: Path) -> str:
    try:
        return importlib.metadata.version(PACKAGE) if root == _installed() else UNKNOWN
    except PublishedDataError:
        return UNKNOWN


def _rows(path: Path, content: bytes, columns: tuple[str, ...]) -> pd.DataFrame:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(content))
    except (pa.ArrowException, OSError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise PublishedDataError(f"{path} cannot be read as Parquet ({first}): install {PACKAGE} again") from error
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise PublishedDataError(
            f"{path} has no column {', '.join(missing)}, only {', '.join(table.column_names)}: "
            f"its schema has changed, install {PACKAGE} 0.12"
        )
    rows: pd.DataFrame = table.to_pandas()
    return rows


def _latencies(rows: pd.DataFrame, reader: _Reader) -> tuple[tuple[PublishedLatency, ...], Mapping[str, int]]:
    """What the rows are latencies of, and the number of the others by reason."""
    unmapped: Counter[str] = Counter()
    found: dict[_Latency, list[float]] = {}
    kernels: dict[_Latency, str] = {}
    for row in rows.itertuples(index=False):
        latency = reader.latency(row) if row.latency > 0 else "the latency is no positive number"
        if isinstance(latency, str):
            unmapped[latency] += 1
            continue
        found.setdefault(latency, []).append(row.latency / 1e3)
        kernels[latency] = row.kernel_source
    again = sum(len(latencies_s) - 1 for latencies_s in found.values())
    if again:
        unmapped["the same operation and point again: the mean of both is kept"] = again
    return (
        tuple(
            PublishedLatency(
                signature, point, sum(latencies_s) / len(latencies_s), kernels[signature, point, variant], variant
            )
            for (signature, point, variant), latencies_s in found.items()
        ),
        dict(unmapped),
    )


def _readers(root: Path) -> Mapping[str, _Reader]:
    """How to read each file, by its name."""
    attention = ("batch_size", "isl", "step", "num_heads", "num_key_value_heads", "head_dim", "kv_cache_dtype")
    latent = ("batch_size", "isl", "step", "num_heads", "kv_cache_dtype", "gemm_type", "model", "tp_size")
    experts = ("hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size")
    return {
        "gemm_perf": _Reader(("gemm_dtype", "m", "n", "k"), _gemm),
        "context_attention_perf": _Reader(attention, _attention),
        "generation_attention_perf": _Reader(attention, _attention),
        "mla_context_module_perf": _Reader(latent, partial(_latent_attention, root)),
        "mla_generation_module_perf": _Reader(latent, partial(_latent_attention, root)),
        "moe_perf": _Reader((*experts, "moe_dtype", "num_tokens", "distribution"), _moe),
        "custom_allreduce_perf": _Reader(("num_gpus", "message_size", "allreduce_dtype"), _all_reduce),
        "nccl_perf": _Reader(("num_gpus", "message_size", "nccl_dtype", "op_name"), _nccl),
    }


def _gemm(row: _Row) -> _Latency | str:
    if row.gemm_dtype not in _METHODS:
        return f"gemm_dtype {row.gemm_dtype} is unknown"
    return _linear(row.gemm_dtype, row.n, row.k), _tokens(row.m), ""


def _attention(row: _Row) -> _Latency | str:
    backend = _backend(row.kernel_source)
    if backend is None:
        return f"kernel {row.kernel_source} is no known attention backend's"
    if row.num_heads % row.num_key_value_heads:
        return "query heads are no multiple of KV heads"
    window = getattr(row, "window_size", 0)
    signature = _attention_signature(
        backend, row.num_heads, row.num_key_value_heads, row.head_dim, window, _kv_cache_dtype(row.kv_cache_dtype)
    )
    return signature, _batch(row.batch_size, row.isl, row.step), ""


def _latent_attention(root: Path, row: _Row) -> _Latency | str:
    if row.tp_size != 1:
        return f"tp_size {row.tp_size}: the heads of a rank are not said"
    if row.gemm_type not in _METHODS:
        return f"gemm_type {row.gemm_type} is unknown"
    config = _config(root, row.model)
    if config is None:
        return f"the package has no config.json of {row.model}"
    kv_cache_dtype = _kv_cache_dtype(row.kv_cache_dtype)
    signature = _latent_signature(row.kernel_source, row.num_heads, row.gemm_type, kv_cache_dtype, config)
    return signature, _batch(row.batch_size, row.isl, row.step), ""


def _moe(row: _Row) -> _Latency | str:
    if row.moe_dtype not in _METHODS:
        return f"moe_dtype {row.moe_dtype} is unknown"
    if row.num_experts % row.moe_ep_size or row.inter_size % row.moe_tp_size:
        return "experts or their sizes do not divide by the ranks"
    law, _, alpha = row.distribution.rpartition("_")
    if row.distribution != "balanced" and law != "power_law":
        return f"distribution {row.distribution} is unknown"
    local, inter = row.num_experts // row.moe_ep_size, row.inter_size // row.moe_tp_size
    signature = _moe_signature(row.moe_dtype, row.hidden_size, inter, row.topk, row.num_experts, local)
    routing = _routing(row.num_tokens, row.num_experts, row.topk, row.moe_ep_size, float(alpha) if law else None)
    if routing is None:
        return "none of the tokens goes to the rank's experts"
    return signature, SweepPoint(num_tokens=row.num_tokens, routing=routing), row.distribution


def _all_reduce(row: _Row) -> _Latency | str:
    return _collective("all_reduce", row.allreduce_dtype, row.num_gpus, row.message_size)


def _nccl(row: _Row) -> _Latency | str:
    if row.op_name not in ("all_reduce", "all_gather", "reduce_scatter"):
        return f"no operation of a trace is a {row.op_name}"
    # NCCL's tests count what all ranks gather together; a trace, what each puts in.
    elements = row.message_size // row.num_gpus if row.op_name == "all_gather" else row.message_size
    return _collective(row.op_name, row.nccl_dtype, row.num_gpus, elements)


def _collective(name: str, dtype: str, ranks: int, elements: int) -> _Latency | str:
    if dtype not in ("bfloat16", "half"):
        return f"{dtype} messages"
    if elements % _MESSAGE:
        return f"messages below {_MESSAGE} elements"
    return _collective_signature(name, ranks), _tokens(elements // _MESSAGE), ""


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
    return SweepPoint(num_tokens=int(num_tokens))


@cache
def _batch(num_reqs: int, query_len: int, context_len: int) -> SweepPoint:
    return SweepPoint(batch=Batch.uniform(int(num_reqs), int(query_len), int(context_len)))


@cache
def _linear(gemm_dtype: str, n: int, k: int) -> Signature:
    method, dtype = _METHODS[gemm_dtype]
    tensors = (("input_", "bf16", ("num_tokens", int(k))), ("weight", dtype, (int(n), _packed(dtype, int(k)))))
    return Signature(OperationKind.LINEAR, "linear", tensors, (("method", method),), "num_tokens")


@cache
def _attention_signature(
    backend: str, num_heads: int, num_kv_heads: int, head_size: int, window: int, kv_cache_dtype: str
) -> Signature:
    heads, kv_heads, size = int(num_heads), int(num_kv_heads), int(head_size)
    tensors = (
        ("query", "bf16", ("num_tokens", heads * size)),
        ("key", "bf16", ("num_tokens", kv_heads * size)),
        ("value", "bf16", ("num_tokens", kv_heads * size)),
        *_cached(("keys", "values"), kv_cache_dtype, (kv_heads, size)),
    )
    attributes: dict[str, str | int] = {
        "backend": backend,
        "block_size": _BLOCK_SIZE,
        "head_size": size,
        "kv_cache_dtype": kv_cache_dtype,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
    }
    if window:
        attributes["sliding_window"] = int(window)
    return Signature(OperationKind.ATTENTION, "attention", tensors, tuple(sorted(attributes.items())), "batch")


@cache
def _latent_signature(
    backend: str, num_heads: int, gemm_dtype: str, kv_cache_dtype: str, config: tuple[tuple[str, int], ...]
) -> Signature:
    """The whole layer of latent attention: its linears, norms and rotary around what a trace calls mla_attention."""
    sizes = dict(config)
    tensors = (
        ("hidden_states", "bf16", ("num_tokens", sizes["hidden_size"])),
        *_cached(("latents",), kv_cache_dtype, (sizes["kv_lora_rank"] + sizes["qk_rope_head_dim"],)),
    )
    attributes: dict[str, str | int] = {
        **sizes,
        "backend": backend,
        "head_size": sizes["kv_lora_rank"] + sizes["qk_rope_head_dim"],
        "kv_cache_dtype": kv_cache_dtype,
        "method": _METHODS[gemm_dtype][0],
        "num_heads": int(num_heads),
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
    """The sizes of a model that the package ships the config.json of."""
    path = root / "model_configs" / f"{model.replace('/', '--')}_config.json"
    if not path.is_file():
        return None
    document = json.loads(path.read_text())
    names = ("hidden_size", "kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    return tuple((name, int(document[name] or 0)) for name in names)


@cache
def _moe_signature(moe_dtype: str, hidden: int, inter: int, top_k: int, experts: int, local: int) -> Signature:
    """A gated mixture without shared experts, whose router's logits are given: the collector's usual layer."""
    method, dtype = _METHODS[moe_dtype]
    hidden, inter, experts, local = int(hidden), int(inter), int(experts), int(local)
    tensors = (
        ("hidden_states", "bf16", ("num_tokens", hidden)),
        ("router_logits", "bf16", ("num_tokens", experts)),
        ("expert_input", "bf16", ("tokens_per_expert", hidden)),
        ("routed_experts.w13_weight", dtype, (local, 2 * inter, _packed(dtype, hidden))),
        ("routed_experts.w2_weight", dtype, (local, hidden, _packed(dtype, inter))),
    )
    attributes: dict[str, str | int | bool] = {
        "activation": "silu",
        "method": method,
        "num_experts": experts,
        "num_local_experts": local,
        "renormalize": True,
        "scoring": "softmax",
        "top_k": int(top_k),
    }
    return Signature(OperationKind.MOE, "fused_moe", tensors, tuple(sorted(attributes.items())), "routing")


@cache
def _collective_signature(name: str, ranks: int) -> Signature:
    tensors = (("arg0", "bf16", ("num_tokens", _MESSAGE)),)
    return Signature(OperationKind.COLLECTIVE, name, tensors, (("ranks", int(ranks)),), "num_tokens")


@cache
def _routing(num_tokens: int, experts: int, top_k: int, ranks: int, alpha: float | None) -> Routing | None:
    """What the busiest rank's experts get of the tokens; None where they get nothing.

    The tables do not say. The collector spreads tokens evenly, or draws each expert's share from a power law between
    1 and 0.8 of the tokens (0.01 and 2 where they are few), no expert above the number of tokens, and puts the rank
    with most of them first; it publishes the mean over five draws. So is this.
    """
    local, assigned = experts // ranks, num_tokens * top_k
    if alpha is None:
        activated = min(local, round(assigned / ranks))
        return Routing(activated, -(-assigned // experts)) if activated else None
    random = np.random.default_rng([num_tokens, experts, top_k, ranks, round(alpha * 100)])
    low, high = (1.0, 0.8 * num_tokens) if assigned > experts else (0.01, 2.0)
    drawn = []
    for _ in range(_DRAWS):
        law = 1 - alpha
        shares = ((high**law - low**law) * random.random(experts) + low**law) ** (1 / law)
        counts = np.minimum(np.round(shares / shares.sum() * assigned), num_tokens)
        while counts.sum() < assigned:
            least = np.argsort(counts, kind="stable")[: int(assigned - counts.sum())]
            counts[least] = np.minimum(counts[least] + 1, num_tokens)
        while counts.sum() > assigned:
            counts[np.argsort(-counts, kind="stable")[: int(counts.sum() - assigned)]] -= 1
        of_rank = max(counts.reshape(ranks, local), key=lambda each: each.sum())
        drawn.append(((of_rank > 0).sum(), of_rank.max()))
    activated, busiest = np.mean(drawn, axis=0)
    return Routing(max(1, round(activated)), max(1, round(busiest)))
