"""Latencies of operations that nobody has measured: from what they move and compute, and the device's data sheet.

A stated estimate, not a measurement: the larger of bytes over bandwidth and operations over the peak, each at the share
of it that good kernels reach, and the launch of each kernel. It is for norms, activations and the like, whose share of
a step is small; every prediction says how large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.core.device import Device
from pytest_dooly.core.operation import OperationKind
from pytest_dooly.core.signature import Signature
from pytest_dooly.core.work import Features, Work
from pytest_dooly.published.family import weight_precision
from pytest_dooly.published.graphs import kernels_of
from pytest_dooly.published.kernels import LAUNCH_S, reached_s, speedup
from pytest_dooly.sweep.roofline import bytes_gathered, bytes_of, bytes_sent, flops, window_of

__all__ = [
    "ADMISSION_S",
    "EXPECTED_ERROR",
    "SERVER_S",
    "STEP_REQUEST_S",
    "STEP_S",
    "TOKENISE_S",
    "Estimate",
]

Array = npt.NDArray[np.float64]

STEP_S, ADMISSION_S = 1.5e-3, 1e-4
"""The engine's own share of a step (scheduling, inputs, outputs), and of a request's admission.

The first is the median over nine ways to serve of what published runs without asynchronous scheduling take besides
their operations: three models on an H200 and an A100 (`make bench-engines`; 1.8 ms), Qwen3-32B on two, four and eight
H100s (`make arena`; 1.6 ms), before what each request adds was told apart: the same nine are at 0.1 to 3.0 ms since,
2.2 in the median. With asynchronous scheduling it shows only where the device is done earlier. The second is assumed.
"""

STEP_REQUEST_S = 21e-6
"""What each request of a step adds to the engine's own share: to schedule it, and to take in and hand on its token.

Measured of vLLM 0.32.0 with 1 to 1,024 decodes on an AMD EPYC of 2025 (`make bench-host`; 18 to 23 µs), and
fitted to no run. Published runs without asynchronous scheduling (Qwen3-32B on H100s, vLLM 0.12) ask for about 40.
"""

TOKENISE_S = 2.5e-6
"""What each token of a prompt takes the server's tokeniser: the median over prose and what benchmarks draw at random,
of Hugging Face's byte-level BPE with 128,000 tokens in one thread (`make bench-tokeniser`; 2.0 to 3.3 µs on an AMD EPYC
of 2025). It is measured, and fitted to no run."""

SERVER_S = 6.1e-3
"""What a server and its client add to a request besides: reading it, HTTP, the first answer's way back.

The median over 20 stages of four models that vLLM 0.15.1 served on an H100 (`make bench-traffic`; 5.3 to 7.4 ms with
one of the models left out).
"""

EXPECTED_ERROR = 0.34
"""Mean relative error of an estimate of which nine of ten are within a factor of two, which is assumed."""

_OVERHEADS_S = {"step": (STEP_S, STEP_REQUEST_S), "admission": (ADMISSION_S, 0.0)}
"""Of each, and of each request in it; what lies between layers and what launches them takes a replayed graph none."""


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
        features = Features(work, window_of(self.signature))
        if self.signature.kind is OperationKind.OVERHEAD:
            once_s, each_s = _OVERHEADS_S.get(self.signature.name, (0.0, 0.0))
            return once_s + each_s * features.num_reqs
        if self.signature.kind is OperationKind.COLLECTIVE:
            return LAUNCH_S + bytes_sent(self.signature, features) / self.device.link_bytes_per_s
        speed = self.device.flops_per_s * speedup(weight_precision(self.signature), self.device)
        compute_s = flops(self.signature, features) / speed
        memory_s = bytes_of(self.signature, features) / self.device.memory_bytes_per_s
        gathered_s = bytes_gathered(self.signature, features) / self.device.link_bytes_per_s
        others_s = (kernels_of(self.signature) - 1) * LAUNCH_S  # those besides the first
        return others_s + gathered_s + reached_s(compute_s, memory_s)

    def out_of_range(self, points: SweepPoint | Work) -> str | None:
        """None: an estimate has no measured range."""
        return None
