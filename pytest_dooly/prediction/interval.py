"""How far a measurement may lie from a prediction on a GPU that is not here: intervals that hold nine times out of ten.

Two things may be off. Operations: by the expected errors of what they rest on, as if all erred the same way, and an
estimate by a factor of two. And what no table of operations tells: other versions and kernels of the engine than those
of the tables, fusion, clocks, the server, how a mixture's tokens spread. That is taken from published runs of vLLM, for
dense models and for mixtures apart: so much that nine of ten runs lie within the interval (`make arena`, which also
says how many lie within where the runs of the model itself are left out).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pytest_dooly.core.batch import Batch, Limits
from pytest_dooly.core.operation import OperationKind
from pytest_dooly.core.signature import ServedModel
from pytest_dooly.prediction.shares import Shares

__all__ = [
    "AT_ONCE",
    "BURST",
    "ESTIMATE",
    "OPERATIONS",
    "SYSTEM",
    "Figure",
    "Interval",
    "is_mixture",
    "log_width",
    "operations_error",
    "system_error",
    "typical_steps",
]

Figure = Literal["ttft", "tpot"]

OPERATIONS = 1.645 * math.sqrt(math.pi / 2)
"""From the mean of absolute errors to the half width that nine of ten lie within, where errors are normal."""

ESTIMATE = math.log(2)
"""Logarithm of the factor by which an estimate from a data sheet may be off."""

SYSTEM: Mapping[tuple[Figure, bool], float] = {
    ("tpot", False): 0.17,
    ("tpot", True): 0.17,
    ("ttft", False): 0.18,
    ("ttft", True): 0.42,
}
"""What operations do not explain, as a logarithm: of dense models (False) and mixtures (True).

From 114 and 526 runs of vLLM 0.10 to 0.19 on four GPUs. Of dense models 0.13 would do for TPOT, which is taken for no
surer than that of mixtures: nearly all of those runs are of one model.
"""


BURST = 100
"""Requests that are all sent at once, and none after them, from which on what a server makes of that decides too."""

AT_ONCE: Mapping[Figure, float] = {"tpot": 0.58, "ttft": 0.9}
"""What operations do not explain of those, of dense models and mixtures alike: how long a server takes to read them,
which of them wait, and how lengths scatter. From 145 published runs of vLLM 0.6 to 0.24 (`make arena`)."""


@dataclass(frozen=True)
class Interval:
    """Where a measurement lies nine times out of ten.

    Attributes:
        low_s: in seconds.
        high_s: in seconds.
    """

    low_s: float
    high_s: float

    @classmethod
    def around(cls, predicted_s: float, figure: Figure, shares: Shares, *, mixture: bool, at_once: int = 0) -> Interval:
        """The interval around a predicted latency.

        Args:
            predicted_s: TTFT or TPOT, or a step's latency, which is as sure as TPOT.
            figure: which of them.
            shares: of the step that the figure mostly consists of, by what its operations rest on.
            mixture: whether the model is one of experts.
            at_once: requests, where all are sent at once.
        """
        factor = math.exp(log_width(figure, shares, mixture=mixture, at_once=at_once))
        return cls(predicted_s / factor, predicted_s * factor)


def typical_steps(
    prompt_len: int, output_len: int, decodes: int, limits: Limits, *, engines: int = 1
) -> dict[Figure, Batch]:
    """The steps that figures mostly consist of: one with a prompt, and one of decodes half-way through their outputs.

    Args:
        prompt_len: tokens of a prompt.
        output_len: tokens of an output.
        decodes: requests at once; as many of them as a step takes.
        limits: of a step.
        engines: that step together, each with its share of the decodes.
    """
    return {
        "ttft": Batch.uniform(1, min(prompt_len, limits.max_num_tokens), 0),
        "tpot": Batch.uniform(min(-(-decodes // engines), limits.max_num_seqs), 1, prompt_len + output_len // 2),
    }


def log_width(figure: Figure, shares: Shares, *, mixture: bool, at_once: int = 0) -> float:
    """Half the width of an interval, as a logarithm: both ends are that factor away.

    Args:
        figure: that it lies around.
        shares: of the step that the figure mostly consists of.
        mixture: whether the model is one of experts.
        at_once: requests, where all are sent at once.
    """
    return math.hypot(operations_error(shares), system_error(figure, mixture=mixture, at_once=at_once))


def system_error(figure: Figure, *, mixture: bool, at_once: int = 0) -> float:
    """The part of an interval's half width that is not the operations', as a logarithm.

    Args:
        figure: that it lies around.
        mixture: whether the model is one of experts.
        at_once: requests, where all are sent at once.
    """
    return AT_ONCE[figure] if at_once >= BURST else SYSTEM[figure, mixture]


def operations_error(shares: Shares) -> float:
    """The part of an interval's half width that is the operations', as a logarithm."""
    estimated = shares.by_kind.get("estimate", 0.0)
    return OPERATIONS * (shares.error or 0.0) * (1 - estimated) + ESTIMATE * estimated


def is_mixture(model: ServedModel) -> bool:
    """Whether a model is a mixture of experts."""
    return any(operation.signature.kind is OperationKind.MOE for operation in model.operations)
