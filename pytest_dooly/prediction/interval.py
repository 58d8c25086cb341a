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

from pytest_dooly.core.batch import Batch
from pytest_dooly.core.operation import OperationKind
from pytest_dooly.core.routing import UNIFORM, RoutingDistribution
from pytest_dooly.core.signature import ServedModel
from pytest_dooly.prediction.shares import Shares, shares_of
from pytest_dooly.prediction.step import predict_step
from pytest_dooly.published.basis import Foundation

__all__ = ["ESTIMATE", "OPERATIONS", "SYSTEM", "Figure", "Interval", "intervals", "is_mixture", "operations_error"]

Figure = Literal["ttft", "tpot"]

OPERATIONS = 1.645 * math.sqrt(math.pi / 2)
"""From the mean of absolute errors to the half width that nine of ten lie within, where errors are normal."""

ESTIMATE = math.log(2)
"""Logarithm of the factor by which an estimate from a data sheet may be off."""

SYSTEM: Mapping[tuple[Figure, bool], float] = {
    ("tpot", False): 0.29,
    ("tpot", True): 0.35,
    ("ttft", False): 0.29,
    ("ttft", True): 0.61,
}
"""What operations do not explain, as a logarithm: of dense models (False) and mixtures (True).

From 24 and 106 runs of vLLM 0.10 to 0.19 on four GPUs. Of dense models 0.11 would do for TTFT, which is taken for no
surer than TPOT: most of those runs are of one model.
"""


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
    def around(cls, predicted_s: float, figure: Figure, shares: Shares, *, mixture: bool) -> Interval:
        """The interval around a predicted latency.

        Args:
            predicted_s: TTFT or TPOT, or a step's latency, which is as sure as TPOT.
            figure: which of them.
            shares: of the step that the figure mostly consists of, by what its operations rest on.
            mixture: whether the model is one of experts.
        """
        factor = math.exp(math.hypot(operations_error(shares), SYSTEM[figure, mixture]))
        return cls(predicted_s / factor, predicted_s * factor)


def intervals(
    model: ServedModel,
    founded: Mapping[str, Foundation],
    predicted_s: Mapping[Figure, float],
    steps: Mapping[Figure, Batch],
    *,
    routing: RoutingDistribution = UNIFORM,
) -> dict[Figure, Interval]:
    """The interval around each predicted latency.

    Args:
        model: what is served.
        founded: foundation of each operation, by signature key.
        predicted_s: what was predicted of each figure.
        steps: what each mostly consists of.
        routing: how a mixture's router spreads tokens over experts.
    """
    models = {key: each.model for key, each in founded.items()}
    found: dict[Figure, Interval] = {}
    for figure, latency_s in predicted_s.items():
        shares = shares_of(model, predict_step(model, models, steps[figure], routing=routing), founded)
        found[figure] = Interval.around(latency_s, figure, shares, mixture=is_mixture(model))
    return found


def operations_error(shares: Shares) -> float:
    """The part of an interval's half width that is the operations', as a logarithm."""
    estimated = shares.by_kind.get("estimate", 0.0)
    return OPERATIONS * (shares.error or 0.0) * (1 - estimated) + ESTIMATE * estimated


def is_mixture(model: ServedModel) -> bool:
    """Whether a model is a mixture of experts."""
    return any(operation.signature.kind is OperationKind.MOE for operation in model.operations)
