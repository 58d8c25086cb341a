"""A GPU's engine as vLLM runs it by default: small steps replay a captured graph, larger ones are launched.

Steps of up to `Limits.captured_tokens` tokens are padded to the next captured size, and replaying costs the host next
to nothing. Beyond, the host launches kernel by kernel while the device works on those before, so that the slower of the
two decides (`LayerLaunches`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.core.operation import BETWEEN_LAYERS, OperationKind
from pytest_dooly.core.signature import ServedModel, Signature
from pytest_dooly.core.work import Features, Work
from pytest_dooly.published.family import parts_of

__all__ = ["COMPILED_S", "KERNEL_S", "LayerLaunches", "is_padded", "kernels_of", "layer_launches", "padded"]

Array = npt.NDArray[np.float64]

COMPILED_S = 1e-5
"""What the host takes to launch one kernel from code that torch.compile has written; assumed."""

KERNEL_S = 41e-6
"""What the host takes to launch one kernel from Python, as vLLM does for attention, mixtures and quantised products.

Half of what products in fp8 blocks by DeepGEMM take, which are two kernels, where the launch hides the work: 82 µs on
an H100 and on an H200 (5th percentile of 23,850 and 23,882 published latencies of vLLM 0.24, launched one by one).
"""

_QUANTISED = ("fp8_block", "int8", "nvfp4")
"""Precisions whose activations a kernel of its own quantises; in fp8 per tensor the norm before does it."""

_EXPERTS, _ATTENTION, _MIXER = 8, 2, 4
"""Kernels of a mixture (top k, two of alignment, two of quantisation or activation, two products, the sum), of
attention (keys and values written, attention) and of a state-space mixer besides its products (convolution, recurrence,
gate, norm)."""


@dataclass(frozen=True)
class LayerLaunches:
    """What the host takes to launch a decoder layer, seen where the device is done before the host.

    Attributes:
        launch_s: of the layer's kernels together, in seconds.
        captured_tokens: most tokens of a step that replays a graph, which launches nothing.
    """

    launch_s: float
    captured_tokens: int

    def predict_s(self, points: Sequence[SweepPoint] | Work) -> Array:
        """Seconds of a layer, shape (points,)."""
        work = points if isinstance(points, Work) else Work.of(points)
        return np.where(Features(work, None).tokens > self.captured_tokens, self.launch_s, 0.0)

    def out_of_range(self, points: SweepPoint | Work) -> str | None:
        """None: it is known for every step."""
        return None


def layer_launches(model: ServedModel) -> LayerLaunches:
    """What launching a layer of a model takes: all its kernels over the number of its layers."""
    layers = sum(o.multiplicity for o in model.operations if o.signature.name in BETWEEN_LAYERS)
    launch_s = sum(o.multiplicity * _launch_s(o.signature) for o in model.operations)
    return LayerLaunches(launch_s / layers, model.limits.captured_tokens)


def padded(num_tokens: Array, captured_tokens: int) -> Array:
    """Tokens that a step computes with: those of the next captured size, its own beyond the largest.

    Sizes are 1, 2, 4, every eighth up to 256 and every sixteenth beyond, as vLLM captures them by default.

    Args:
        num_tokens: of steps, shape (steps,).
        captured_tokens: of the largest captured step.
    """
    every = np.where(num_tokens > 256, 16.0, np.where(num_tokens > 4, 8.0, np.where(num_tokens > 2, 2.0, 1.0)))
    up = np.ceil(num_tokens / every) * every
    return np.where(num_tokens <= captured_tokens, np.minimum(up, captured_tokens), num_tokens)


def is_padded(signature: Signature) -> bool:
    """Whether the operation works on the tokens that fill a captured size up, too: those do not attend."""
    in_graph = signature.kind not in (OperationKind.LOGITS, OperationKind.SAMPLER, OperationKind.OVERHEAD)
    return in_graph and signature.swept in ("num_tokens", "routing")


def kernels_of(signature: Signature) -> int:
    """Kernels that one call of an operation launches."""
    match signature.kind:
        case OperationKind.MOE:
            return _EXPERTS
        case OperationKind.ATTENTION:
            return _ATTENTION
        case OperationKind.MIXER:
            return _MIXER + len(parts_of(signature))
        case _:
            return 1


def _launch_s(signature: Signature) -> float:
    """Seconds that launching one call of a layer's operation takes."""
    match signature.kind:
        case OperationKind.MOE | OperationKind.ATTENTION | OperationKind.MIXER:
            return kernels_of(signature) * KERNEL_S
        case OperationKind.OVERHEAD | OperationKind.LOGITS | OperationKind.SAMPLER | OperationKind.EMBEDDING:
            return 0.0
        case OperationKind.LINEAR if any(part.family.precision in _QUANTISED for part in parts_of(signature)):
            return 2 * KERNEL_S
        case _:
            return COMPILED_S
