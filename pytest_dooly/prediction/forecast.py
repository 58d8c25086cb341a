"""Latencies of a model from a latency DB alone: no engine, no GPU; what `pytest_dooly.predict` is."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, overload

from pytest_dooly.core.batch import Batch
from pytest_dooly.core.configuration import ServingOptions, resolve
from pytest_dooly.core.device import Device, device_named, device_of, served_on
from pytest_dooly.core.environment import Environment
from pytest_dooly.core.routing import TRAINED, RoutingDistribution
from pytest_dooly.core.signature import ServedModel, served_key
from pytest_dooly.core.workload import Workload
from pytest_dooly.errors import ConfigurationError, DocumentError, MissingMeasurements, OutOfRangeWarning
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.latency_db.findings import OPTIONS
from pytest_dooly.prediction.step import StepPrediction, check_lengths, predict_step
from pytest_dooly.prediction.step_times import StepTimes
from pytest_dooly.prediction.workload import WorkloadPrediction, predict_served, predict_workload
from pytest_dooly.published.grounds import Grounds, latency_models
from pytest_dooly.regress.foreign import ForeignEstimator
from pytest_dooly.regress.regressor import LatencyModel

__all__ = ["known", "predict", "traced_for"]


@overload
def predict(
    model: str,
    *,
    batch: str | Batch,
    db: str | Path = ...,
    environment: Environment | None = ...,
    options: ServingOptions | None = ...,
    device: str | None = ...,
    routing: str | RoutingDistribution = ...,
    regressor: Any = ...,
) -> StepPrediction: ...
@overload
def predict(
    model: str,
    *,
    workload: Workload,
    db: str | Path = ...,
    environment: Environment | None = ...,
    options: ServingOptions | None = ...,
    device: str | None = ...,
    routing: str | RoutingDistribution = ...,
    regressor: Any = ...,
) -> WorkloadPrediction: ...
def predict(
    model: str,
    *,
    batch: str | Batch | None = None,
    workload: Workload | None = None,
    db: str | Path = ".dooly/latency.db",
    environment: Environment | None = None,
    options: ServingOptions | None = None,
    device: str | None = None,
    routing: str | RoutingDistribution = TRAINED,
    regressor: Any = None,
) -> StepPrediction | WorkloadPrediction:
    """Latency of a step or of a workload, from a latency DB alone: no engine, no GPU.

    Args:
        model: name that it was profiled by.
        batch: of one step, as a Batch or as text (`8x1+512,128`).
        workload: equal requests.
        db: path of the latency DB.
        environment: what the latencies are true for; may be left out where the DB has the model in one only.
        options: that it was profiled with; may be left out for the default ones, and where there are no others.
        device: a GPU whose latencies others have published, as in `h200_sxm`, in place of an environment.
        routing: how a mixture's router spreads tokens over experts: `trained`, `uniform`, `zipf:1.2` or a share for
            each expert.
        regressor: a scikit-learn estimator, a class of them, or its name (`package.module:Class`), fitted to what was
            measured in place of ours; nothing of it is kept.

    Returns:
        StepPrediction for a batch, WorkloadPrediction for a workload.

    Raises:
        ConfigurationError: not exactly one of batch and workload is given, it or the routing cannot be read, a request
            is longer than max_model_len, the device is unknown, or there is no such regressor.
        DatabaseError: there is no latency DB, or it cannot be read.
        MissingMeasurements: the DB lacks the model or some of its operations, or has it in several environments or with
            several options.
        EstimatorError: the regressor cannot be fitted, or predicts what is no latency.

    Warns:
        OutOfRangeWarning: an operation was asked outside of its measured range.
    """
    if (batch is None) == (workload is None):
        raise ConfigurationError("name either a batch or a workload")
    estimator = _estimator(regressor)
    if estimator is not None and device is not None:
        raise ConfigurationError("a regressor is fitted to what is measured: name an environment in place of a device")
    with LatencyDB.open(Path(db), create=False) as opened:
        served, models = known(opened, model, options, device=device, environment=environment, estimator=estimator)
    spread = RoutingDistribution.parse(routing) if isinstance(routing, str) else routing
    prediction: StepPrediction | WorkloadPrediction
    if workload is not None:
        times = StepTimes(served, models, routing=spread, overlapped=device is not None)
        on = None if device is None else device_named(device)
        prediction = predict_workload(times, workload) if on is None else predict_served(times, workload, on)
    else:
        asked = Batch.parse(batch) if isinstance(batch, str) else batch
        assert asked is not None
        check_lengths(served, asked)
        prediction = predict_step(served, models, asked, routing=spread, overlapped=device is not None)
    for line in prediction.out_of_range:
        warnings.warn(line, OutOfRangeWarning, stacklevel=2)
    return prediction


def known(
    db: LatencyDB,
    name: str,
    options: ServingOptions | None,
    *,
    device: str | None = None,
    environment: Environment | None = None,
    estimator: ForeignEstimator | None = None,
) -> tuple[ServedModel, Mapping[str, LatencyModel]]:
    """A model in a latency DB, and what predicts its operations, by signature key.

    Args:
        db: where they are.
        name: that the model was profiled by.
        options: as in `predict`.
        device: as in `predict`.
        environment: as in `predict`.
        estimator: that is fitted in place of our regressors, where no device is named.

    Raises:
        ConfigurationError: the device is unknown.
        EstimatorError: the estimator cannot be fitted.
        MissingMeasurements: as in `predict`.
    """
    if device is not None:
        return _founded(db, name, options, device_named(device))
    return _profiled(db, name, options, environment, estimator)


def traced_for(db: LatencyDB, name: str, options: ServingOptions) -> ServedModel:
    """A model of a latency DB as it was traced with the options, whatever it was traced on.

    Args:
        db: where it is.
        name: that the model was profiled or planned by.
        options: that it was traced with.

    Raises:
        MissingMeasurements: the DB lacks the model, or has it with other options alone.
    """
    return _served(db, name, options, db.environments(), f"dooly trace {name}", flags="--")[0][1]


def _founded(
    db: LatencyDB, name: str, options: ServingOptions | None, device: Device
) -> tuple[ServedModel, Mapping[str, LatencyModel]]:
    """The model, whatever it was traced on, with the device's limits, and what the latency DB knows of the device."""
    how = f"dooly plan {name} --device {device.name}"
    environment, model = _served(db, name, options, db.environments(), how, flags="--")[0]
    asked = options or _kept_options(db, model, environment)
    if asked is not None:
        model = served_on(model, device, asked)
    return model, {key: each.model for key, each in Grounds(db, device).of(model).items()}


def _profiled(
    db: LatencyDB,
    name: str,
    options: ServingOptions | None,
    environment: Environment | None,
    estimator: ForeignEstimator | None,
) -> tuple[ServedModel, Mapping[str, LatencyModel]]:
    environments = db.environments() if environment is None else [environment]
    found = _served(db, name, options, environments, f"pytest --dooly-model={name}", flags="--dooly-")
    if len({each for each, _ in found}) > 1:
        named = "; ".join(sorted({str(each) for each, _ in found}))
        raise MissingMeasurements(f"the latency DB has {name!r} in several environments, name one: {named}")
    each, model = found[0]
    models = latency_models(model, db, each, estimator=estimator)
    if not models and (gpus := _published_gpus(db)):
        raise MissingMeasurements(
            f"nothing of {name!r} is measured in {each}: name a GPU that others have published latencies of, as in "
            f"device={gpus[0]!r} (the latency DB has {', '.join(gpus)}), or run pytest --dooly-model={name}"
        )
    return model, models


def _published_gpus(db: LatencyDB) -> list[str]:
    """Names of the GPUs that others have published latencies of."""
    published = [each.device for each in db.environments() if db.published_counts(each)]
    return list(dict.fromkeys(device.name for device in map(device_of, published) if device is not None))


def _estimator(regressor: Any) -> ForeignEstimator | None:
    if regressor is None:
        return None
    return ForeignEstimator.named(regressor) if isinstance(regressor, str) else ForeignEstimator.of(regressor)


def _served(
    db: LatencyDB,
    name: str,
    options: ServingOptions | None,
    environments: Sequence[Environment],
    how: str,
    *,
    flags: str,
) -> list[tuple[Environment, ServedModel]]:
    """Where the model was served with the options, once each environment; at least one.

    Args:
        db: where it may be.
        name: of the model.
        options: None for those that it was served with, or the default ones among several.
        environments: that are looked at.
        how: a command that brings the model into the latency DB.
        flags: what each of its options begins with.
    """
    found = [(each, model) for each in environments for model in db.models(each) if model.name == name]
    if not found:
        names = sorted({model.name for model in db.models()})
        raise MissingMeasurements(f"the latency DB has no model {name!r}, only {', '.join(names) or 'none'}: run {how}")
    if options is None and len({each for each, _ in found}) == len(found):
        return found
    configuration = resolve(name, options)
    chosen = [(each, model) for each, model in found if model.key == served_key(configuration, each)]
    if chosen:
        return chosen
    kept = dict.fromkeys(_kept_options(db, model, each) for each, model in found)
    if options is None:
        several = " or ".join(f"options={_written(each)}" for each in kept)
        raise MissingMeasurements(
            f"the latency DB has {name!r} with several options, none of them the default ones: name {several}"
        )
    asked = _flagged(options, flags)
    others = " or ".join(" ".join(_flagged(each, flags)) or "the default options" for each in kept if each is not None)
    raise MissingMeasurements(
        f"the latency DB has {name!r}, but not with {' '.join(asked) or 'the default options'}"
        f"{others and ', only with '}{others}: run {' '.join([how, *asked])}"
    )


def _kept_options(db: LatencyDB, model: ServedModel, environment: Environment) -> ServingOptions | None:
    """What a model is served with; None where an earlier version traced it, whose limits stand."""
    with suppress(DocumentError):
        document = db.load_finding(OPTIONS, model.key, environment)
        return None if document is None else ServingOptions.from_json(document)
    return None


def _written(options: ServingOptions | None) -> str:
    """As a user of the API writes them."""
    if options is None:
        return "those of a trace by an earlier version, which kept no values"
    return f"pytest_dooly.ServingOptions({', '.join(f'{field}={value!r}' for field, value in options.named.items())})"


def _flagged(options: ServingOptions, flags: str) -> list[str]:
    """As a user of a command writes them."""
    flag_of = {field.name: field.metadata["flag"] for field in dataclasses.fields(options)}
    return [f"{flags}{flag_of[field]}={value}" for field, value in options.named.items()]
