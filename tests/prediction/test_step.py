"""Predictions against sums that are done by hand, and the virtual scheduler against steps written out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_dooly.core.batch import Batch, SweepPoint
from pytest_dooly.core.operation import LAUNCH, OperationKind
from pytest_dooly.core.routing import UNIFORM, RoutingDistribution
from pytest_dooly.core.signature import ServedModel, Signature
from pytest_dooly.core.workload import Workload
from pytest_dooly.errors import ConfigurationError, MissingMeasurements
from pytest_dooly.prediction.step import predict_step, step_operations
from pytest_dooly.prediction.step_times import StepTimes
from pytest_dooly.prediction.workload import predict_workload
from pytest_dooly.regress.regressor import Regressor
from pytest_dooly.scheduling.scheduler import Scheduled
from pytest_dooly.sweep.grid import sweep
from tests.samples import (
    ADMISSION,
    LIMITS,
    LINEAR,
    MIXTURE,
    STEP,
    TOKENS,
    fitted,
    model_and_regressors,
    served,
    uses,
)

MODEL = model_and_regressors()


def test_a_step_is_the_sum_of_its_operations() -> None:
    model, regressors = model_and_regressors()
    step = predict_step(model, regressors, Batch.parse("3x1+32,61"))
    by_label = {operation.label: operation for operation in step.operations}
    assert by_label["linear-64x128-bf16"].latency_s == pytest.approx(3 * 64 * 10e-6, rel=1e-3)
    assert by_label["linear-64x128-bf16"].multiplicity == 3
    assert by_label["attention-4h2kv16-bf16"].latency_s == pytest.approx(2 * 4e-6, rel=1e-2)
    assert by_label["sampler-256-fp32"].latency_s == pytest.approx(4 * 2e-6, rel=1e-3)
    assert "admission" not in by_label
    assert step.latency_s == pytest.approx(sum(operation.latency_s for operation in step.operations))
    assert step.out_of_range == ()


def launching(launch_s: float) -> tuple[ServedModel, dict[str, Regressor]]:
    """The model on a GPU whose host takes that long to launch each of its 3 decoder layers."""
    model, regressors = model_and_regressors()
    launch = Signature(OperationKind.OVERHEAD, LAUNCH, (), (), "num_tokens")
    regressors[launch.key] = fitted(launch, lambda p: launch_s, TOKENS)
    return served(*model.operations, uses(launch, 3)), regressors


@pytest.mark.parametrize("launch_s", [1e-6, 100e-6])
def test_launches_hide_behind_the_forward_pass_as_far_as_it_reaches(launch_s: float) -> None:
    batch, workload = Batch.parse("2x1+32"), Workload(2, 1, 1)
    linears_s, per_request_s = 3 * 2 * 10e-6, 2 * 1e-6  # the sampler and the step come after
    step, alone = (predict_step(*each, batch) for each in (launching(launch_s), model_and_regressors()))
    exposed_s = max(0, 3 * launch_s - linears_s - 2 * per_request_s)
    assert step.latency_s - alone.latency_s == pytest.approx(exposed_s, rel=1e-2)
    ttfts = [
        predict_workload(StepTimes(*each), workload).ttft_s for each in (launching(launch_s), model_and_regressors())
    ]
    assert ttfts[0] - ttfts[1] == pytest.approx(max(0, 3 * launch_s - linears_s - per_request_s), rel=1e-2)


@pytest.mark.parametrize("step_s", [1e-6, 5e-3])
def test_what_the_host_prepares_beside_the_device_counts_as_far_as_it_takes_longer(step_s: float) -> None:
    """As a back end has it."""
    model, regressors = model_and_regressors()
    regressors[STEP.key] = fitted(STEP, lambda _: step_s, sweep(STEP, LIMITS))
    batch = Batch.parse("2x1+32")
    device_s = sum(each.latency_s for each in predict_step(model, regressors, batch).operations if each.label != "step")
    beside = predict_step(model, regressors, batch, overlapped=True)
    assert beside.latency_s == pytest.approx(max(device_s, step_s), rel=1e-6)
    times = StepTimes(model, regressors, overlapped=True)
    assert beside.latency_s == pytest.approx(times.step_s(Scheduled([0, 1], [1, 1], [32, 32], [])), rel=0.02)


def test_a_missing_regressor_is_named_with_what_to_run() -> None:
    model, regressors = model_and_regressors()
    del regressors[LINEAR.key]
    with pytest.raises(MissingMeasurements, match=r"linear-64x128-bf16: run pytest --dooly-model=small"):
        predict_step(model, regressors, Batch.uniform(1, 1))


def mixture() -> tuple[ServedModel, dict[str, Regressor]]:
    """A model of one mixture of experts that takes 10 µs an activated expert and 1 µs a token of the busiest one."""

    def latency_s(point: SweepPoint) -> float:
        assert point.routing is not None
        return 10e-6 * point.routing.activated + 1e-6 * point.routing.busiest

    model = served(uses(MIXTURE, 2), uses(ADMISSION))
    return model, {
        MIXTURE.key: fitted(MIXTURE, latency_s, sweep(MIXTURE, LIMITS)),
        ADMISSION.key: fitted(ADMISSION, lambda _: 50e-6, TOKENS),
    }


@pytest.mark.parametrize("text", ["uniform", "zipf:1.2", "4,4,2,2,1,1,1,1"])
def test_a_mixture_is_predicted_for_the_routing_that_is_expected(text: str) -> None:
    model, regressors = mixture()
    routing = RoutingDistribution.parse(text)
    for tokens in (2, 40, 300):
        activated, busiest = routing.expectations([tokens], 8, 2)
        step = predict_step(model, regressors, Batch.uniform(1, tokens), routing=routing)
        expected = 2 * (10e-6 * activated[0] + 1e-6 * busiest[0])
        assert step.latency_s == pytest.approx(expected, rel=0.02)
        assert step.out_of_range == ()


def test_a_rank_of_experts_meets_its_share_of_those_that_are_expected() -> None:
    """Eight of 32 experts on each of four ranks: the step waits for the busiest expert of all."""
    spread = replace(MIXTURE, attributes=(("num_experts", 32), ("num_local_experts", 8), ("top_k", 2)))
    _, regressors = mixture()
    models = {spread.key: regressors[MIXTURE.key]}
    for tokens in (8, 40, 300):
        activated, busiest = RoutingDistribution().expectations([tokens], 32, 2)
        step = predict_step(served(uses(spread)), models, Batch.uniform(1, tokens), routing=UNIFORM)
        assert step.latency_s == pytest.approx(10e-6 * activated[0] / 4 + 1e-6 * busiest[0], rel=0.02)


def test_operations_of_a_step_are_those_of_its_latencies() -> None:
    model, regressors = model_and_regressors()
    operations = step_operations(model)
    assert ADMISSION not in {operation.signature for operation in operations}
    assert [operation.signature.label for operation in operations] == [
        operation.label for operation in predict_step(model, regressors, Batch.uniform(1, 1)).operations
    ]


def test_a_routing_of_another_model_is_refused() -> None:
    model, regressors = mixture()
    with pytest.raises(ConfigurationError, match="has 2 shares for 8 experts"):
        predict_step(model, regressors, Batch.uniform(1, 8), routing=RoutingDistribution(shares=(1, 2)))
