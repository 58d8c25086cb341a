"""Latencies of many sizes -> a regressor across them, with the error to be expected of each prediction.

Boosted trees on log(latency / (floor + roofline)), two sets with other seeds, averaged. The error to be expected comes
from folds: half of the sizes are left out of a fold as a whole and the rows of the others one by one, so that it is
known both for a size that was never measured and between the measured points of one that was. Further trees learn it
from the same features and from how far the nearest measured size and the nearest measured row are; it is scaled so that
its mean is the mean of the errors that were found, apart for measured and for new sizes (normalised conformal
prediction: Papadopoulos et al. 2002, Lei et al. 2018).
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_dooly.errors import MissingExtraError

__all__ = ["FEWEST_ROWS", "AcrossSizes"]

Array = npt.NDArray[np.float64]

_FOLDS, _SETS = 3, 2
_LATENCY = {"num_leaves": 127, "min_data_in_leaf": 10, "learning_rate": 0.08, "trees": 300}
_ERROR = {"num_leaves": 15, "min_data_in_leaf": 60, "learning_rate": 0.05, "trees": 120}

FEWEST_ROWS = 10
"""That trees are fitted to: fewer leave too little to hold out."""

_THREADS = 1
"""A tree is grown in many short steps, at each of which several threads would wait for the slowest core."""

_FLOOR = 0.01
"""Quantile of the latencies that stands for what the smallest work takes."""

_WILD = 0.995
"""Quantile of the errors above which none counts as more: one wild row must not shape the trees."""

_LEAST_ERROR = 1e-4


@dataclass(frozen=True)
class AcrossSizes:
    """A fitted regressor.

    Attributes:
        trees: each set that predicts latencies, as text.
        error_trees: those of the expected error, as text.
        scales: factors of the expected error at measured and at new sizes.
        floor_s: what the smallest work takes, in seconds.
        near: distinct rows of the fit in the space of sizes, shape (rows, sizes).
        fixed: columns of `near` that are one value within each size.
        unseen_sizes: median and 95th percentile of the relative error where a whole size was left out; None where the
            sizes are too few for that.
        unseen_rows: the same where rows of a size in the fit were left out.
    """

    trees: tuple[str, ...]
    error_trees: str
    scales: tuple[float, float]
    floor_s: float
    near: tuple[tuple[float, ...], ...]
    fixed: tuple[int, ...]
    unseen_sizes: tuple[float, float] | None
    unseen_rows: tuple[float, float] | None

    @classmethod
    def fit(
        cls, matrix: Array, roofline_s: Array, latencies_s: Array, groups: npt.NDArray[np.intp], num_sizes: int
    ) -> AcrossSizes:
        """Learns from measured rows; some 10 seconds for 35,000 of them.

        Args:
            matrix: features, shape (rows, features).
            roofline_s: what the device could do the work in at best, shape (rows,), in seconds.
            latencies_s: measured, shape (rows,), in seconds; at least FEWEST_ROWS of them.
            groups: number of the sizes that a row belongs to, shape (rows,).
            num_sizes: leading features that span the space in which a row is near another.
        """
        floor_s = float(np.quantile(latencies_s, _FLOOR))
        target = np.log(latencies_s / (floor_s + roofline_s))
        sizes = np.round(matrix[:, :num_sizes], 6)
        first = np.unique(groups, return_index=True)[1][np.unique(groups, return_inverse=True)[1]]
        fixed = [i for i in range(num_sizes) if np.array_equal(sizes[:, i], sizes[first, i])]
        random = np.random.default_rng(0)
        order = random.permutation(groups.max() + 1)[groups]
        whole = (order % 2 == 0) & (groups.max() >= _FOLDS)  # of few sizes none can be spared
        folds = np.where(whole, order // 2 % _FOLDS, random.integers(0, _FOLDS, len(target)))
        off, away = np.zeros(len(target)), np.zeros((len(target), 2))
        for fold in np.unique(folds):
            seen, out = folds != fold, folds == fold
            guess = _train(matrix[seen], target[seen], _LATENCY, 0).predict(matrix[out], num_threads=_THREADS)
            off[out] = np.abs(np.expm1(guess - target[out]))
            away[out] = _away(_trees_of_points(sizes[seen], fixed), sizes[out], fixed)
        new = away[:, 0] > 0
        error, scales = _learn_error(np.column_stack([matrix, away]), off, order // 2 % 2, new)
        return cls(
            trees=tuple(_train(matrix, target, _LATENCY, seed).model_to_string() for seed in range(_SETS)),
            error_trees=error.model_to_string(),
            scales=scales,
            floor_s=floor_s,
            near=tuple(map(tuple, np.unique(sizes, axis=0).tolist())),
            fixed=tuple(fixed),
            unseen_sizes=_median_and_tail(off[new]),
            unseen_rows=_median_and_tail(off[~new]),
        )

    def predict(self, matrix: Array, roofline_s: Array) -> tuple[Array, Array]:
        """Latencies in seconds and their expected absolute relative errors, each of shape (rows,)."""
        sets, error, _ = self._models
        ratio = np.mean([trees.predict(matrix, num_threads=_THREADS) for trees in sets], axis=0)
        away = self.away(matrix)
        expected = error.predict(np.column_stack([matrix, away]), num_threads=_THREADS)
        scale = np.where(away[:, 0] > 0, self.scales[1], self.scales[0])
        return (self.floor_s + roofline_s) * np.exp(ratio), scale * np.maximum(expected, _LEAST_ERROR)

    def away(self, matrix: Array) -> Array:
        """How far the nearest measured size and the nearest measured row are, in doublings, shape (rows, 2)."""
        _, _, points = self._models
        return _away(points, np.round(matrix[:, : len(self.near[0])], 6), self.fixed)

    def to_json(self) -> dict[str, Any]:
        """A JSON document that `from_json` reads back; the trees are packed, since their text is long."""
        return {
            "trees": [_pack(text) for text in self.trees],
            "error_trees": _pack(self.error_trees),
            "scales": self.scales,
            "floor_s": self.floor_s,
            "near": self.near,
            "fixed": self.fixed,
            "unseen_sizes": self.unseen_sizes,
            "unseen_rows": self.unseen_rows,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> AcrossSizes:
        """The inverse of `to_json`."""
        return cls(
            trees=tuple(_unpack(text) for text in document["trees"]),
            error_trees=_unpack(document["error_trees"]),
            scales=tuple(document["scales"]),
            floor_s=document["floor_s"],
            near=tuple(map(tuple, document["near"])),
            fixed=tuple(document["fixed"]),
            unseen_sizes=document["unseen_sizes"] and tuple(document["unseen_sizes"]),
            unseen_rows=document["unseen_rows"] and tuple(document["unseen_rows"]),
        )

    @cached_property
    def _models(self) -> tuple[list[Any], Any, tuple[Any, Any]]:

        sets = [_lightgbm().Booster(model_str=text) for text in self.trees]
        return sets, _lightgbm().Booster(model_str=self.error_trees), _trees_of_points(np.array(self.near), self.fixed)


def _learn_error(
    told: Array, off: Array, halves: npt.NDArray[np.intp], new: npt.NDArray[np.bool_]
) -> tuple[Any, tuple[float, float]]:
    """Trees of the error, and the factors that make its mean right on sizes that are not in their fit."""
    limited = np.minimum(off, np.quantile(off, _WILD))
    expected = np.zeros(len(off))
    for half in np.unique(halves):
        seen, out = halves != half, halves == half
        if seen.any():
            expected[out] = _train(told[seen], limited[seen], _ERROR, 0).predict(told[out], num_threads=_THREADS)
    scales = _ratio(off[~new], expected[~new]), _ratio(off[new], expected[new])
    return _train(told, limited, _ERROR, 0), scales


def _ratio(actual: Array, expected: Array) -> float:
    return float(actual.sum() / np.maximum(expected, _LEAST_ERROR).sum()) if expected.any() else 1.0


def _train(matrix: Array, target: Array, shape: Mapping[str, float], seed: int) -> Any:
    options = {
        "objective": "l2",
        "learning_rate": shape["learning_rate"],
        "num_leaves": int(shape["num_leaves"]),
        # Small tables get leaves too.
        "min_data_in_leaf": int(max(3, min(shape["min_data_in_leaf"], len(target) // 50))),
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
    return _lightgbm().train(options, _lightgbm().Dataset(matrix, target), int(shape["trees"]))


def _lightgbm() -> Any:
    try:
        import lightgbm
    except ImportError as error:
        raise MissingExtraError(
            "predicting across sizes needs lightgbm: run pip install 'pytest-dooly[public-data]', which brings it"
        ) from error
    return lightgbm


def _trees_of_points(sizes: Array, fixed: Sequence[int]) -> tuple[Any, Any]:
    """Nearest-neighbour trees of the measured sizes, and of the measured rows."""
    from scipy.spatial import cKDTree

    return cKDTree(np.unique(sizes[:, list(fixed)], axis=0)), cKDTree(sizes)


def _away(points: tuple[Any, Any], sizes: Array, fixed: Sequence[int]) -> Array:
    """How far the nearest measured size and the nearest measured row are, in doublings, shape (rows, 2)."""
    of_sizes, of_rows = points
    return np.column_stack([of_sizes.query(sizes[:, list(fixed)])[0], of_rows.query(sizes)[0]])


def _median_and_tail(errors: Array) -> tuple[float, float] | None:
    return (float(np.median(errors)), float(np.quantile(errors, 0.95))) if len(errors) else None


def _pack(text: str) -> str:
    return base64.b85encode(zlib.compress(text.encode(), 6)).decode()


def _unpack(text: str) -> str:
    return zlib.decompress(base64.b85decode(text)).decode()
