"""Signature -> parts of a family: operations that differ in sizes alone, so that one regressor can lie across them.

Most operations are one part. A mixture of experts also runs its router and its shared experts, which are matrix
products like any other; latent attention is what is left of a whole layer of it without the layer's matrix products.
What changes the work of a kernel little is left out: a bias, a soft cap, attention sinks.

Attention in a step of prompts and decodes is the sum of both unless such steps were timed: a kernel that has prompts to
work on may take up to three times as long over the decodes beside them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pytest_dooly.core.environment import content_hash
from pytest_dooly.core.operation import OperationKind
from pytest_dooly.core.published_latency import PublishedLatency
from pytest_dooly.core.signature import (
    FLOATS,
    Signature,
    TensorIdentity,
    engines_of,
    experts_of,
    gathering_ranks,
    is_weight_matrix,
)
from pytest_dooly.core.work import Features, Work

__all__ = [
    "Family",
    "Part",
    "Table",
    "columns_of",
    "lone_parts_of",
    "mixed_part_of",
    "parts_of",
    "rest_of",
    "running",
    "table_of",
    "weight_precision",
]

Array = npt.NDArray[np.float64]
Columns = dict[str, Array]

_PRECISIONS = {"fp8pertensoronline": "fp8", "gptossmxfp4": "mxfp4"}
"""Of the weights, by the method of a signature; other methods are precisions already."""

_CACHES = {"fp8_e4m3": "fp8", "bfloat16": "auto", "float16": "auto"}
"""What one kernel works on by several names, by vLLM's name of the KV cache's dtype."""

_QUANTISED = {
    "float8_e4m3fn": ("fp8", "fp8_block", "mxfp8"),
    "int8": ("int8_weights", "int8"),
    "uint4": ("int4", "mxfp4", "nvfp4"),
}
"""Precisions that a weight may have, by its dtype."""

_PUBLISHED_LATENT = {
    "hidden_size": 7168,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
"""Sizes of DeepSeek-V3, whose layers of latent attention are the published ones."""

_INDEXER = ("index_head_size", "index_heads", "index_top_k")
"""Sizes of what chooses the tokens that sparse attention attends to."""


@dataclass(frozen=True)
class Family:
    """What operations have in common that differ in sizes alone.

    Attributes:
        kernel: `gemm`, `prefill`, `decode`, `mixed` (both in one step), `experts`, `latent prefill`, `latent decode`,
            `sparse latent prefill`, `sparse latent decode` or a collective's name.
        precision: of weights, or of the KV cache for attention; of both where a kernel has both, in that order.
        backend: of attention; None where any will do.
    """

    kernel: str
    precision: str
    backend: str | None = None

    @property
    def key(self) -> str:
        """Content hash: equal for equal families, on every machine."""
        return content_hash(dataclasses.asdict(self))

    @property
    def of_weights(self) -> str:
        """Precision without that of the KV cache, where the kernel has both."""
        return self.precision.partition(" ")[0]

    @property
    def of_cache(self) -> str:
        """Precision of the KV cache where the kernel has weights too, else empty."""
        return self.precision.partition(" ")[2]

    def __str__(self) -> str:
        return " ".join(part for part in (self.kernel, self.precision, self.backend) if part)

    def serves(self, asked: Family) -> bool:
        """Whether latencies of this family stand for the one asked for."""
        return self == dataclasses.replace(asked, backend=asked.backend or self.backend)


@dataclass(frozen=True)
class Part:
    """One kernel of an operation.

    Attributes:
        family: that it belongs to.
        sizes: sorted (name, value) pairs of what else its latency depends on, besides the request.
        sign: 1, or -1 for what is to be taken off.
        columns: elements of a row, where only the number of elements counts; None where rows do.
        of_all: whether its rows are the tokens of all engines that share a mixture's experts.
    """

    family: Family
    sizes: tuple[tuple[str, int], ...]
    sign: int = 1
    columns: float | None = None
    of_all: bool = False


@dataclass(frozen=True)
class Table:
    """Latencies of one family as arrays.

    Attributes:
        columns: sizes and request values by name, each of shape (rows,).
        latencies_s: shape (rows,).
        groups: number of the sizes that a row belongs to, shape (rows,).
        sizes: of each group.
    """

    columns: Columns
    latencies_s: Array
    groups: npt.NDArray[np.intp]
    sizes: tuple[tuple[tuple[str, int], ...], ...]

    def __len__(self) -> int:
        return len(self.latencies_s)


def parts_of(signature: Signature) -> tuple[Part, ...]:
    """The parts of an operation; none where its kind has no families."""
    attributes = dict(signature.attributes)
    shapes = {role: shape for role, _, shape in signature.tensors}
    precision = weight_precision(signature)
    if signature.kind in (OperationKind.LINEAR, OperationKind.LOGITS) and len(shapes.get("weight", ())) == 2:
        return (_gemm(precision, int(shapes["weight"][0]), _columns(signature)),)
    if signature.kind is OperationKind.MOE and "top_k" in attributes:
        return _moe(signature, precision)
    if signature.kind is OperationKind.COLLECTIVE:
        return (_collective(signature, int(attributes["ranks"])),)
    if signature.kind is OperationKind.MIXER:
        return _products(signature, precision)
    if signature.name == "attention" and "backend" in attributes and _dtype(signature.tensors[0][1]) == "bf16":
        return _attention(attributes, signature.window or 0)
    if signature.name == "mla_layer":
        return _latent_layer(attributes, precision)
    if signature.name == "mla_attention":
        return _latent_attention(attributes, _dtype(signature.tensors[0][1]))
    return ()


def _collective(signature: Signature, ranks: int) -> Part:
    """A message; numbers of four bytes are sent as twice as many of two are."""
    _, dtype, shape = signature.tensors[0]
    precision, columns = _dtype(dtype), _columns(signature) / _ranks_of_rows(shape)
    if precision == "fp32":
        precision, columns = "bf16", 2 * columns
    return Part(Family(signature.name, precision), (("ranks", ranks),), columns=columns)


def _ranks_of_rows(shape: Sequence[int | str]) -> int:
    """Ranks that have a share each of a step's tokens, where a shape's rows are one's share: `-(num_tokens // -2)`.

    Or `((num_tokens + (PythonMod(-num_tokens, 2))) // 2)`, as it is rounded up elsewhere.
    """
    found = re.search(r"// -?(\d+)\)", str(shape[0]))
    return int(found[1]) if found else 1


def mixed_part_of(signature: Signature) -> Part | None:
    """Attention to prompts and decodes in one step as a part of its own; None for other operations."""
    prefill = next((part for part in parts_of(signature) if part.family.kernel == "prefill"), None)
    return None if prefill is None else replace(prefill, family=replace(prefill.family, kernel="mixed"))


def lone_parts_of(signature: Signature) -> tuple[Part, ...]:
    """The parts of an operation whose latency is that of one of them alone, at every point or in one phase."""
    if rest_of(signature) is not None:
        return ()
    parts, mixed = parts_of(signature), mixed_part_of(signature)
    phases = all(part.family.kernel.endswith(("prefill", "decode")) for part in parts)
    return (*parts, *([mixed] if mixed else [])) if len(parts) == 1 or phases else ()


def rest_of(signature: Signature) -> Signature | None:
    """What an operation does besides its parts, as one without their weights; None where they are all of it."""
    if signature.kind is not OperationKind.MIXER:
        return None
    return dataclasses.replace(signature, tensors=tuple(each for each in signature.tensors if not _is_of_product(each)))


def columns_of(part: Part, work: Work) -> Columns:
    """What a part's latency depends on, sizes and request values by name, each of shape (points,).

    Attention's prompts and decodes are parts of their own. A batch of prompts is described by as many equal prompts
    with as many tokens and attended pairs, a batch of decodes by the mean length of their contexts; `batch_size` is 0
    where there are none.
    """
    sizes = {name: np.full(len(work), float(value)) for name, value in part.sizes}
    kernel = part.family.kernel
    if kernel.endswith("prefill"):
        return sizes | _prompts(work, dict(part.sizes).get("window", 0))
    if kernel.endswith("decode"):
        return sizes | _decodes(work)
    if kernel == "mixed":
        decodes = _decodes(work)
        beside = {"num_decodes": decodes.pop("batch_size"), **decodes}
        return sizes | _prompts(work, dict(part.sizes).get("window", 0)) | beside
    features = Features(work, None)
    tokens = features.gathered if part.of_all else features.tokens
    if part.columns is not None:
        return sizes | {"elements": tokens * part.columns}
    if kernel == "experts":
        return sizes | {"num_tokens": tokens, "activated": features.activated, "busiest": features.busiest}
    return sizes | {"num_tokens": tokens}


def table_of(family: Family, rows: Iterable[PublishedLatency]) -> Table:
    """The rows of a family as arrays; rows of other families, or with the other phase of attention, are left out."""
    of_signature: dict[Signature, list[PublishedLatency]] = {}
    for row in rows:
        of_signature.setdefault(row.signature, []).append(row)
    sizes: dict[tuple[tuple[str, int], ...], int] = {}
    blocks, latencies_s, groups = [], [], []
    for signature, of in of_signature.items():
        part = next((each for each in lone_parts_of(signature) if each.family == family), None)
        if part is None:
            continue
        work = Work.of([row.point for row in of])
        columns = columns_of(part, work)
        kept = np.ones(len(of), dtype=bool)
        if family.kernel == "mixed":
            kept = running(columns, len(of))
        elif "batch_size" in columns:
            prompts = Features(work, None).prompts
            kept = work.sum(prompts if family.kernel.endswith("decode") else 1 - prompts) == 0
        if "context_len" in columns:
            kept &= columns["context_len"] > 0  # one token with nothing before it is a prompt's, and runs its kernel
        if not kept.any():
            continue
        group = sizes.setdefault(part.sizes, len(sizes))
        blocks.append({name: values[kept] for name, values in columns.items()})
        latencies_s.append(np.array([row.latency_s for row in of])[kept])
        groups.append(np.full(int(kept.sum()), group))
    names = list(blocks[0]) if blocks else []
    return Table(
        {name: np.concatenate([block[name] for block in blocks]) for name in names},
        np.concatenate(latencies_s) if latencies_s else np.empty(0),
        np.concatenate(groups) if groups else np.empty(0, dtype=np.intp),
        tuple(sizes),
    )


def running(columns: Columns, points: int) -> npt.NDArray[np.bool_]:
    """Which of the points run the part whose columns they are, shape (points,); a step of decodes runs no prefill."""
    phases = [columns[name] > 0 for name in ("batch_size", "num_decodes") if name in columns]
    return np.all(phases, axis=0) if phases else np.ones(points, dtype=bool)


def weight_precision(signature: Signature) -> str:
    """Of an operation's weights: as traced, else by the quantisation method where there is one, else their dtype."""
    attributes = dict(signature.attributes)
    method = str(attributes.get("method", "unquantized"))
    if "precision" in attributes:
        return str(attributes["precision"])
    if method != "unquantized":
        return _PRECISIONS.get(method, method)
    weights = [dtype for role, dtype, _ in signature.tensors if role == "weight" or role.endswith("w13_weight")]
    return _dtype(weights[0]) if weights else "bf16"


def _dtype(name: str) -> str:
    """The dtype that a kernel is as fast with: half precision of either kind."""
    return "bf16" if name == "fp16" else name


def _columns(signature: Signature) -> int:
    """Product of the first input's sizes that no request decides."""
    shape = signature.tensors[0][2]
    return int(np.prod([size for size in shape if isinstance(size, int)]))


def _gemm(precision: str, n: int, k: int, sign: int = 1) -> Part:
    return Part(Family("gemm", precision), (("k", k), ("n", n)), sign)


def _attention(attributes: Mapping[str, str | int | float | bool], window: int) -> tuple[Part, ...]:
    backend = str(attributes["backend"])
    precision = _cache(attributes)
    sizes = (
        ("head_size", int(attributes["head_size"])),
        ("num_heads", int(attributes["num_heads"])),
        ("num_kv_heads", int(attributes["num_kv_heads"])),
        ("window", window),
    )
    where = None if backend.startswith("CPU") else backend
    return tuple(Part(Family(phase, precision, where), sizes) for phase in ("prefill", "decode"))


def _cache(attributes: Mapping[str, str | int | float | bool]) -> str:
    dtype = str(attributes["kv_cache_dtype"])
    return _CACHES.get(dtype, dtype)


def _latent_layer(attributes: Mapping[str, str | int | float | bool], precision: str) -> tuple[Part, ...]:
    sparse = "index_top_k" in attributes
    names = (*_PUBLISHED_LATENT, "num_heads", *(_INDEXER if sparse else ()))
    sizes = tuple(sorted((name, int(attributes[name])) for name in names))
    kept = f"{precision} {_cache(attributes)}"
    kernel = "sparse latent" if sparse else "latent"
    return tuple(Part(Family(f"{kernel} {phase}", kept), sizes) for phase in ("prefill", "decode"))


def _latent_attention(attributes: Mapping[str, str | int | float | bool], dtype: str) -> tuple[Part, ...]:
    """A published layer with as many heads, less its three matrix products; none where latents have other sizes."""
    of, heads = _PUBLISHED_LATENT, int(attributes["num_heads"])
    if any(attributes.get(name, size) != size for name, size in of.items()):
        return ()
    sizes = tuple(sorted({**of, "num_heads": heads}.items()))
    head = of["qk_nope_head_dim"] + of["qk_rope_head_dim"]
    kept = f"{dtype} {_cache(attributes)}"
    return (
        *(Part(Family(f"latent {phase}", kept), sizes) for phase in ("prefill", "decode")),
        _gemm(dtype, of["q_lora_rank"] + of["kv_lora_rank"] + of["qk_rope_head_dim"], of["hidden_size"], -1),
        _gemm(dtype, heads * head, of["q_lora_rank"], -1),
        _gemm(dtype, of["hidden_size"], heads * of["v_head_dim"], -1),
    )


def _moe(signature: Signature, precision: str) -> tuple[Part, ...]:
    """Experts, and the matrix products of the router and of shared experts where the operation runs them.

    Of engines that share experts, which gather what each has and sum what belongs to each, the two collectives too:
    hidden states alone, in the precision that they come in, whatever a kernel makes of them before.
    """
    attributes = dict(signature.attributes)
    shapes = {role: shape for role, _, shape in signature.tensors}
    # Without a gate there is a matrix less: as many weights as with one have an inner size of two thirds.
    gated = not str(attributes.get("activation", "")).endswith("_no_mul")
    wide = next(shape for role, shape in shapes.items() if role.endswith("w13_weight"))
    sizes = {
        "experts": experts_of(signature),
        "hidden_size": _columns(signature),
        "intermediate_size": int(wide[1]) // 2 if gated else round(int(wide[1]) * 2 / 3),
        "local_experts": int(attributes["num_local_experts"]),
        "top_k": int(attributes["top_k"]),
    }
    others = _products(signature, precision)
    experts = Part(Family("experts", precision), tuple(sorted(sizes.items())), of_all=True)
    return experts, *others, *_gathering(signature)


def _products(signature: Signature, precision: str) -> tuple[Part, ...]:
    """The matrix products that an operation encloses, with weights of their own."""
    weights = filter(_is_of_product, signature.tensors)
    return tuple(_gemm(_beside(dtype, precision), int(shape[0]), int(shape[1])) for _, dtype, shape in weights)


def _is_of_product(tensor: TensorIdentity) -> bool:
    """Whether a tensor is the weight of one matrix product, and not of each expert or of a convolution."""
    role, _, shape = tensor
    return is_weight_matrix(role, shape) and len(shape) == 2


def _gathering(signature: Signature) -> tuple[Part, ...]:
    """What engines that share experts send each other; none where an engine has its own."""
    if engines_of(signature) == 1:
        return ()
    ranks, dtype, columns = gathering_ranks(signature), _dtype(signature.tensors[0][1]), _columns(signature)
    sizes = (("ranks", ranks),)
    return (
        Part(Family("all_gather", dtype), sizes, columns=columns / ranks, of_all=True),
        Part(Family("reduce_scatter", dtype), sizes, columns=columns, of_all=True),
    )


def _beside(dtype: str, experts: str) -> str:
    """Precision of a weight of a router or a shared expert, beside experts of another."""
    if dtype in FLOATS:
        return _dtype(dtype)
    usual = _QUANTISED.get(dtype, (experts,))
    return experts if experts in usual else usual[0]


def _prompts(work: Work, window: int) -> Columns:
    """Equal prompts with as many tokens and attended pairs as those of each point: `batch_size` of `prompt_len`.

    n prompts of l tokens attend n l (l + 1) / 2 pairs; with a window w shorter than l, n (l w - w (w - 1) / 2).
    """
    features = Features(work, window or None)
    tokens = work.sum(features.prompts * work.query_lens)
    pairs = work.sum(features.prompts * features.pairs)
    each = np.divide(pairs, tokens, out=np.ones_like(pairs), where=tokens > 0)  # pairs of a token
    length = 2 * each - 1
    if window:
        # Queries that all see a full window are worth those of any long prompt: one as long as the longest request.
        longest = work.max(features.prompts * (work.query_lens + work.context_lens))
        cut = window * (window - 1) / np.maximum(2 * (window - each), 1e-9)
        length = np.where(length > window, np.minimum(cut, np.maximum(longest, window)), length)
    length = _whole(length)
    return {"batch_size": _whole(tokens / length), "prompt_len": length}


def _whole(values: Array) -> Array:
    """The values, those that rounding has moved off a whole number put back: a tile more would be another feature."""
    whole = np.round(values)
    return np.where(np.isclose(values, whole, rtol=1e-9, atol=0), whole, values)


def _decodes(work: Work) -> Columns:
    features = Features(work, None)
    decodes = work.sum(1 - features.prompts)
    contexts = work.sum((1 - features.prompts) * work.context_lens)
    mean = np.divide(contexts, decodes, out=np.zeros_like(contexts), where=decodes > 0)
    return {"batch_size": decodes, "context_len": mean}
