"""Anybody's estimators, fitted to our measurements: named, never stored, since only pickle could store them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.core.measurement import Measurement
from pytest_dooly.core.signature import Signature
from pytest_dooly.core.work import Work
from pytest_dooly.errors import ConfigurationError, EstimatorError, reason_of
from pytest_dooly.regress.fit import weights_of, work_frame
from pytest_dooly.regress.regressor import furthest_outside
from pytest_dooly.regress.selection import folds_of

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ForeignEstimator", "ForeignRegressor"]

Array = npt.NDArray[np.float64]

_FORM = "package.module:Class, as in sklearn.ensemble:RandomForestRegressor"


@dataclass(frozen=True)
class ForeignEstimator:
    """An estimator as somebody else has written it, of which every operation gets one.

    Attributes:
        name: for people.
        make: gives one that is not fitted.
    """

    name: str
    make: Callable[[], Any]

    @classmethod
    def named(cls, name: str) -> ForeignEstimator:
        """The estimator that a text names.

        Args:
            name: `package.module:Class`; a function that makes an estimator, or an estimator that is to be cloned, does
                as well, for parameters and pipelines. The current directory is looked in last.

        Raises:
            ConfigurationError: there is none of that name, or it has no `fit` and `predict`.
        """
        module, _, path = name.partition(":")
        if not module or not path:
            raise ConfigurationError(f"{name!r} names no estimator: write {_FORM}")
        try:
            with _current_directory():
                found = importlib.import_module(module)
        except Exception as error:  # whatever somebody's module raises
            raise ConfigurationError(f"cannot import {module} for the regressor {name}: {reason_of(error)}") from error
        try:
            target = reduce(getattr, path.split("."), found)
        except AttributeError as error:
            raise ConfigurationError(f"module {module} has no {path}: write {_FORM}") from error
        return cls.of(target, name)

    @classmethod
    def of(cls, target: Any, name: str | None = None) -> ForeignEstimator:
        """A class, a function that makes an estimator, or an estimator that is to be cloned.

        Raises:
            ConfigurationError: it cannot be made, or has no `fit` and `predict`.
        """
        name = name or str(getattr(target, "__name__", type(target).__name__))
        make = target if isinstance(target, type) or not hasattr(target, "fit") else lambda: _clone(target)
        try:
            made = make()
        except Exception as error:  # whatever somebody's class raises
            raise ConfigurationError(
                f"{name} cannot be made without arguments ({reason_of(error)}): name an estimator that is made, or a "
                "function that makes one"
            ) from error
        if not all(callable(getattr(made, verb, None)) for verb in ("fit", "predict")):
            raise ConfigurationError(f"{name} is no estimator, which has fit and predict: write {_FORM}")
        return cls(name, make)

    def fit(self, signature: Signature, outcomes: Mapping[SweepPoint, Measurement]) -> ForeignRegressor:
        """One that is fitted to an operation's work features and mean latencies in seconds.

        Raises:
            EstimatorError: it cannot be fitted.
        """
        table = work_frame(signature, list(outcomes))
        ranges = tuple((float(low), float(high)) for low, high in zip(table.min(), table.max(), strict=True))
        estimator = self._fitted(signature, table, _means(outcomes))
        return ForeignRegressor(self.name, signature, estimator, tuple(table), ranges)

    def held_out_error(self, signature: Signature, outcomes: Mapping[SweepPoint, Measurement]) -> float | None:
        """Weighted mean absolute relative error over the folds and weights that ours is found with.

        Returns:
            0.05 for 5 %; None where the points are too few to hold one out.

        Raises:
            EstimatorError: it cannot be fitted, or predicts what is no latency.
        """
        from sklearn.metrics import mean_absolute_percentage_error
        from sklearn.model_selection import PredefinedSplit

        latencies_s, table = _means(outcomes), work_frame(signature, list(outcomes))
        of_fold = np.full(len(latencies_s), -1)  # the extremes are in no fold
        for number, fold in enumerate(folds_of(latencies_s)):
            of_fold[fold] = number
        held = of_fold >= 0
        if not held.any():
            return None
        predicted_s = np.zeros(len(latencies_s))
        for seen, out in PredefinedSplit(of_fold).split():
            estimator = self._fitted(signature, table.iloc[seen], latencies_s[seen])
            predicted_s[out] = _predicted_s(self.name, signature, estimator, table.iloc[out])
        weights = weights_of(outcomes)[held]
        return float(mean_absolute_percentage_error(latencies_s[held], predicted_s[held], sample_weight=weights))

    def _fitted(self, signature: Signature, table: pd.DataFrame, latencies_s: Array) -> Any:
        try:
            estimator = self.make()
            estimator.fit(table, latencies_s)
        except Exception as error:  # whatever somebody's estimator raises
            raise EstimatorError(f"{self.name} cannot be fitted to {signature.label}: {reason_of(error)}") from error
        return estimator


@dataclass(frozen=True)
class ForeignRegressor:
    """Somebody else's estimator of one operation, fitted; a LatencyModel.

    Attributes:
        name: of the estimator, for people.
        signature: of the operation.
        estimator: that is fitted.
        features: that it is fitted to.
        ranges: smallest and largest measured value of each feature.
    """

    name: str
    signature: Signature
    estimator: Any
    features: tuple[str, ...]
    ranges: tuple[tuple[float, float], ...]

    def predict_s(self, points: Sequence[SweepPoint] | Work) -> Array:
        """Latencies in seconds, shape (points,).

        Raises:
            EstimatorError: it predicts what is no latency.
        """
        table = work_frame(self.signature, points, self.features)
        return _predicted_s(self.name, self.signature, self.estimator, table) if len(table) else np.empty(0)

    def out_of_range(self, points: SweepPoint | Work) -> str | None:
        """One line on the feature and the point that lie furthest outside of what was measured, or None."""
        table = work_frame(self.signature, points if isinstance(points, Work) else [points], self.features)
        return furthest_outside(self.features, table.to_numpy(), self.ranges)


def _predicted_s(name: str, signature: Signature, estimator: Any, table: pd.DataFrame) -> Array:
    """What the estimator predicts, if those are latencies."""
    try:
        predicted_s = np.asarray(estimator.predict(table), dtype=np.float64)
    except Exception as error:  # whatever somebody's estimator raises
        raise EstimatorError(f"{name} cannot predict {signature.label}: {reason_of(error)}") from error
    if predicted_s.size != len(table):
        raise EstimatorError(
            f"{name} predicts {predicted_s.size} latencies of {signature.label} for {len(table)} points"
        )
    predicted_s = predicted_s.reshape(-1)
    wrong = ~((predicted_s >= 0) & np.isfinite(predicted_s))
    if wrong.any():
        first = int(np.argmax(wrong))
        where = ", ".join(f"{column} is {value:,.0f}" for column, value in table.iloc[first].items())
        raise EstimatorError(
            f"{name} predicts {predicted_s[first]:.3g} s for {signature.label} where {where}: name another estimator, "
            "or one that learns the logarithm of latencies (sklearn.compose.TransformedTargetRegressor)"
        )
    return predicted_s


def _means(outcomes: Mapping[SweepPoint, Measurement]) -> Array:
    return np.array([outcome.mean_s for outcome in outcomes.values()])


def _clone(estimator: Any) -> Any:
    from sklearn.base import clone

    return clone(estimator, safe=False)


@contextmanager
def _current_directory() -> Iterator[None]:
    """Modules of the current directory can be imported, as with `python -m`; installed ones come first."""
    here = str(Path.cwd())
    importlib.invalidate_caches()
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.remove(here)
