"""Latencies of operations that nobody has measured: from what they move and compute, and the device's data sheet.

A stated estimate, not a measurement: the larger of bytes over bandwidth and operations over the peak, each at the share
of it that good kernels reach, and the launch of one kernel. It is for norms, activations and the like, whose share of a
step is small; every prediction says how large.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pytest_dooly.batch import SweepPoint
from pytest_dooly.device import Device
from pytest_dooly.operation import OperationKind
from pytest_dooly.signature import Signature, dtype_bytes, fixed_size
from pytest_dooly.work import Features, Work, sent

__all__ = ["ADMISSION_S", "LAUNCH_S", "MEMORY_SHARE", "PEAK_SHARE", "STEP_S", "Estimate", "flops_of"]

Array = npt.NDArray[np.float64]

LAUNCH_S = 2.5e-6
"""One kernel in a replayed graph that does next to nothing: the least of 35,742 published products on an H200 (2.4)."""

MEMORY_SHARE, PEAK_SHARE = 0.8, 0.7
"""Of the bandwidth and of the peak in the data sheet."""

STEP_S, ADMISSION_S = 5e-4, 1e-4
"""The engine's own share of a step (scheduling, inputs, outputs), and of a request's admission: assumed, not known."""

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

_OVERHEADS_S = {"step": STEP_S, "admission": ADMISSION_S}
"""What lies between layers and what launches them takes a replayed graph no time."""


@dataclass(frozen=True)
class Estimate:
    """The estimated latency of one operation.

    Attributes:
        signature: of the operation.
        device: that it runs on.
    """

    signature: Signature
    device: Device

    def predict_s(self, points: Sequence[SweepPoint] | Work) -> Array:
        """Latencies in seconds, shape (points,)."""
        work = points if isinstance(points, Work) else Work.of(points)
        if self.signature.kind is OperationKind.OVERHEAD:
            return np.full(len(work), _OVERHEADS_S.get(self.signature.name, 0.0))
        features = Features(work, _window(self.signature))
        if self.signature.kind is OperationKind.COLLECTIVE:
            return LAUNCH_S + _moved(self.signature, features) / self.device.link_bytes_per_s
        memory_s = _bytes(self.signature, features) / (MEMORY_SHARE * self.device.memory_bytes_per_s)
        compute_s = _flops(self.signature, features) / (PEAK_SHARE * self.device.flops_per_s)
        return LAUNCH_S + np.maximum(memory_s, compute_s)

    def out_of_range(self, points: SweepPoint | Work) -> str | None:
        """None: an estimate has no measured range."""
        return None


def flops_of(signature: Signature, point: SweepPoint) -> float:
    """Floating-point operations of one run at a point: two for each weight and row, four for each pair and channel.

    A row meets as many experts of a mixture as it is routed to, of those that a rank has.
    """
    return float(_flops(signature, Features(Work.of([point]), _window(signature)))[0])


def _window(signature: Signature) -> float | None:
    window = dict(signature.attributes).get("sliding_window")
    return float(window) if window else None


def _bytes(signature: Signature, of: Features) -> Array:
    """What the operation reads and writes, shape (points,)."""
    total = np.zeros(len(of.work))
    passes = _PASSES.get(signature.kind, 1.0)
    experts = max(float(dict(signature.attributes).get("num_local_experts", 1)), 1.0)
    for _, dtype, shape in signature.tensors:
        size = fixed_size(shape) * dtype_bytes(dtype)
        asked = " ".join(dim for dim in shape if isinstance(dim, str))
        if "context_len" in asked:
            total += size * of.work.sum(of.read)
        elif asked and "tokens_per_expert" not in asked:
            total += passes * size * of.tokens
        elif not asked and signature.kind is OperationKind.EMBEDDING:
            total += 2 * of.tokens * size / float(shape[0])  # a row of it is read and written
        elif not asked and len(shape) > 2 and experts > 1:
            total += size * np.maximum(of.activated, 1) / experts
        elif not asked:
            total += size
    return total + of.tokens * _output_bytes(signature)


def _output_bytes(signature: Signature) -> float:
    """Of one row of a matrix product's output."""
    weights = [(dtype, shape) for role, dtype, shape in signature.tensors if role == "weight" and len(shape) == 2]
    if signature.kind in (OperationKind.LINEAR, OperationKind.LOGITS) and weights:
        return 2.0 * float(weights[0][1][0])
    return 0.0


def _flops(signature: Signature, of: Features) -> Array:
    """Two for each weight and row, four for each attended pair and channel; shape (points,)."""
    attributes: Mapping[str, str | int | float | bool] = dict(signature.attributes)
    experts = attributes.get("num_experts", attributes.get("num_local_experts", 1))
    met = float(attributes.get("top_k", 1)) / float(experts)  # of the weights, which are those of one rank's experts
    weights = sum(
        fixed_size(shape) * (met if len(shape) > 2 else 1)
        for role, _, shape in signature.tensors
        if role.endswith("weight") and len(shape) > 1 and signature.kind is not OperationKind.EMBEDDING
    )
    channels = float(attributes.get("num_heads", 0)) * float(attributes.get("head_size", 0))
    pairs = of.work.sum(of.pairs) if signature.kind is OperationKind.ATTENTION else np.zeros(len(of.work))
    return 2 * weights * of.tokens + 4 * channels * pairs


def _moved(signature: Signature, of: Features) -> Array:
    """Bytes that a rank sends, shape (points,)."""
    ranks = np.array(float(dict(signature.attributes)["ranks"]))
    _, dtype, shape = signature.tensors[0]
    row = fixed_size(shape) * dtype_bytes(dtype)
    return row * of.tokens * sent(signature.name, ranks)
