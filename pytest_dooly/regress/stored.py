"""The regressors of an environment: fitted to what the latency DB holds of it, kept there and read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from pytest_dooly.core.environment import Environment
from pytest_dooly.core.signature import ServedModel
from pytest_dooly.errors import DocumentError, EstimatorError, MissingMeasurements
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.regress.fit import fit
from pytest_dooly.regress.foreign import ForeignEstimator, ForeignRegressor
from pytest_dooly.regress.regressor import Regressor

__all__ = ["Comparison", "compare_with", "fit_regressors", "refitted", "regressors_of", "unseen_errors"]


@dataclass(frozen=True)
class Comparison:
    """Somebody else's estimator beside our regressors; nothing of it is kept.

    Attributes:
        name: of the estimator.
        errors: held-out error, by signature key, on the points and with the weights of ours.
        refused: why it has none of an operation, by signature key.
    """

    name: str
    errors: Mapping[str, float]
    refused: Mapping[str, str]


def regressors_of(db: LatencyDB, environment: Environment) -> dict[str, Regressor]:
    """Every regressor of an environment that can be read, by signature key; the next run fits the others again."""
    regressors = {}
    for key, document in db.load_regressors(environment).items():
        with suppress(DocumentError):
            regressors[key] = Regressor.from_json(document)
    return regressors


def fit_regressors(
    models: Sequence[ServedModel], db: LatencyDB, environment: Environment
) -> tuple[Mapping[str, Regressor], Sequence[str]]:
    """One regressor an operation, stored in the latency DB.

    Returns:
        regressors by signature key, and one line for each operation that has too few measurements.
    """
    measured = db.measurements(environment)
    regressors: dict[str, Regressor] = {}
    lacking: list[str] = []
    for signature in {operation.signature for model in models for operation in model.operations}:
        try:
            regressor = fit(signature, measured.get(signature.key, {}))
        except MissingMeasurements as error:
            lacking.append(str(error))
            continue
        regressors[signature.key] = regressor
        db.save_regressor(signature.key, environment, regressor.to_json(), error=regressor.error)
    return regressors, sorted(lacking)


def compare_with(
    estimator: ForeignEstimator, regressors: Mapping[str, Regressor], db: LatencyDB, environment: Environment
) -> Comparison:
    """Held-out errors of an estimator on what our regressors were fitted to; what it cannot do is told, not raised."""
    signatures, measured = db.signatures(), db.measurements(environment)
    errors, refused = {}, {}
    for key in regressors:
        try:
            error = estimator.held_out_error(signatures[key], measured[key])
        except EstimatorError as reason:
            refused[key] = str(reason)
            continue
        if error is not None:
            errors[key] = error
    return Comparison(estimator.name, errors, refused)


def refitted(
    estimator: ForeignEstimator, model: ServedModel, db: LatencyDB, environment: Environment
) -> dict[str, ForeignRegressor]:
    """An estimator fitted to what is measured of each of a model's operations, by signature key.

    Raises:
        EstimatorError: it cannot be fitted to one.
    """
    measured = db.measurements(environment)
    signatures = {operation.signature.key: operation.signature for operation in model.operations}
    return {key: estimator.fit(signature, measured[key]) for key, signature in signatures.items() if measured.get(key)}


def unseen_errors(
    regressors: Mapping[str, Regressor], db: LatencyDB, environment: Environment
) -> Mapping[str, tuple[int, float]]:
    """How far regressors are off where points were held out of every fit.

    Returns:
        number of points and mean absolute relative error, by signature key.
    """
    errors = {}
    for key, measured in db.measurements(environment, held_out=True).items():
        if key in regressors and measured:
            from sklearn.metrics import mean_absolute_percentage_error  # two seconds, for runs that hold points out

            means_s = [each.mean_s for each in measured.values()]
            error = mean_absolute_percentage_error(means_s, regressors[key].predict_s(list(measured)))
            errors[key] = len(measured), float(error)
    return errors
