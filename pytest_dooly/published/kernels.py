"""What the kernels of a family do on a device, as features: work, roofline, tiles, waves.

A kernel cuts its output into tiles, one for each multiprocessor at a time; the last wave of tiles and the tiles at the
edges are partly empty, and another choice of tiles makes the next step. What tiles a kernel chooses is not known here:
the features of the usual ones stand beside each other, and the trees take what explains the latencies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pytest_dooly.core.device import Device
from pytest_dooly.core.work import sent
from pytest_dooly.published.family import Columns, Family

__all__ = [
    "FEATURES_VERSION",
    "LAUNCH_S",
    "MEMORY_SHARE",
    "PEAK_SHARE",
    "WEIGHT_BYTES",
    "Description",
    "describe",
    "estimated_s",
    "reached_s",
    "speedup",
]

Array = npt.NDArray[np.float64]
Tiles = tuple[tuple[int, int], ...]

FEATURES_VERSION = 6
"""Raised when features or regressors across sizes change, so that one in a latency DB is not taken for a new one."""

_L2_BYTES = 50e6
"""Of a last-level cache; the trees only need its order of magnitude."""

WEIGHT_BYTES = {
    "fp32": 4.0,
    "bf16": 2.0,
    "fp8": 1.0,
    "fp8_block": 1.0,
    "mxfp8": 1.03,
    "int8": 1.0,
    "int8_weights": 1.0,
    "int4": 0.5,
    "nvfp4": 0.56,
    "mxfp4": 0.53,
    "mxfp4_mxfp8": 0.53,
}
"""Of a weight, with its share of the scales; 2 for others."""

_CACHE_BYTES = {"fp32": 4.0, "fp8": 1.0}
"""Of an element of the KV cache; 2 for others."""

_SPEEDUPS = {
    "fp8": (2.0, (8, 9)),
    "fp8_block": (2.0, (8, 9)),
    "mxfp8": (2.0, (10, 0)),
    "int8": (2.0, (7, 5)),
    "nvfp4": (4.0, (10, 0)),
    "mxfp4_mxfp8": (2.0, (10, 0)),
}
"""Of matrix products over bf16, and from which compute capability on there are cores for them; where there are none,
and with other weights, a kernel makes them bf16 first."""

LAUNCH_S = 2.5e-6
"""One kernel in a replayed graph that does next to nothing: the least of 35,742 published products on an H200 (2.4)."""

MEMORY_SHARE, PEAK_SHARE = 0.8, 0.7
"""Of the bandwidth and of the peak in the data sheet, that good kernels reach."""

_PRODUCT: Tiles = ((64, 64), (64, 128), (128, 128), (64, 256), (128, 256), (256, 128))
_EXPERT: Tiles = ((16, 128), (64, 128), (128, 128))

_HEADS = 64
"""That kernels of latent decodes work on at once."""


@dataclass(frozen=True)
class Description:
    """Rows of one family, described.

    Attributes:
        names: of the features.
        matrix: shape (rows, features); the first `num_sizes` span the space in which a size is near another.
        roofline_s: what the device could do the work in at best, shape (rows,), in seconds.
        num_sizes: number of leading features that are logarithms of sizes and of request values.
    """

    names: tuple[str, ...]
    matrix: Array
    roofline_s: Array
    num_sizes: int


@dataclass(frozen=True)
class _Kernel:
    """What one kind of kernel does, each of shape (rows,).

    Attributes:
        flops: floating-point operations.
        moved: bytes between memory and multiprocessors, at least.
        reused: bytes that several tiles read.
        grids: rows, columns and number of the outputs, and how they may be cut into tiles.
        extra: other features.
    """

    flops: Array
    moved: Array
    reused: Array
    grids: Mapping[str, tuple[Array, Array, Array, Tiles]]
    extra: Columns


def describe(family: Family, columns: Columns, device: Device) -> Description:
    """The features of rows.

    Args:
        family: of the rows.
        columns: sizes and request values by name, each of shape (rows,), as `family.columns_of` gives them.
        device: that runs them.
    """
    kernel, compute_s, memory_s = _worked(family, columns, device)
    bound_s = np.maximum(compute_s, memory_s)
    sizes = {f"size {name}": np.log2(np.maximum(values, 0.5)) for name, values in columns.items()}
    features = dict(sizes)
    features |= {"flops": np.log2(kernel.flops), "bytes": np.log2(kernel.moved)}
    features |= {
        "intensity": np.log2(kernel.flops / kernel.moved),
        "compute over memory": np.log2(compute_s / memory_s),
    }
    features |= {"roofline": np.log2(bound_s)}
    features |= {"reused in L2": np.log2(kernel.reused / _L2_BYTES), "moved in L2": np.log2(kernel.moved / _L2_BYTES)}
    for name, (rows, wide, count, shapes) in kernel.grids.items():
        for high, width in shapes:
            tiles = count * np.ceil(rows / high) * np.ceil(wide / width)
            waves = np.ceil(tiles / device.multiprocessors)
            label = f"{name} {high}x{width}".strip()
            area = count * rows * wide
            features[f"waves {label}"] = np.log2(tiles / device.multiprocessors)
            features[f"quantised {label}"] = waves * device.multiprocessors / tiles  # 1: every wave is full
            features[f"padded {label}"] = tiles * high * width / area  # 1: every tile is full
            features[f"paid {label}"] = np.log2(waves * device.multiprocessors * high * width / area)
    features |= kernel.extra
    matrix = np.column_stack([np.broadcast_to(values, bound_s.shape) for values in features.values()])
    return Description(tuple(features), matrix, bound_s, len(sizes))


def estimated_s(family: Family, columns: Columns, device: Device) -> Array:
    """What rows of a family take by the data sheet alone, shape (rows,), in seconds; as `Estimate` is of operations.

    Args:
        family: of the rows.
        columns: sizes and request values by name, each of shape (rows,), as `family.columns_of` gives them.
        device: that runs them.
    """
    _, compute_s, memory_s = _worked(family, columns, device)
    return reached_s(compute_s, memory_s)


def reached_s(compute_s: Array, memory_s: Array) -> Array:
    """What good kernels reach of what the device could at best, each of shape (rows,), in seconds, launch included."""
    return LAUNCH_S + np.maximum(compute_s / PEAK_SHARE, memory_s / MEMORY_SHARE)


def speedup(precision: str, device: Device) -> float:
    """How many times as fast as in bf16 a device computes products with weights of a precision.

    Those in fp32 run on no cores for matrices: vLLM leaves `VLLM_FLOAT32_MATMUL_PRECISION` at "highest", which is no
    TF32 (vllm/envs.py of 0.32.0).
    """
    if precision == "fp32":
        return device.fp32_flops_per_s / device.flops_per_s
    factor, capability = _SPEEDUPS.get(precision, (1.0, (0, 0)))
    return factor if device.compute_capability >= capability else 1.0


def _worked(family: Family, columns: Columns, device: Device) -> tuple[_Kernel, Array, Array]:
    """What the kernel does, and the seconds that the device needs at least to compute and to move, of shape (rows,)."""
    kernel = _KERNELS.get(family.kernel, _message)(columns, family)
    bandwidth = device.link_bytes_per_s if "elements" in columns else device.memory_bytes_per_s
    speed = device.flops_per_s * speedup(family.of_weights, device)
    return kernel, kernel.flops / speed, kernel.moved / bandwidth


def _product(c: Columns, family: Family) -> _Kernel:
    """(m, k) x (k, n): 2 m n k operations."""
    m, n, k, weight = c["num_tokens"], c["n"], c["k"], WEIGHT_BYTES.get(family.precision, 2.0)
    extra = {"m mod 8": m % 8, "log2 n fraction": np.log2(n) % 1, "log2 k fraction": np.log2(k) % 1}
    extra |= {f"m tail {tile}": m % tile / tile for tile in (64, 128, 256)}
    extra |= {"n tail 256": n % 256 / 256, "k over n": np.log2(k / n)}
    activation = weight if family.precision in _SPEEDUPS else 2.0
    moved = weight * n * k + activation * m * k + 2 * m * n
    return _Kernel(2 * m * n * k, moved, weight * n * k, {"": (m, n, np.ones_like(m), _PRODUCT)}, extra)


def _prefill(c: Columns, family: Family) -> _Kernel:
    """Causal attention of batch_size prompts, banded by a window: 4 operations a pair and channel."""
    batch, length, heads, kv_heads, channels, cache = _attention(c, family)
    seen = np.where(c["window"] > 0, np.minimum(c["window"], length), length)
    pairs = seen * (seen + 1) / 2 + (length - seen) * seen
    moved = 2 * 2 * batch * length * heads * channels + 2 * cache * batch * length * kv_heads * channels
    grids = {
        "q": (length, channels, batch * heads, ((64, 512), (128, 512), (192, 512))),
        "packed": (length * heads / kv_heads, channels, batch * kv_heads, ((128, 512),)),
    }
    extra = {
        "group": np.log2(heads / kv_heads),
        "seen": np.log2(seen),
        "pairs": np.log2(pairs),
        "in window": seen / length,
    }
    reused = 2 * cache * batch * seen * kv_heads * channels
    return _Kernel(4 * batch * heads * channels * pairs, moved, reused, grids, extra)


def _decode(c: Columns, family: Family) -> _Kernel:
    """One query a request over its context and itself, or over the window."""
    batch, length, heads, kv_heads, channels, cache = _attention(c, family)
    seen = np.where(c["window"] > 0, np.minimum(c["window"], length), length)
    moved = 2 * cache * batch * seen * kv_heads * channels + 2 * 2 * batch * heads * channels
    grids = {
        "kv": (heads / kv_heads, channels, batch * kv_heads, ((64, 512),)),
        "split": (seen, channels, batch * kv_heads, ((64, 512), (128, 512), (256, 512))),
    }
    extra = {"group": np.log2(heads / kv_heads), "seen": np.log2(seen), "in window": seen / length}
    reused = 2 * cache * batch * seen * kv_heads * channels
    return _Kernel(4 * batch * heads * channels * seen, moved, reused, grids, extra)


def _mixed(c: Columns, family: Family) -> _Kernel:
    """Prompts and decodes in one kernel, whose tiles are those of prompts: one for each head of a decode."""
    decodes = {name: values for name, values in c.items() if name not in ("batch_size", "prompt_len")}
    of_prompts, of_decodes = _prefill(c, family), _decode(decodes | {"batch_size": c["num_decodes"]}, family)
    moved = of_prompts.moved + of_decodes.moved
    grids = {**of_prompts.grids, "kv": of_decodes.grids["kv"]}
    extra = of_prompts.extra | {"decode seen": of_decodes.extra["seen"], "decode bytes": np.log2(of_decodes.moved)}
    extra |= {"decode share": of_decodes.moved / moved, "decode heads": np.log2(c["num_decodes"] * c["num_heads"])}
    flops, reused = of_prompts.flops + of_decodes.flops, of_prompts.reused + of_decodes.reused
    return _Kernel(flops, moved, reused, grids, extra)


def _attention(c: Columns, family: Family) -> tuple[Array, Array, Array, Array, Array, float]:
    length = c["prompt_len"] if "prompt_len" in c else c["context_len"] + 1
    cache = _CACHE_BYTES.get(family.precision, 2.0)
    return c["batch_size"], length, c["num_heads"], c["num_kv_heads"], c["head_size"], cache


def _experts(c: Columns, family: Family) -> _Kernel:
    """Two grouped products over the experts that get a token: 6 operations a routed token and weight of an expert."""
    weight = WEIGHT_BYTES.get(family.precision, 2.0)
    hidden, inner, local = c["hidden_size"], c["intermediate_size"], c["local_experts"]
    active, busiest = np.maximum(c["activated"], 1), np.maximum(c["busiest"], 1)
    routed = np.maximum(c["num_tokens"] * c["top_k"] * local / c["experts"], active)
    each = routed / active
    weights = weight * 3 * active * hidden * inner
    moved = weights + 2 * routed * (2 * hidden + 3 * inner)
    grids = {"up": (each, 2 * inner, active, _EXPERT), "down": (each, hidden, active, _EXPERT)}
    extra = {"rows": np.log2(each), "active": np.log2(active), "routed": np.log2(routed)}
    extra |= {"inner tail": inner % 128 / 128, "hidden tail": hidden % 512 / 512}
    extra |= {"busiest rows": np.log2(busiest), "busiest share": busiest / routed}
    extra |= {f"busiest tail {tile}": busiest % tile / tile for tile in (16, 64)}
    return _Kernel(6 * routed * hidden * inner, moved, weights, grids, extra)


def _latent(c: Columns, family: Family) -> _Kernel:
    """A layer of latent attention: its projections, and attention over latents (decodes) or expanded keys (prompts)."""
    weight = WEIGHT_BYTES.get(family.of_weights, 2.0)
    cache = _CACHE_BYTES.get(family.of_cache, 2.0)
    decode, batch, heads = "context_len" in c, c["batch_size"], c["num_heads"]
    length = c["context_len"] + 1 if decode else c["prompt_len"]
    latent, rope, nope, value = c["kv_lora_rank"], c["qk_rope_head_dim"], c["qk_nope_head_dim"], c["v_head_dim"]
    tokens = batch if decode else batch * length
    down = c["q_lora_rank"] + latent + rope
    head = nope + rope
    up = heads * (c["q_lora_rank"] * head + latent * (nope + value) + value * c["hidden_size"])
    weights = c["hidden_size"] * down + up
    channels = (2 * latent + rope) * length if decode else (head + value) * (length + 1) / 2
    padded = np.ceil(heads / _HEADS) * _HEADS if decode else heads
    attend = 2 * tokens * padded * channels
    moved = weight * weights + cache * batch * length * (latent + rope)
    moved += 2 * tokens * (2 * c["hidden_size"] + down + heads * (head + 2 * value))
    one = np.ones_like(batch)
    grids: dict[str, tuple[Array, Array, Array, Tiles]]
    grids = {"out": (tokens, c["hidden_size"], one, ((128, 128),)), "q": (tokens, heads * head, one, ((128, 128),))}
    tiles = ((64, 512), (128, 512))
    grids["attend"] = (
        np.maximum(heads, _HEADS) if decode else length,
        latent,
        batch if decode else batch * heads,
        tiles,
    )
    extra = {"tokens": np.log2(tokens), "attend": np.log2(attend), "project": np.log2(2 * tokens * weights)}
    extra |= {"attend share": np.log2(attend / (tokens * weights)), "cache": np.log2(batch * length)}
    return _Kernel(2 * tokens * weights + attend, moved, weight * weights, grids, extra)


def _sparse_latent(c: Columns, family: Family) -> _Kernel:
    """A layer of latent attention over the index_top_k tokens that its indexer, which scores all before, has chosen.

    Attention over latents costs a pair 2 (2 kv_lora_rank + qk_rope_head_dim) operations a head, the indexer's 8-bit
    scores a pair 2 index_head_size operations a head of its own.
    """
    whole = _latent(c, family)
    decode, batch = "context_len" in c, c["batch_size"]
    length = c["context_len"] + 1 if decode else c["prompt_len"]
    tokens = batch if decode else batch * length
    seen = np.minimum(length, c["index_top_k"])
    scored = length if decode else (length + 1) / 2
    attended = seen if decode else (seen * (seen + 1) / 2 + (length - seen) * seen) / length
    heads = np.ceil(c["num_heads"] / _HEADS) * _HEADS
    channels = 2 * c["kv_lora_rank"] + c["qk_rope_head_dim"]
    index = c["index_heads"] * c["index_head_size"]
    attend, score = 2 * tokens * heads * attended * channels, 2 * tokens * scored * index
    projected = 2 * tokens * (c["q_lora_rank"] * index + c["hidden_size"] * (c["index_head_size"] + c["index_heads"]))
    dense = 2.0 ** whole.extra["attend"]
    moved = whole.moved + c["index_head_size"] * batch * length
    if decode:
        cache = _CACHE_BYTES.get(family.of_cache, 2.0)
        moved = moved - cache * batch * (length - seen) * (c["kv_lora_rank"] + c["qk_rope_head_dim"])
    extra = whole.extra | {"attend": np.log2(attend), "score": np.log2(score), "chosen": seen / length}
    extra |= {"score share": np.log2(score / attend), "attended": np.log2(attended), "scored": np.log2(scored)}
    return _Kernel(whole.flops - dense + attend + projected + score / 2, moved, whole.reused, whole.grids, extra)


def _message(c: Columns, family: Family) -> _Kernel:
    """A collective over `ranks`, of numbers of two bytes."""
    ranks, elements = c["ranks"], c["elements"]
    received = {"received": np.log2((ranks - 1) * elements)}
    return _Kernel(elements, 2 * elements * sent(family.kernel, ranks), elements, {}, received)


_KERNELS: Mapping[str, Callable[[Columns, Family], _Kernel]] = {
    "gemm": _product,
    "prefill": _prefill,
    "decode": _decode,
    "mixed": _mixed,
    "experts": _experts,
    "latent prefill": _latent,
    "latent decode": _latent,
    "sparse latent prefill": _sparse_latent,
    "sparse latent decode": _sparse_latent,
}
