"""The regressors of an environment: fitted to what the latency DB holds of it, kept there and read back."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress

from pytest_dooly.core.environment import Environment
from pytest_dooly.core.signature import ServedModel
from pytest_dooly.errors import DocumentError, MissingMeasurements
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.regress.fit import fit
from pytest_dooly.regress.regressor import Regressor

__all__ = ["fit_regressors", "regressors_of", "unseen_errors"]


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
            predicted_s = regressors[key].predict_s(list(measured))
            off = [abs(a / b.mean_s - 1) for a, b in zip(predicted_s, measured.values(), strict=True)]
            errors[key] = len(off), float(statistics.fmean(off))
    return errors
