"""What an operation moves and computes, from its signature alone: the two axes of a roofline."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.core.operation import OperationKind
from pytest_dooly.core.signature import (
    Signature,
    dtype_bytes,
    engines_of,
    experts_of,
    fixed_size,
    gathering_ranks,
    is_weight_matrix,
)
from pytest_dooly.core.work import Features, Work, sent

__all__ = ["bytes_gathered", "bytes_of", "bytes_sent", "flops", "flops_of", "window_of"]

Array = npt.NDArray[np.float64]


_PASSES = {
    OperationKind.ACTIVATION: 1.5,
    OperationKind.EMBEDDING: 1.0,
    OperationKind.NORM: 2.0,
    OperationKind.OTHER: 2.0,
    OperationKind.ROTARY: 2.0,
    OperationKind.SAMPLER: 5.0,
}
"""How often an operation moves its inputs: a norm reads and writes them, a gated activation writes half, a sampler also
makes single-precision numbers of the logits and reads these."""


def flops_of(signature: Signature, point: SweepPoint) -> float:
    """Floating-point operations of one run at a point: two for each weight and row, four for each pair and channel.

    A row meets as many experts of a mixture as it is routed to, of those that a rank has.
    """
    return float(flops(signature, Features(Work.of([point]), window_of(signature)))[0])


def window_of(signature: Signature) -> float | None:
    """Attention window in tokens; None where all is attended."""
    return float(signature.window) if signature.window else None


def bytes_of(signature: Signature, of: Features) -> Array:
    """What the operation reads and writes, shape (points,)."""
    total = np.zeros(len(of.work))
    passes = _PASSES.get(signature.kind, 1.0)
    experts = max(float(dict(signature.attributes).get("num_local_experts", 1)), 1.0)
    for role, dtype, shape in signature.tensors:
        size = fixed_size(shape) * dtype_bytes(dtype)
        asked = " ".join(dim for dim in shape if isinstance(dim, str))
        if "context_len" in asked:
            total += size * of.work.sum(of.read)
        elif asked and "tokens_per_expert" not in asked:
            total += passes * size * of.tokens
        elif not asked and role.startswith("state"):
            total += 2 * size * of.num_reqs  # each request has one, read and written
        elif not asked and signature.kind is OperationKind.EMBEDDING:
            total += 2 * of.tokens * size / float(shape[0])  # a row of it is read and written
        elif not asked and len(shape) > 2 and experts > 1:
            total += size * np.maximum(of.activated, 1) / experts
        elif not asked:
            total += size
    return total + of.tokens * _output_bytes(signature) + 2 * _gathered_row_bytes(signature) * of.gathered


def _output_bytes(signature: Signature) -> float:
    """Of one row of a matrix product's output."""
    weights = [(dtype, shape) for role, dtype, shape in signature.tensors if role == "weight" and len(shape) == 2]
    if signature.kind in (OperationKind.LINEAR, OperationKind.LOGITS) and weights:
        return 2.0 * float(weights[0][1][0])
    return 0.0


def flops(signature: Signature, of: Features) -> Array:
    """Two for each weight and row, four for each attended pair and channel; shape (points,)."""
    attributes: Mapping[str, str | int | float | bool] = dict(signature.attributes)
    # Of the weights, which are those of one rank's experts.
    met = float(attributes.get("top_k", 1)) / max(experts_of(signature), 1)
    weights = routed = 0.0
    for role, _, shape in signature.tensors:
        if is_weight_matrix(role, shape) and signature.kind is not OperationKind.EMBEDDING:
            if len(shape) > 2:
                routed += met * fixed_size(shape)
            else:
                weights += fixed_size(shape)
    channels = float(attributes.get("num_heads", 0)) * float(attributes.get("head_size", 0))
    pairs = of.work.sum(of.pairs) if signature.kind is OperationKind.ATTENTION else np.zeros(len(of.work))
    return 2 * (weights * of.tokens + routed * of.gathered) + 4 * channels * pairs


def bytes_sent(signature: Signature, of: Features) -> Array:
    """Bytes that a rank sends, shape (points,)."""
    ranks = np.array(float(dict(signature.attributes)["ranks"]))
    _, dtype, shape = signature.tensors[0]
    row = fixed_size(shape) * dtype_bytes(dtype)
    return row * of.tokens * sent(signature.name, ranks)


def bytes_gathered(signature: Signature, of: Features) -> Array:
    """Bytes that a rank sends of what engines that share experts gather and sum, shape (points,)."""
    ranks = np.array(float(gathering_ranks(signature)))
    whole = _gathered_row_bytes(signature) * of.gathered
    return whole / ranks * sent("all_gather", ranks) + whole * sent("reduce_scatter", ranks)


def _gathered_row_bytes(signature: Signature) -> float:
    """Of a token's hidden states, where engines gather them to share experts."""
    if engines_of(signature) == 1:
        return 0.0
    _, dtype, shape = signature.tensors[0]
    return fixed_size(shape) * dtype_bytes(dtype)
