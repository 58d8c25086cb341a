"""Measurements of many sizes -> a regressor across them, with the error to be expected of each prediction.

Boosted trees on log(latency / roofline), one set for each fold of the rows, averaged. Half of the sizes are left out of
a fold as a whole and the rows of the others one by one, so that the out-of-fold error is known both for a size that was
never measured and between the measured points of one that was. A further set of trees learns this error from the same
features and the distance to the nearest row in the fit, scaled so that its mean is the mean that was found (normalised
conformal prediction: Papadopoulos et al. 2002, Lei et al. 2018).
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["AcrossSizes"]

Array = npt.NDArray[np.float64]

_FOLDS = 4
_THREADS = 1

_LATENCY = {"num_leaves": 127, "min_data_in_leaf": 10}
_ERROR = {"num_leaves": 15, "min_data_in_leaf": 60}
_LATENCY_TREES, _ERROR_TREES = 100, 60
"""Leaves of a tree, rows in each at least, and number of trees: of latencies, and of their errors."""

_WILD = 0.995
"""Quantile of the errors above which none counts as more: one wild row must not shape the trees."""

_LEAST_ERROR = 1e-4


@dataclass(frozen=True)
class AcrossSizes:
    """A fitted regressor.

    Attributes:
        latency: trees of each fold, as text.
        error: trees of the expected error, as text.
        scale: factor of the expected error.
        near: distinct rows of the fit in the space of sizes, shape (rows, sizes).
        unseen_sizes: median and 95th percentile of the relative error where a whole size was left out.
        unseen_rows: the same where rows of a size in the fit were left out.
    """

    latency: tuple[str, ...]
    error: str
    scale: float
    near: tuple[tuple[float, ...], ...]
    unseen_sizes: tuple[float, float]
    unseen_rows: tuple[float, float]

    @classmethod
    def fit(
        cls, matrix: Array, roofline_s: Array, latencies_s: Array, groups: npt.NDArray[np.intp], num_sizes: int
    ) -> AcrossSizes:
        """Learns from measured rows.

        Args:
            matrix: features, shape (rows, features).
            roofline_s: shape (rows,), in seconds.
            latencies_s: measured, shape (rows,), in seconds.
            groups: number of the sizes that a row belongs to, shape (rows,).
            num_sizes: leading features that span the space in which a row is near another.
        """
        random = np.random.default_rng(0)
        target = np.log(latencies_s / roofline_s)
        order = random.permutation(groups.max() + 1)[groups]
        whole = order % 2 == 0
        folds = np.where(whole, order // 2 % _FOLDS, random.integers(0, _FOLDS, len(target)))
        off, far = np.zeros(len(target)), np.zeros(len(target))
        trees = []
        for fold in range(_FOLDS):
            seen, out = folds != fold, folds == fold
            model = _train(matrix[seen], target[seen], _LATENCY_TREES, _LATENCY, fold)
            trees.append(model)
            if out.any():
                off[out] = np.abs(np.expm1(model.predict(matrix[out], num_threads=_THREADS) - target[out]))
                far[out] = _distance(matrix[seen, :num_sizes], matrix[out, :num_sizes])
        error, scale = _learn_error(np.column_stack([matrix, far]), off, order // 2 % 2)
        return cls(
            latency=tuple(model.model_to_string() for model in trees),
            error=error.model_to_string(),
            scale=scale,
            near=tuple(map(tuple, np.unique(np.round(matrix[:, :num_sizes], 4), axis=0).tolist())),
            unseen_sizes=_median_and_tail(off[whole]),
            unseen_rows=_median_and_tail(off[~whole]),
        )

    def predict(self, matrix: Array, roofline_s: Array) -> tuple[Array, Array]:
        """Latencies in seconds and their expected absolute relative errors, each of shape (rows,)."""
        trees, error, near = self._models
        mean = np.mean([model.predict(matrix, num_threads=_THREADS) for model in trees], axis=0)
        told = np.column_stack([matrix, near.query(matrix[:, : near.m], workers=_THREADS)[0]])
        errors = self.scale * np.maximum(error.predict(told, num_threads=_THREADS), _LEAST_ERROR)
        return roofline_s * np.exp(mean), errors

    def to_json(self) -> dict[str, Any]:
        """A JSON document that `from_json` reads back; the trees are packed, since their text is long."""
        return {
            "latency": [_pack(text) for text in self.latency],
            "error": _pack(self.error),
            "scale": self.scale,
            "near": self.near,
            "unseen_sizes": self.unseen_sizes,
            "unseen_rows": self.unseen_rows,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> AcrossSizes:
        """The inverse of `to_json`."""
        return cls(
            latency=tuple(_unpack(text) for text in document["latency"]),
            error=_unpack(document["error"]),
            scale=document["scale"],
            near=tuple(map(tuple, document["near"])),
            unseen_sizes=tuple(document["unseen_sizes"]),
            unseen_rows=tuple(document["unseen_rows"]),
        )

    @cached_property
    def _models(self) -> tuple[list[Any], Any, Any]:
        from lightgbm import Booster
        from scipy.spatial import cKDTree

        trees = [Booster(model_str=text) for text in self.latency]
        return trees, Booster(model_str=self.error), cKDTree(np.array(self.near))


def _learn_error(told: Array, off: Array, halves: npt.NDArray[np.intp]) -> tuple[Any, float]:
    """Trees of the error, and the factor that makes their mean on sizes not in their fit the mean error."""
    limited = np.minimum(off, np.quantile(off, _WILD))
    expected = np.zeros(len(off))
    for half in (0, 1):
        seen = halves != half
        if seen.any() and not seen.all():
            model = _train(told[seen], limited[seen], _ERROR_TREES, _ERROR, half)
            expected[~seen] = model.predict(told[~seen], num_threads=_THREADS)
    scale = float(off.sum() / np.maximum(expected, _LEAST_ERROR).sum()) if expected.any() else 1.0
    return _train(told, limited, _ERROR_TREES, _ERROR, 0), scale


def _train(matrix: Array, target: Array, trees: int, shape: Mapping[str, int], seed: int) -> Any:
    import lightgbm

    options = {
        "objective": "l2",
        "learning_rate": 0.05,
        "num_leaves": shape["num_leaves"],
        # Small tables get leaves too.
        "min_data_in_leaf": max(2, min(shape["min_data_in_leaf"], len(target) // 40)),
        "min_data_in_bin": 1 if len(target) < 1000 else 3,
        "feature_fraction": 0.7,
        "bagging_fraction": 0.8,
        "bagging_freq": 1,
        "num_threads": _THREADS,
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }
    return lightgbm.train(options, lightgbm.Dataset(matrix, target), trees)


def _distance(near: Array, rows: Array) -> Array:
    """To the nearest row in the fit, in doublings, shape (rows,)."""
    from scipy.spatial import cKDTree

    return np.asarray(cKDTree(near).query(rows, workers=_THREADS)[0])


def _median_and_tail(errors: Array) -> tuple[float, float]:
    return (float(np.median(errors)), float(np.quantile(errors, 0.95))) if len(errors) else (np.nan, np.nan)


def _pack(text: str) -> str:
    return base64.b85encode(zlib.compress(text.encode(), 6)).decode()


def _unpack(text: str) -> str:
    return zlib.decompress(base64.b85decode(text)).decode()
