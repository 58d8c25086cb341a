"""Workloads compared over models, devices and tensor-parallel sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytest_dooly.core.batch import Batch
from pytest_dooly.core.device import Device
from pytest_dooly.core.routing import UNIFORM, RoutingDistribution
from pytest_dooly.core.signature import ServedModel
from pytest_dooly.core.workload import Workload
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.prediction.shares import Shares, shares_of
from pytest_dooly.prediction.step import predict_step
from pytest_dooly.prediction.step_times import StepTimes
from pytest_dooly.prediction.workload import WorkloadPrediction, predict_served
from pytest_dooly.published.basis import Foundation
from pytest_dooly.published.footprint import Footprint, footprint

__all__ = ["Candidate", "candidate"]


@dataclass(frozen=True)
class Candidate:
    """One way to serve a workload.

    Attributes:
        model: what is served.
        device: on which.
        ranks: devices that share each layer.
        prediction: TTFT and TPOT.
        shares: of a decode step half-way through the output, by what their prediction rests on.
        footprint: what a rank holds in memory when every request has all of its tokens.
    """

    model: ServedModel
    device: Device
    ranks: int
    prediction: WorkloadPrediction
    shares: Shares
    footprint: Footprint

    @property
    def tokens_per_s(self) -> float:
        """Tokens generated a second, from the first arrival to the last token."""
        workload = self.prediction.workload
        return workload.output_len * workload.total_reqs / self.prediction.duration_s

    def to_json(self) -> dict[str, Any]:
        """A JSON document."""
        return {
            "model": self.model.name,
            "device": self.device.name,
            "tp": self.ranks,
            "ttft_s": self.prediction.ttft_s,
            "tpot_s": self.prediction.tpot_s,
            "tokens_per_s": self.tokens_per_s,
            "shares": dict(self.shares.by_kind),
            "expected_error": self.shares.error,
            "out_of_range": list(self.prediction.out_of_range),
            "memory": {**dataclasses.asdict(self.footprint), "fits": self.footprint.fits},
        }


def candidate(
    model: ServedModel,
    founded: Mapping[str, Foundation],
    device: Device,
    workload: Workload,
    *,
    ranks: int = 1,
    routing: RoutingDistribution = UNIFORM,
) -> Candidate:
    """The workload on one device.

    Args:
        model: what is served.
        founded: foundation of each operation on the device, by signature key.
        device: that serves it.
        workload: equal requests.
        ranks: tensor-parallel size.
        routing: how a mixture's router spreads tokens over experts.

    Raises:
        ConfigurationError: a request would be longer than max_model_len.
    """
    models = {key: each.model for key, each in founded.items()}
    try:
        prediction = predict_served(StepTimes(model, models, routing=routing, overlapped=True), workload, device)
    except ConfigurationError as error:
        raise ConfigurationError(f"{model.name}: {error}") from error
    context = workload.prompt_len + workload.output_len // 2
    decodes = min(workload.concurrency, model.limits.max_num_seqs)
    step = predict_step(model, models, Batch.uniform(decodes, 1, context), routing=routing)
    held = footprint(model, device, num_reqs=decodes, seq_len=workload.prompt_len + workload.output_len)
    return Candidate(model, device, ranks, prediction, shares_of(model, step, founded), held)
