"""Workloads compared over models, devices and tensor-parallel sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytest_dooly.core.device import Device
from pytest_dooly.core.routing import TRAINED, RoutingDistribution
from pytest_dooly.core.signature import ServedModel, data_parallel_size
from pytest_dooly.core.workload import Workload
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.prediction.interval import Figure, Interval, is_mixture, typical_steps
from pytest_dooly.prediction.shares import Shares, shares_at, stand_in
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
        ranks: devices that share each layer, in each of the engines that share a mixture's experts.
        prediction: TTFT and TPOT.
        shares: of a decode step half-way through the output, by what their prediction rests on.
        prefill: the same of a step with one prompt.
        footprint: what a rank holds in memory when every request has all of its tokens.
    """

    model: ServedModel
    device: Device
    ranks: int
    prediction: WorkloadPrediction
    shares: Shares
    prefill: Shares
    footprint: Footprint

    @property
    def ttft_interval(self) -> Interval:
        """Where a measured TTFT lies nine times out of ten."""
        return self._around(self.prediction.ttft_s, "ttft", self.prefill)

    @property
    def tpot_interval(self) -> Interval | None:
        """The same of TPOT; None where there is none."""
        if self.prediction.tpot_s is None:
            return None
        return self._around(self.prediction.tpot_s, "tpot", self.shares)

    def _around(self, predicted_s: float, figure: Figure, shares: Shares) -> Interval:
        at_once = self.prediction.workload.num_at_once
        return Interval.around(predicted_s, figure, shares, mixture=is_mixture(self.model), at_once=at_once)

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
            "dp": data_parallel_size(self.model),
            "ttft_s": self.prediction.ttft_s,
            "ttft_interval_s": list(dataclasses.astuple(self.ttft_interval)),
            "tpot_s": self.prediction.tpot_s,
            "tpot_interval_s": self.tpot_interval and list(dataclasses.astuple(self.tpot_interval)),
            "tokens_per_s": self.tokens_per_s,
            "shares": dict(self.shares.by_kind),
            "stand_in": stand_in(self.device, self.shares),
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
    routing: RoutingDistribution = TRAINED,
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
    engines = data_parallel_size(model)
    steps = typical_steps(workload.prompt_len, workload.output_len, workload.concurrency, model.limits, engines=engines)
    prefill, decode = (
        shares_at(model, founded, steps[figure], routing=routing, overlapped=True) for figure in ("ttft", "tpot")
    )
    seq_len = workload.prompt_len + workload.output_len
    held = footprint(model, device, num_reqs=steps["tpot"].num_reqs, seq_len=seq_len)
    return Candidate(model, device, ranks, prediction, decode, prefill, held)
