"""The measured tables of the package aiconfigurator-core: their rows as latencies of our operations.

Nothing else knows these tables. What is assumed of them is what their collector does (ai-dynamo/aiconfigurator,
`collector/`, of August 2026), and what a row does not say:

- Latencies are means in milliseconds over six replays of a CUDA graph, after three to warm up; a power law's, over one
  replay of five routings; a custom all-reduce's, over 20 replays of five. Of linears in fp8 blocks, of NCCL and of
  kernels that say `eager`, the host launched every kernel; NCCL's own tests take 60 to 100 rounds after 40.
- Inputs stay the same. A linear is six layers with weights of their own in turn, in fp8 blocks and nvfp4 a single one.
- Attention writes the step's keys and values where its backend leaves that to the caller. Blocks have 64 tokens.
- Latent attention is the whole layer of a model; queries in fp8, which no trace tells from others, are left out.
- A mixture routes too, but has no shared experts. Its activation is told by its sizes; Kimi K3's was timed as a silu.
  Its router is taken for a softmax with weights that add up to 1 and all experts in one group, whatever the model's;
  DeepSeek-V3's groups send tokens elsewhere. Biases (GPT-OSS) and the scales of quantised weights are left out.
- `vllm_fused_moe` (vLLM 0.14, so all of the A100's) is from an older collector: experts alone, all gated by a silu,
  over ten routings, in half precision.
- NCCL's `half` stands for bf16, which is as many bytes.
- Of other engines than vLLM, what the host launched is known by the kernel's name alone.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import re
import statistics
from collections import Counter, namedtuple
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from packaging.version import InvalidVersion, Version

from pytest_dooly.batch import Batch, Routing, SweepPoint
from pytest_dooly.environment import CUDA_EVENT, CUDA_GRAPH, EAGER, REPEATED, UNKNOWN, Environment
from pytest_dooly.errors import ConfigurationError, PublishedDataError
from pytest_dooly.operation import OperationKind
from pytest_dooly.published import PublishedLatency, PublishedTable, Source
from pytest_dooly.signature import Signature, TensorIdentity

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["PACKAGE", "read_tables", "systems"]

PACKAGE = "aiconfigurator-core"

_LICENCE = "Apache-2.0"

_MAPPING = 2
"""Raised when a row becomes another operation or point, so that an import replaces what an older one has made."""

_BLOCK_SIZE = 64
"""Tokens in a KV-cache block of the collector."""

_DRAWS = 16
"""Routings whose mean stands for those of a power law, which are not published."""

_MESSAGE = 128
"""Elements of the smallest published message: the columns of its rows."""

_EVERYWHERE = ("device", "kernel_source", "latency")
"""Columns of every file that is read."""

_OPTIONAL: Mapping[str, str | int] = {"attn_dtype": "bfloat16", "mla_dtype": "bfloat16", "window_size": 0}
"""Columns that older files lack, and what they would say."""

_TEXTS = frozenset(
    {
        *("device", "kernel_source", "op_name", "model", "distribution", "kv_cache_dtype", "gemm_type"),
        *("allreduce_dtype", "attn_dtype", "gemm_dtype", "mla_dtype", "moe_dtype", "nccl_dtype"),
    }
)
"""Columns of text; all others but the latency are whole numbers."""

_FROM_ZERO = frozenset({"step", "window_size"})
"""Whole numbers that may be 0."""

_Array = npt.NDArray[np.int64]

_Row = Any
"""A named tuple of one row's columns."""

_Latency = tuple[Signature, SweepPoint, str, str]
"""Signature, point, kernel and variant of a row."""


@dataclass(frozen=True)
class _Reader:
    """How the rows of one file become latencies.

    Attributes:
        columns: that the file must have, besides those of every file.
        latency: signature, point, kernel and variant of a row, or why there is none.
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
    names = tuple(sorted(path.name for path in data.iterdir() if any(path.glob("*/*/*/*.parquet"))))
    if not names:
        raise PublishedDataError(f"{PACKAGE} has no tables under {data}: install {PACKAGE} 0.12 again")
    return names


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


def _version(text: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion:
        return Version("0")


def _read(path: Path, root: Path) -> PublishedTable:
    """The latencies of one file, those of graphs apart from those that the host launches."""
    content = path.read_bytes()
    source = Source(
        package=PACKAGE,
        version=_package_version(root),
        licence=_LICENCE,
        file=path.relative_to(_data(root)).as_posix(),
        sha256=hashlib.sha256(content).hexdigest(),
        mapping=_MAPPING,
    )
    table = _parquet(path, content)
    reader = _readers(root).get(path.stem)
    if reader is None:
        return PublishedTable(source, {}, {f"no operation of a trace is a {path.stem}": table.num_rows})
    engine, engine_version = path.parts[-3:-1]
    unmapped: Counter[str] = Counter()
    found: dict[tuple[str, bool], dict[_Latency, list[float]]] = {}
    for row in _rows(path, table, reader.columns):
        latency = _flaw(row) or reader.latency(row)
        if isinstance(latency, str):
            unmapped[latency] += 1
            continue
        latencies_s = found.setdefault((row.device, _is_eager(engine, row)), {}).setdefault(latency, [])
        latencies_s.append(row.latency / 1e3)
        if len(latencies_s) > 1:
            unmapped["the same operation, point and kernel again: the mean is kept"] += 1
    rows = {
        _environment(device, engine, engine_version, EAGER if eager else CUDA_GRAPH): tuple(
            PublishedLatency(signature, point, statistics.fmean(latencies_s), kernel, variant)
            for (signature, point, kernel, variant), latencies_s in of.items()
        )
        for (device, eager), of in found.items()
    }
    return PublishedTable(source, rows, dict(unmapped))


def _is_eager(engine: str, row: _Row) -> bool:
    """Whether the host launched the kernels one by one, rather than replay a graph."""
    if engine == "vllm" and getattr(row, "gemm_dtype", None) == "fp8_block":
        return True
    return row.kernel_source == "NCCL" or row.kernel_source.endswith("_eager") or not row.device.startswith("NVIDIA")


def _environment(device: str, engine: str, engine_version: str, execution: str) -> Environment:
    return Environment(
        device=device,
        device_count=1,
        driver=UNKNOWN,
        engine=engine,
        engine_version=engine_version,
        torch_version=UNKNOWN,
        clock=CUDA_EVENT,
        cache_mode=REPEATED,
        execution=execution,
    )


def _package_version(root: Path) -> str:
    try:
        return importlib.metadata.version(PACKAGE) if root == _installed() else UNKNOWN
    except PublishedDataError:
        return UNKNOWN


def _parquet(path: Path, content: bytes) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(content))
        names = table.column_names
    except (pa.ArrowException, OSError, ValueError) as error:  # a ValueError where names are no text
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise PublishedDataError(f"{path} cannot be read as Parquet ({first}): install {PACKAGE} again") from error
    if not names or not table.num_rows:
        raise PublishedDataError(f"{path} has no rows: install {PACKAGE} again")
    return table


def _rows(path: Path, table: pa.Table, columns: tuple[str, ...]) -> Iterator[_Row]:
    """The rows as named tuples of text, whole numbers and the latency; None where a value is missing.

    Raises:
        PublishedDataError: a column is missing or of another type.
    """
    import pyarrow as pa

    names = (*_EVERYWHERE, *columns)
    present = set(table.column_names)
    missing = [name for name in names if name not in present and name not in _OPTIONAL]
    if missing:
        raise PublishedDataError(
            f"{path} has no column {', '.join(missing)}, only {', '.join(table.column_names)}: "
            f"its schema has changed, install {PACKAGE} 0.12"
        )
    values = []
    for name in names:
        if name not in present:
            values.append([_OPTIONAL[name]] * table.num_rows)
            continue
        expected = pa.float64() if name == "latency" else pa.string() if name in _TEXTS else pa.int64()
        try:
            values.append(table[name].cast(expected).to_pylist())
        except (pa.ArrowException, ValueError) as error:  # a ValueError where text is no text
            raise PublishedDataError(
                f"{path} has {table[name].type} in its column {name} that cannot be read as {expected}: "
                f"it is damaged or its schema has changed, install {PACKAGE} 0.12"
            ) from error
    row = namedtuple("Row", names)  # type: ignore[misc] # noqa: PYI024 - the names are those of the file
    return map(row._make, zip(*values, strict=True))


def _flaw(row: _Row) -> str | None:
    """Why nothing can be made of a row, whatever its file; None where something can."""
    if None in row:
        return "a value is missing"
    if not 0 < row.latency < math.inf:
        return "the latency is no positive number"
    for name, value in zip(row._fields, row, strict=True):
        if isinstance(value, int) and value < (0 if name in _FROM_ZERO else 1):
            return f"a {name} of {value}"
    return None


def _readers(root: Path) -> Mapping[str, _Reader]:
    """How to read each file, by its name."""
    request = ("batch_size", "isl", "step", "num_heads", "kv_cache_dtype")
    attention = (*request, "num_key_value_heads", "head_dim", "attn_dtype", "window_size")
    latent = (*request, "gemm_type", "mla_dtype", "model", "tp_size")
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
    return _linear(row.gemm_dtype, row.n, row.k), _tokens(row.m), row.kernel_source, ""


def _attention(row: _Row) -> _Latency | str:
    backend = _backend(row.kernel_source)
    if backend is None:
        return f"kernel {row.kernel_source} is no known attention backend's"
    if row.attn_dtype != "bfloat16":
        return f"attn_dtype {row.attn_dtype}: no operation of a trace says so"
    if row.num_heads % row.num_key_value_heads:
        return "query heads are no multiple of KV heads"
    kv_cache_dtype = _kv_cache_dtype(row.kv_cache_dtype)
    signature = _attention_signature(
        backend, row.num_heads, row.num_key_value_heads, row.head_dim, row.window_size, kv_cache_dtype
    )
    return signature, _batch(row.batch_size, row.isl, row.step), row.kernel_source, ""


def _latent_attention(root: Path, row: _Row) -> _Latency | str:
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
    signature = _latent_signature(row.kernel_source, row.num_heads, row.gemm_type, kv_cache_dtype, config)
    return signature, _batch(row.batch_size, row.isl, row.step), row.kernel_source, ""


def _moe(row: _Row) -> _Latency | str:
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
    signature = _moe_signature(row.moe_dtype, activation, row.hidden_size, inter, row.topk, row.num_experts, local)
    routing = _routing(row.num_tokens, row.num_experts, row.topk, row.moe_ep_size, float(law[1]) if law else None)
    return signature, SweepPoint(num_tokens=row.num_tokens, routing=routing), row.kernel_source, row.distribution


def _all_reduce(row: _Row) -> _Latency | str:
    return _collective("all_reduce", row.allreduce_dtype, row.num_gpus, row.message_size, row.kernel_source)


def _nccl(row: _Row) -> _Latency | str:
    if row.op_name not in ("all_reduce", "all_gather", "reduce_scatter"):
        return f"no operation of a trace is a {row.op_name}"
    # NCCL's tests count what all ranks gather together; a trace, what each puts in.
    elements = row.message_size // row.num_gpus if row.op_name == "all_gather" else row.message_size
    return _collective(row.op_name, row.nccl_dtype, row.num_gpus, elements, row.kernel_source)


def _collective(name: str, dtype: str, ranks: int, elements: int, kernel: str) -> _Latency | str:
    if dtype not in ("bfloat16", "half"):
        return f"{dtype} messages"
    if elements < 1 or elements % _MESSAGE:
        return f"messages that are no multiple of {_MESSAGE} elements"
    return _collective_signature(name, ranks), _tokens(elements // _MESSAGE), kernel, ""


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
def _linear(gemm_dtype: str, n: int, k: int) -> Signature:
    method, dtype = _METHODS[gemm_dtype]
    tensors = (("input_", "bf16", ("num_tokens", k)), ("weight", dtype, (n, _packed(dtype, k))))
    return Signature(OperationKind.LINEAR, "linear", tensors, (("method", method),), "num_tokens")


@cache
def _attention_signature(
    backend: str, num_heads: int, num_kv_heads: int, head_size: int, window: int, kv_cache_dtype: str
) -> Signature:
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
    return tuple((name, int(document[name] or 0)) for name in names)


@cache
def _moe_signature(
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
def _collective_signature(name: str, ranks: int) -> Signature:
    tensors = (("arg0", "bf16", ("num_tokens", _MESSAGE)),)
    return Signature(OperationKind.COLLECTIVE, name, tensors, (("ranks", ranks),), "num_tokens")


@cache
def _routing(num_tokens: int, experts: int, top_k: int, ranks: int, alpha: float | None) -> Routing:
    """What the experts of the rank that is timed get of the tokens, which the tables do not say.

    Spread evenly (`alpha` is None), that is exact and the first rank's. Of a power law it is the mean over draws like
    the collector's, whose rank is the one with most tokens; the draws are alike for every number of tokens.
    """
    if alpha is None:
        counts = _balanced(num_tokens, experts, top_k)[: experts // ranks][None]
    else:
        counts = _power_law(num_tokens, experts, top_k, ranks, alpha)
    activated, busiest = (counts > 0).sum(axis=1).mean(), counts.max(axis=1).mean()
    return Routing(max(1, round(float(activated))), max(1, round(float(busiest))))


@cache
def _balanced(num_tokens: int, experts: int, top_k: int) -> _Array:
    """Tokens of each expert, shape (experts,). Source: `balanced_logits` of the collector."""
    stride = -(-experts // top_k)
    first = np.arange(num_tokens)
    if num_tokens < stride:
        first = first * stride // num_tokens
    chosen = (first[:, None] + np.arange(top_k) * stride) % experts
    return np.bincount(chosen.ravel(), minlength=experts)


def _power_law(num_tokens: int, experts: int, top_k: int, ranks: int, alpha: float) -> _Array:
    """Tokens of each expert of the rank with most, shape (draws, experts of a rank).

    Each expert's share is drawn from a power law between 1 and 0.8 of the tokens (0.01 and 2 where they are few). What
    rounding and the bound of one expert, the number of tokens, leave over goes to the experts with fewest, rank by
    rank. Source: `_generate_power_law_distribution` of the collector.
    """
    assigned = num_tokens * top_k
    low, high = (1.0, 0.8 * num_tokens) if assigned > experts else (0.01, 2.0)
    shares = _uniform(experts, round(alpha * 100)) * (high ** (1 - alpha) - low ** (1 - alpha)) + low ** (1 - alpha)
    shares **= 1 / (1 - alpha)
    counts = np.rint(shares / shares.sum(axis=1, keepdims=True) * assigned).astype(np.int64)
    over = np.maximum(counts - num_tokens, 0).sum(axis=1)
    counts = np.minimum(counts, num_tokens).reshape(_DRAWS, ranks, -1)
    counts = _spread(counts, over, num_tokens)
    lacking = assigned - counts.sum(axis=(1, 2))
    counts = _spread(counts, np.maximum(lacking, 0), num_tokens)
    counts = num_tokens - _spread(num_tokens - counts, np.maximum(-lacking, 0), num_tokens)
    return counts[np.arange(_DRAWS), counts.sum(axis=2).argmax(axis=1)]


@cache
def _uniform(experts: int, seed: int) -> npt.NDArray[np.float64]:
    return np.random.default_rng([experts, seed]).random((_DRAWS, experts))


def _spread(counts: _Array, more: _Array, most: int) -> _Array:
    """The counts with more tokens, given out one by one to the expert with fewest, the ranks in turn.

    Args:
        counts: of each expert, shape (draws, ranks, experts of a rank).
        more: to give out, shape (draws,); no more than fits in.
        most: that an expert may have.

    Returns:
        Of the same shape, the experts of a rank in ascending order.
    """
    counts = np.sort(counts, axis=2)
    place = np.arange(counts.shape[2])
    while more.any():
        room = counts.shape[2] * most - counts.sum(axis=2)
        turns = np.cumsum(room > 0, axis=1)
        even, rest = np.divmod(more[:, None], np.maximum(turns[:, -1:], 1))
        given = np.where(room > 0, np.minimum(room, even + (turns <= rest)), 0)
        # All experts that get some end at one level: as many of the fewest as the tokens can bring to the next one's.
        below = np.cumsum(counts, axis=2) - counts
        raised = (place * counts - below <= given[..., None]).sum(axis=2, keepdims=True)
        total = np.take_along_axis(below + counts, raised - 1, axis=2) + given[..., None]
        level, left = np.divmod(total, raised)
        counts = np.sort(np.where(place < raised, level + (place < left), counts), axis=2)
        more = more - given.sum(axis=1)
    return counts
