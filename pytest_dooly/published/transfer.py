"""Latencies of a GPU of which nothing is published, from those of one that it is like.

What the data sheets say of both GPUs of an operation, at the point that is asked for, multiplies what is published: a
product that waits for memory takes as much longer as the memory is slower, one that computes as much as the peak is
lower, and a launch takes what it takes. Kernels, tiles and waves are the other's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.core.device import Device
from pytest_dooly.core.work import Work
from pytest_dooly.published.basis import Basis, Foundation
from pytest_dooly.published.estimate import Estimate

__all__ = ["OF_ANOTHER", "OF_A_KIND", "Transferred", "transferred"]

Array = npt.NDArray[np.float64]

OF_A_KIND, OF_ANOTHER = 0.1, 0.3
"""Expected relative error that another GPU's latencies add: of one of the same compute capability that is no more than
ALIKE times as fast or as slow, and of any other.

From operations of GPUs that have tables of their own (`make bench-transfer`): 7 % between an H100 and an H200, whose
bandwidths are 1.43 times apart; 16 to 70 % between generations, all eight pairs 27 % in the mean.
"""

ALIKE = 1.5


@dataclass(frozen=True)
class Transferred:
    """The latency model of an operation, by that of the same one on another GPU.

    Attributes:
        foundation: of it there.
        there: estimate of it from that GPU's data sheet.
        here: from this one's.
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
        added = OF_A_KIND if _is_alike(self.here.device, self.there.device) else OF_ANOTHER
        error = float(np.hypot(there.error or 0.0, added))
        sources = tuple(f"{source}, for {self.here.device.product}" for source in there.sources)
        return replace(there, kind="another GPU", sources=sources, error=error, reliable=False)


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
