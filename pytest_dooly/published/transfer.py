"""Latencies of an operation of which nothing is published, from those of one that is like it.

That is the same operation on a GPU that is like this one, or on this GPU with its weights as bf16. What the data sheet
says of both, at the point that is asked for, multiplies what is published: a product that waits for memory takes as
much longer as the memory is slower or the weights are larger, one that computes as much as the peak is lower, and a
launch takes what it takes. Kernels, tiles and waves are the other's. Where a GPU has no cores for a precision (fp8 on
an A100, 4 bits beside 16 anywhere), kernels unpack weights and multiply in bf16, as is supposed here of them all: int8
beside int8, which every GPU here computes faster than bf16, is predicted too slow where it computes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.core.device import Device
from pytest_dooly.core.signature import FLOATS, Signature, is_weight_matrix
from pytest_dooly.core.work import Work
from pytest_dooly.published.basis import Basis, BasisKind, Foundation
from pytest_dooly.published.estimate import Estimate
from pytest_dooly.published.family import weight_precision

__all__ = ["OF_ANOTHER", "OF_ANOTHER_PRECISION", "OF_A_KIND", "Transferred", "transferred", "unquantised"]

Array = npt.NDArray[np.float64]

OF_A_KIND, OF_ANOTHER = 0.1, 0.3
"""Expected relative error that another GPU's latencies add: of one of the same compute capability that is no more than
ALIKE times as fast or as slow, and of any other.

From operations of GPUs that have tables of their own (`make bench-transfer`): 8 and 10 % between an H100 and an H200,
whose bandwidths are 1.43 times apart; 15 to 79 % between generations, all eight pairs 30 % in the mean.
"""

ALIKE = 1.5

OF_ANOTHER_PRECISION = 0.41
"""Expected relative error that taking weights for bf16 adds.

From experts of four GPUs that have tables of both (`make bench-transfer`; 21 to 71 %, where the data sheet alone is 28
to 85 % off): mostly too short, the more so the newer the GPU.
"""

_BESIDE = re.compile(r"(^|[._])(scale(_inv|_2)?|scales|q?zeros|zero_point|g_idx(_sort_indices)?|weight_shape)$")
"""How roles end of what quantised weights have beside them."""


def unquantised(signature: Signature) -> Signature | None:
    """The operation with its weights as bf16; None where they are not quantised.

    Args:
        signature: of the operation, its weights in the shapes that they stand for, however they are packed.
    """
    weights = [(role, dtype) for role, dtype, shape in signature.tensors if is_weight_matrix(role, shape)]
    quantised = {role for role, dtype in weights if dtype not in FLOATS}
    if not quantised:
        return None
    tensors = tuple(
        (role, "bf16" if role in quantised else dtype, shape)
        for role, dtype, shape in signature.tensors
        if _BESIDE.search(role) is None
    )
    kept = {name: value for name, value in signature.attributes if name != "precision"}
    return replace(signature, tensors=tensors, attributes=tuple(sorted((kept | {"method": "unquantized"}).items())))


@dataclass(frozen=True)
class Transferred:
    """The latency model of an operation, by that of one that is like it.

    Attributes:
        foundation: of the other operation: on another GPU, or with weights as bf16.
        there: estimate of it from its GPU's data sheet.
        here: of this one.
    """

    foundation: Foundation
    there: Estimate
    here: Estimate

    def predict_s(self, points: Sequence[SweepPoint] | Work) -> Array:
        """Latencies in seconds, shape (points,)."""
        work = points if isinstance(points, Work) else Work.of(points)
        return self.foundation.model.predict_s(work) * self.here.predict_s(work) / self.there.predict_s(work)

    def out_of_range(self, points: SweepPoint | Work) -> str | None:
        """As of the other operation."""
        return self.foundation.model.out_of_range(points)

    def basis(self, there: Basis) -> Basis:
        """What this rests on, where the other operation's latencies rest on something."""
        if self.here.device == self.there.device:
            kind: BasisKind = "another precision"
            precision = weight_precision(self.here.signature).removesuffix("_weights")
            added, towards = OF_ANOTHER_PRECISION, f"{precision} weights"
        else:
            kind, towards = "another GPU", self.here.device.product
            added = OF_A_KIND if _is_alike(self.here.device, self.there.device) else OF_ANOTHER
        error = float(np.hypot(there.error or 0.0, added))
        sources = tuple(f"{source}, for {towards}" for source in there.sources)
        return replace(there, kind=kind, sources=sources, error=error, reliable=False)


def _is_alike(one: Device, other: Device) -> bool:
    """Whether two GPUs have the same kernels and nearly the same bandwidth and peak."""
    pairs = ((one.memory_bytes_per_s, other.memory_bytes_per_s), (one.flops_per_s, other.flops_per_s))
    near = all(max(pair) <= ALIKE * min(pair) for pair in pairs)
    return near and one.compute_capability == other.compute_capability


def transferred(there: Foundation, like: Estimate, here: Estimate) -> Foundation | None:
    """The foundation of an operation, by another's; None where that is an estimate itself.

    Args:
        there: of the other operation.
        like: estimate of that.
        here: of this one.
    """
    if there.basis.kind == "estimate":
        return None
    model = Transferred(there, like, here)
    return Foundation(model, model.basis(there.basis))
