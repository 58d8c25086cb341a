"""Predictions from a latency DB alone."""

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.dummy import DummyRegressor
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline

from pytest_dooly.core.batch import Batch
from pytest_dooly.core.configuration import ServingOptions, resolve
from pytest_dooly.core.environment import Environment
from pytest_dooly.core.operation import OperationKind
from pytest_dooly.core.signature import served_key
from pytest_dooly.core.workload import Workload
from pytest_dooly.errors import (
    ConfigurationError,
    DatabaseError,
    EstimatorError,
    MissingMeasurements,
    OutOfRangeWarning,
)
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.latency_db.findings import OPTIONS
from pytest_dooly.prediction.forecast import known, predict
from pytest_dooly.prediction.step import StepPrediction
from pytest_dooly.prediction.workload import WorkloadPrediction
from tests.samples import ADMISSION, ENVIRONMENT, LINEAR, model_and_regressors, served, uses
from tests.test_profiling import linears


@pytest.fixture
def db(tmp_path: Path) -> Path:
    path = tmp_path / "latency.db"
    model, regressors = model_and_regressors()
    with LatencyDB.open(path) as opened:
        opened.save_model(model, ENVIRONMENT)
        for key, regressor in regressors.items():
            signature = next(o.signature for o in model.operations if o.signature.key == key)
            opened.record(signature, ENVIRONMENT, *_case(signature.swept), spent_s=1.0)
            opened.save_regressor(key, ENVIRONMENT, regressor.to_json(), error=regressor.error)
    return path


def _case(swept: str):  # type: ignore[no-untyped-def]
    from tests.samples import BATCHES, REQUESTS, TOKENS, measured

    return {"num_tokens": TOKENS, "num_reqs": REQUESTS, "batch": BATCHES}[swept][0], measured(1.0)


def test_predict_reads_a_db_alone(db: Path) -> None:
    step = predict("small", batch="2x1+32", db=db)
    assert isinstance(step, StepPrediction)
    assert step == predict("small", batch=Batch.uniform(2, 1, 32), db=db, environment=ENVIRONMENT)
    assert isinstance(predict("small", workload=Workload(64, 4, 2), db=db), WorkloadPrediction)


def test_predict_warns_out_of_range(db: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        predict("small", batch="20x100", db=db)
    assert {warning.category for warning in caught} == {OutOfRangeWarning}
    assert "linear-64x128-bf16: size 2,000 is outside of the measured 1 to 512" in [str(w.message) for w in caught]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predict("small", batch="1+32", db=db)


def test_predict_refuses_what_it_cannot_answer(db: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="either a batch or a workload"):
        predict("small", db=db)  # type: ignore[call-overload]
    with pytest.raises(MissingMeasurements, match=r"no model 'big', only small: run pytest --dooly-model=big"):
        predict("big", batch="1", db=db)
    with pytest.raises(ConfigurationError, match=r"a request of 200000 \+ 1 tokens exceeds max_model_len"):
        predict("small", batch="8x1+4,1+200000", db=db)
    with pytest.raises(DatabaseError, match="no latency DB"):
        predict("small", batch="1", db=tmp_path / "none.db")


def test_predict_takes_a_routing_as_text(db: Path) -> None:
    assert predict("small", batch="1+32", db=db, routing="zipf:1.2") == predict("small", batch="1+32", db=db)
    with pytest.raises(ConfigurationError, match="write trained, uniform, zipf:ALPHA"):
        predict("small", batch="1+32", db=db, routing="skewed")


class Millisecond(LinearRegression):
    """Takes one for everything that was measured at more than one size."""

    def predict(self, X: Any) -> Any:  # noqa: N803 - as scikit-learn names it
        return np.full(len(X), 1e-3)


@pytest.mark.parametrize(
    "regressor", [f"{__name__}:Millisecond", Millisecond, Millisecond(), make_pipeline("passthrough", Millisecond())]
)
def test_anybody_s_estimator_predicts_in_place_of_ours_and_is_not_kept(db: Path, regressor: Any) -> None:
    ours = predict("small", batch="1+32", db=db)
    with LatencyDB.open(db) as opened:
        before = opened.load_regressors(ENVIRONMENT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OutOfRangeWarning)  # one point an operation is measured
        theirs = predict("small", batch="1+32", db=db, regressor=regressor)
        load = predict("small", workload=Workload(64, 4, 1), db=db, regressor=regressor)
    assert load.tpot_s == pytest.approx(7e-3)
    assert theirs.latency_s == pytest.approx(7e-3)  # 3 linears, 2 attentions, a sampler and a step
    with LatencyDB.open(db) as opened:
        assert opened.load_regressors(ENVIRONMENT) == before
    assert predict("small", batch="1+32", db=db) == ours


def test_an_estimator_is_fitted_to_what_is_measured_only(db: Path) -> None:
    with pytest.raises(ConfigurationError, match="name an environment in place of a device"):
        predict("small", batch="1+32", db=db, device="h200_sxm", regressor=Millisecond)
    with pytest.raises(EstimatorError, match="DummyRegressor cannot be fitted to .*strategy"):
        predict("small", batch="1+32", db=db, regressor=DummyRegressor(strategy="luck"))


def test_several_environments_must_be_told_apart(db: Path) -> None:
    other = Environment("GPU", 1, "1", "fake", "1", "2", "cuda_event", "rotated", "eager")
    model, _ = model_and_regressors()
    with LatencyDB.open(db) as opened:
        opened.save_model(model, other)
    with pytest.raises(MissingMeasurements, match="several environments, name one"):
        predict("small", batch="1", db=db)


def test_a_device_is_predicted_for_whatever_the_model_was_traced_on(db: Path) -> None:
    step = predict("small", batch="2x1+32", db=db, device="h200_sxm")
    assert 0 < step.latency_s < 1e-2  # a few kernels and the engine's own share, by the data sheet
    assert step == predict("small", batch="2x1+32", db=db, device="NVIDIA H200")
    slower, faster = (predict("small", batch="512", db=db, device=name) for name in ("l40s", "b200_sxm"))
    pairs = zip(slower.operations, faster.operations, strict=True)
    assert all(one.latency_s > other.latency_s for one, other in pairs if one.kind is not OperationKind.OVERHEAD)
    assert predict("small", workload=Workload(64, 4, 2), db=db, device="h200_sxm").ttft_s > 0


def test_a_device_or_a_model_that_is_unknown_is_named(db: Path) -> None:
    with pytest.raises(ConfigurationError, match="unknown device 'h300'"):
        predict("small", batch="1", db=db, device="h300")
    with pytest.raises(MissingMeasurements, match="no model 'big'"):
        predict("big", batch="1", db=db, device="h200_sxm")


def test_of_several_options_the_default_ones_are_meant_unless_others_are_named(tmp_path: Path) -> None:
    path, two, four = tmp_path / "latency.db", *(ServingOptions(tensor_parallel_size=ranks) for ranks in (2, 4))

    def trace(options: ServingOptions, multiplicity: int) -> None:
        model = served(uses(LINEAR, multiplicity), uses(ADMISSION), name="llama3")
        key = served_key(resolve("llama3", options), ENVIRONMENT)
        with LatencyDB.open(path) as opened:
            opened.save_model(dataclasses.replace(model, key=key), ENVIRONMENT)
            opened.save_finding(OPTIONS, key, ENVIRONMENT, options.to_json())

    def latency_s(options: ServingOptions | None = None) -> float:
        step = predict("llama3", batch="64", db=path, device="h200_sxm", options=options)
        assert isinstance(step, StepPrediction)
        return step.latency_s

    trace(two, 2)
    alone = latency_s()  # there are no others
    assert alone == latency_s(two)
    trace(four, 4)
    assert latency_s(four) == pytest.approx(2 * alone)
    with pytest.raises(
        MissingMeasurements,
        match=r"default ones: name options=pytest_dooly\.ServingOptions\(tensor_parallel_size=4\) or "
        r"options=pytest_dooly\.ServingOptions\(tensor_parallel_size=2\)",
    ):
        latency_s()
    trace(ServingOptions(), 1)
    assert latency_s() == latency_s(ServingOptions()) == pytest.approx(alone / 2)
    there = "only with the default options or --tp=4 or --tp=2"
    with pytest.raises(
        MissingMeasurements, match=f"not with --tp=8, {there}: run dooly plan llama3 --device h200_sxm --tp=8"
    ):
        latency_s(ServingOptions(tensor_parallel_size=8))
    with pytest.raises(
        MissingMeasurements, match="not with --dooly-tp=8, .*: run pytest --dooly-model=llama3 --dooly-tp=8"
    ):
        predict("llama3", batch="64", db=path, options=ServingOptions(tensor_parallel_size=8))


def test_a_device_brings_its_limits_where_the_options_name_none(tmp_path: Path) -> None:
    path, few = tmp_path / "latency.db", ServingOptions(max_num_seqs=4)
    model = served(uses(LINEAR), uses(ADMISSION), name="llama3")

    def num_seqs(options: ServingOptions, asked: ServingOptions | None = None, *, kept: bool = True) -> int:
        key = served_key(resolve("llama3", options), ENVIRONMENT)
        with LatencyDB.open(path) as opened:
            opened.save_model(dataclasses.replace(model, key=key), ENVIRONMENT)
            if kept:
                opened.save_finding(OPTIONS, key, ENVIRONMENT, options.to_json())
            return known(opened, "llama3", asked, device="h200_sxm")[0].limits.max_num_seqs

    assert num_seqs(few) == num_seqs(few, few, kept=False) == 4
    assert num_seqs(few, kept=False) == model.limits.max_num_seqs  # nobody knows what was named
    assert num_seqs(ServingOptions()) == 1024


def test_where_others_alone_have_measured_their_gpus_are_named(tmp_path: Path) -> None:
    path = tmp_path / "latency.db"
    model, _ = model_and_regressors()
    with LatencyDB.open(path) as opened:
        opened.save_model(model, ENVIRONMENT)
        with pytest.raises(MissingMeasurements, match="has no regressor for"):
            predict("small", batch="1", db=path)
        opened.publish(linears([(96, 64)]))
    with pytest.raises(
        MissingMeasurements, match=r"name a GPU .* as in device='h200_sxm' \(the latency DB has h200_sxm"
    ):
        predict("small", batch="1", db=path)
