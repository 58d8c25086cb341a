"""Where predicted TTFT and TPOT are spent."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_dooly.core.operation import LAUNCH, OperationKind
from pytest_dooly.core.signature import Signature
from pytest_dooly.core.turn import Place, point_within
from pytest_dooly.core.workload import Workload
from pytest_dooly.drift.exposure import exposures
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.prediction.step_times import StepTimes
from pytest_dooly.prediction.workload import predict_workload
from tests.samples import ADMISSION, ATTENTION, LINEAR, SAMPLER, STEP, TOKENS, fitted, model_and_regressors, uses


@pytest.mark.parametrize(
    "workload", [Workload(64, 9, 4), Workload(16, 5, 2, 6), Workload(700, 3, 1), Workload(8, 1, 2)]
)
def test_operations_add_up_to_the_prediction(workload: Workload) -> None:
    model, regressors = model_and_regressors()
    found = {each.figure: each for each in exposures(model, regressors, [workload])}
    predicted = predict_workload(StepTimes(model, regressors), workload)
    assert found["ttft"].latency_s == pytest.approx(predicted.ttft_s, rel=0.02)
    if predicted.tpot_s is None:
        assert set(found) == {"ttft"}
    else:
        assert found["tpot"].latency_s == pytest.approx(predicted.tpot_s, rel=0.02)


def test_each_operation_has_its_part_at_its_point() -> None:
    """Three linears of 10 µs a token, two attentions of 1 µs a request, a sampler of 2 µs a request, 100 µs a step."""
    model, regressors = model_and_regressors()
    ttft, tpot = exposures(model, regressors, [Workload(64, 9, 4)])
    assert str(ttft.batch) == "4x64+0"
    assert tpot.batch.num_reqs == tpot.batch.num_tokens == 4
    assert tpot.seconds[Place(LINEAR.key, "T4")] == pytest.approx(3 * 40e-6, rel=0.02)
    assert tpot.seconds[Place(SAMPLER.key, "R4")] == pytest.approx(8e-6, rel=0.02)
    assert tpot.seconds[Place(ATTENTION.key, str(tpot.batch))] == pytest.approx(8e-6, rel=0.02)
    assert ttft.seconds[Place(LINEAR.key, "T256")] == pytest.approx(3 * 2.56e-3, rel=0.02)
    assert ttft.seconds[Place(ADMISSION.key, "T64")] > 50e-6
    assert tpot.share(STEP.key) == pytest.approx(100 / 236, rel=0.02)
    assert tpot.name == "TPOT of 64+9x4"


def test_a_prompt_in_chunks_is_admitted_where_turns_admit_it() -> None:
    """A turn runs one step, of which a chunk is all that it shows of the prompt."""
    model, regressors = model_and_regressors()
    ttft, _ = exposures(model, regressors, [Workload(700, 3, 1)])
    assert max(request.query_len for request in ttft.batch.requests) < 700
    admission = next(each.signature for each in model.operations if each.signature == ADMISSION)
    place = Place(ADMISSION.key, str(point_within(admission, ttft.batch)))
    assert ttft.seconds[place] == pytest.approx(50e-6)


def test_launches_that_hide_behind_the_device_take_no_part() -> None:
    model, regressors = model_and_regressors()
    launch = Signature(OperationKind.OVERHEAD, LAUNCH, (), (), "num_tokens")
    model = replace(model, operations=(*model.operations, uses(launch)))
    for launch_s, part in ((1e-6, 0.0), (1.0, 1.0)):
        regressors[launch.key] = fitted(launch, lambda _, s=launch_s: s, TOKENS)  # type: ignore[misc]
        _, tpot = exposures(model, regressors, [Workload(64, 9, 4)])
        assert tpot.share(launch.key) == pytest.approx(part, abs=0.01)
        assert (Place(LINEAR.key, "T4") in tpot.seconds) is (part == 0)


def test_what_no_regressor_knows_counts_for_nothing() -> None:
    model, regressors = model_and_regressors()
    del regressors[LINEAR.key]
    assert all(each.share(LINEAR.key) == 0 for each in exposures(model, regressors, [Workload(64, 9, 4)]))
    with pytest.raises(ConfigurationError, match="no operation of small has a regressor: profile it first"):
        exposures(model, {}, [Workload(64, 9, 4)])


@pytest.mark.parametrize("workload", [Workload(1000, 100, 1), Workload(8, 8, 9)])
def test_a_workload_that_does_not_fit_says_so(workload: Workload) -> None:
    model, regressors = model_and_regressors()
    with pytest.raises(ConfigurationError, match=r"workload .* does not fit small as it is served, with 1024 tokens"):
        exposures(model, regressors, [workload])
