"""`make bench`: regressors compared on what a latency DB has measured.

    python -m benchmarks.regressors [DB] [--method NAME ...]

Each method is asked for points that it has not seen, in three ways: every fifth point left out (folds); all points of
one size left out (sizes); and points that the DB holds out of every fit, where it has some. Two extremes of each
operation always stay in the fit. `points` is how many of an operation's points a method needs for a median error of 5
%, the least over growing subsets; "-" where no subset reaches it. With OMP_NUM_THREADS=1, fits and predictions run on
one core.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.core.measurement import Measurement
from pytest_dooly.core.signature import Signature
from pytest_dooly.core.work import Work, features_of
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.regress.fit import fit

Array = npt.NDArray[np.float64]
Outcomes = Mapping[SweepPoint, Measurement]
TARGET = 0.05
FOLDS = 5
PREDICTIONS = 100_000


@dataclass(frozen=True)
class Fitted:
    """A method after its fit.

    Attributes:
        predict_s: latencies of a work, shape (points,).
        document: what would have to be stored to predict again.
    """

    predict_s: Callable[[Work], Array]
    document: Any


Method = Callable[[Signature, Outcomes], Fitted]


def columns(signature: Signature) -> tuple[str, ...]:
    """What the learned methods are shown: every feature that fits the kind."""
    if signature.swept == "routing":
        return ("size", "activated", "busiest")
    if signature.swept != "batch":
        return ("size",)
    return ("num_reqs", "num_tokens", "prompt_tokens", "pairs", "prompt_pairs", "kv_tokens", "longest_kv")


def table(signature: Signature, outcomes: Outcomes) -> tuple[Callable[[Work], Array], Array, Array]:
    """Work -> log features; those of the outcomes; their log latencies."""
    names = columns(signature)
    attribute = dict(signature.attributes).get("sliding_window")
    window = float(attribute) if attribute else None

    def logs(work: Work) -> Array:
        return np.log1p(features_of(work, names, window))

    latencies = np.log([outcome.mean_s for outcome in outcomes.values()])
    return logs, logs(Work.of(list(outcomes))), latencies


def dooly(signature: Signature, outcomes: Outcomes) -> Fitted:
    """The default."""
    regressor = fit(signature, outcomes)
    return Fitted(regressor.predict_s, regressor.to_json())


def roofline(signature: Signature, outcomes: Outcomes) -> Fitted:
    """Roofline features and non-negative least squares of the relative error, and nothing else."""
    from scipy.optimize import nnls

    names = ("num_reqs", "num_tokens", "pairs", "kv_tokens") if signature.swept == "batch" else columns(signature)
    matrix = features_of(Work.of(list(outcomes)), names, None)
    latencies_s = np.array([outcome.mean_s for outcome in outcomes.values()])
    design = np.column_stack([np.ones(len(matrix)), matrix])
    scale = np.maximum(design.max(0), 1e-30)
    solution, _ = nnls(design / scale / latencies_s[:, None], np.ones(len(design)), maxiter=1000)
    solution = solution / scale
    return Fitted(lambda work: solution[0] + features_of(work, names, None) @ solution[1:], solution.tolist())


def random_forest(signature: Signature, outcomes: Outcomes) -> Fitted:
    """As in Vidur (Agrawal et al. 2024), of the smallest forest of its grid."""
    from sklearn.ensemble import RandomForestRegressor

    forest = RandomForestRegressor(n_estimators=250, max_depth=16, random_state=0, n_jobs=1)
    return _trees(forest, signature, outcomes, lambda: [tree.tree_ for tree in forest.estimators_])


def gradient_boosting(signature: Signature, outcomes: Outcomes) -> Fitted:
    """Boosted trees on log features and log latencies."""
    from sklearn.ensemble import GradientBoostingRegressor

    boosting = GradientBoostingRegressor(n_estimators=300, learning_rate=0.05, subsample=0.8, random_state=0)
    return _trees(boosting, signature, outcomes, lambda: [tree.tree_ for (tree,) in boosting.estimators_])


def monotone_boosting(signature: Signature, outcomes: Outcomes) -> Fitted:
    """Boosted trees that may only rise with each feature."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    logs, matrix, latencies = table(signature, outcomes)
    boosting = HistGradientBoostingRegressor(
        monotonic_cst=[1] * matrix.shape[1], min_samples_leaf=2, max_iter=200, early_stopping=False, random_state=0
    ).fit(matrix, latencies)
    nodes = [predictor.nodes.tolist() for (predictor,) in boosting._predictors]
    return Fitted(lambda work: np.exp(boosting.predict(logs(work))), nodes)


def monotone_piecewise_linear(signature: Signature, outcomes: Outcomes) -> Fitted:
    """A log latency that is a sum of rising piecewise-linear functions of the log features, fitted one at a time."""
    from sklearn.isotonic import IsotonicRegression

    logs, matrix, latencies = table(signature, outcomes)
    mean = float(latencies.mean())
    parts = [np.zeros(len(latencies)) for _ in range(matrix.shape[1])]
    curves: list[tuple[Array, Array]] = [(np.zeros(1), np.zeros(1)) for _ in parts]
    for _ in range(30):
        for i, column in enumerate(matrix.T):
            rest = latencies - mean - sum(part for j, part in enumerate(parts) if j != i)
            curve = IsotonicRegression(out_of_bounds="clip").fit(column, rest)
            curves[i] = curve.X_thresholds_, curve.y_thresholds_
            parts[i] = np.interp(column, *curves[i])

    def predict_s(work: Work) -> Array:
        total = sum(np.interp(column, *curve) for column, curve in zip(logs(work).T, curves, strict=True))
        return np.exp(mean + total)

    return Fitted(predict_s, [mean, [[x.tolist(), y.tolist()] for x, y in curves]])


def gaussian_process(signature: Signature, outcomes: Outcomes) -> Fitted:
    """A smooth function of the log features with noise."""
    logs, matrix, latencies = table(signature, outcomes)
    predict, document = _process(matrix, latencies)
    return Fitted(lambda work: np.exp(predict(logs(work))), document)


def corrected(signature: Signature, outcomes: Outcomes) -> Fitted:
    """The default, times a Gaussian process of what it is off by; not monotone."""
    logs, matrix, latencies = table(signature, outcomes)
    regressor = fit(signature, outcomes)
    predict, document = _process(matrix, latencies - np.log(regressor.predict_s(list(outcomes))))
    return Fitted(lambda work: regressor.predict_s(work) * np.exp(predict(logs(work))), [regressor.to_json(), document])


METHODS: Mapping[str, Method] = {
    "dooly": dooly,
    "dooly and process": corrected,
    "roofline": roofline,
    "random forest": random_forest,
    "gradient boosting": gradient_boosting,
    "monotone boosting": monotone_boosting,
    "monotone linear": monotone_piecewise_linear,
    "gaussian process": gaussian_process,
}


def _trees(model: Any, signature: Signature, outcomes: Outcomes, trees: Callable[[], list[Any]]) -> Fitted:
    logs, matrix, latencies = table(signature, outcomes)
    model.fit(matrix, latencies)
    arrays = ("children_left", "children_right", "feature", "threshold", "value")
    document = [[getattr(tree, array).ravel().tolist() for array in arrays] for tree in trees()]
    return Fitted(lambda work: np.exp(model.predict(logs(work))), document)


def _process(matrix: Array, targets: Array) -> tuple[Callable[[Array], Array], Any]:
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    low, spread = matrix.min(0), np.maximum(np.ptp(matrix, axis=0), 1e-9)
    kernel = ConstantKernel(1.0, (1e-4, 1e2)) * RBF(0.5, (0.05, 20)) + WhiteKernel(1e-2, (1e-5, 1))
    process = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
    process.fit((matrix - low) / spread, targets)
    document = [process.X_train_.tolist(), process.alpha_.ravel().tolist(), process.kernel_.theta.tolist()]

    def predict(rows: Array) -> Array:
        blocks = np.array_split((rows - low) / spread, max(1, len(rows) // 10_000))
        return np.concatenate([process.predict(block) for block in blocks])

    return predict, document


@dataclass
class Score:
    """What one method did on one kind of operation: absolute relative errors by way of holding out, and its costs."""

    errors: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    points: list[float] = field(default_factory=list)
    fit_s: list[float] = field(default_factory=list)
    per_s: list[float] = field(default_factory=list)
    sizes_bytes: list[int] = field(default_factory=list)

    def share(self, way: str, quantile: float | None = None) -> float:
        """Mean or quantile of the errors."""
        errors = self.errors[way]
        if not errors:
            return math.nan
        return float(np.mean(errors) if quantile is None else np.quantile(errors, quantile))


def measure(method: Method, signature: Signature, outcomes: Outcomes, held: Outcomes, score: Score) -> None:
    """Adds an operation to the score of a method."""
    points = sorted(outcomes, key=lambda point: outcomes[point].mean_s)
    inner = points[1:-1]
    folds = [inner[fold::FOLDS] for fold in range(FOLDS)]
    by_size = defaultdict(list)
    for point in inner:
        by_size[_size(point)].append(point)
    for way, parts in (("folds", folds), ("sizes", list(by_size.values()))):
        for part in filter(None, parts):
            score.errors[way] += _errors(method, signature, _without(outcomes, part), {p: outcomes[p] for p in part})
    start = time.perf_counter()
    fitted = method(signature, outcomes)
    score.fit_s.append(time.perf_counter() - start)
    if held:
        score.errors["held out"] += _errors(method, signature, outcomes, held)
    work = _many(signature, points)
    start = time.perf_counter()
    fitted.predict_s(work)
    score.per_s.append(len(work) / (time.perf_counter() - start))
    score.sizes_bytes.append(len(json.dumps(fitted.document)))
    score.points.append(_needed(method, signature, outcomes))


def _needed(method: Method, signature: Signature, outcomes: Outcomes) -> float:
    """Points of the smallest evenly spread subset from which the others are predicted within the target, in median."""
    points = sorted(outcomes, key=lambda point: outcomes[point].mean_s)
    for count in (3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48):
        if count > 0.8 * len(points):
            return math.inf
        kept = {points[round(i)] for i in np.linspace(0, len(points) - 1, count)}
        others = {point: outcomes[point] for point in points if point not in kept}
        errors = _errors(method, signature, {point: outcomes[point] for point in points if point in kept}, others)
        if np.median(errors) <= TARGET:
            return count
    return math.inf


def _errors(method: Method, signature: Signature, outcomes: Outcomes, held: Outcomes) -> list[float]:
    predicted_s = method(signature, outcomes).predict_s(Work.of(list(held)))
    measured_s = np.array([outcome.mean_s for outcome in held.values()])
    return [float(error) for error in np.abs(predicted_s / measured_s - 1)]


def _without(outcomes: Outcomes, left_out: Sequence[SweepPoint]) -> Outcomes:
    return {point: outcome for point, outcome in outcomes.items() if point not in set(left_out)}


def _size(point: SweepPoint) -> int:
    tokens = point.batch.num_tokens if point.batch else point.num_tokens or point.num_reqs or 1
    return round(math.log2(tokens))


def _many(signature: Signature, points: Sequence[SweepPoint]) -> Work:
    """Random work within the measured sizes; batches of 8 requests."""
    draw = np.random.default_rng(0)
    if signature.swept == "batch":
        queries, contexts = draw.integers(1, 64, PREDICTIONS * 8), draw.integers(0, 2048, PREDICTIONS * 8)
        return Work.of_batches(queries, contexts, np.arange(PREDICTIONS) * 8)
    most = max(point.num_tokens or point.num_reqs or 1 for point in points)
    sizes = draw.integers(1, most + 1, PREDICTIONS)
    if signature.swept != "routing":
        return Work.of_sizes(sizes)
    return Work.of_sizes(sizes, activated=np.minimum(sizes, 8), busiest=sizes)


def measured_points(path: Path) -> Iterator[tuple[Signature, Outcomes, Outcomes]]:
    """Every signature of a latency DB in each of its environments: what may be fitted to, and what is held out."""
    with LatencyDB.open(path, create=False) as db:
        signatures = db.signatures()
        for environment in db.environments():
            held_out = db.measurements(environment, held_out=True)
            for key, measured in db.measurements(environment).items():
                yield signatures[key], measured, held_out.get(key, {})


def main() -> None:
    """Prints one table a kind of operation, and which method wins."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.regressors", description="Regressors compared.")
    parser.add_argument("db", nargs="?", type=Path, default=Path(".dooly/latency.db"))
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS), help="only these methods")
    arguments = parser.parse_args()
    if not arguments.db.exists():
        sys.exit(f"there is no latency DB at {arguments.db}: run make demo, or name one")
    warnings.simplefilter("ignore")  # of processes that find no optimum
    scores: dict[str, dict[str, Score]] = defaultdict(lambda: defaultdict(Score))
    for signature, outcomes, held in measured_points(arguments.db):
        if len(outcomes) < 5:
            continue
        for name in arguments.method:
            measure(METHODS[name], signature, outcomes, held, scores[signature.kind][name])
    for kind, by_method in scores.items():
        sys.stdout.write("\n".join(_rows(kind, by_method)) + "\n\n")
    sys.stdout.write("\n".join(_verdict(scores)) + "\n")


def _rows(kind: str, scores: Mapping[str, Score]) -> Iterator[str]:
    ways = [way for way in ("folds", "sizes", "held out") if any(score.errors[way] for score in scores.values())]
    head = "".join(f" | {way + ':':9} median   MAPE    p95" for way in ways)
    yield f"{kind:18}{head} | points    fit ms  million/s      bytes"
    for name, score in scores.items():
        errors = "".join(
            f" | {'':9} {score.share(way, 0.5):6.1%} {score.share(way):6.1%} {score.share(way, 0.95):6.1%}"
            for way in ways
        )
        points = float(np.median(score.points))
        yield (
            f"{name:18}{errors} | {'-' if math.isinf(points) else round(points):>6} {1e3 * np.median(score.fit_s):9.1f}"
            f" {np.median(score.per_s) / 1e6:10.2f} {round(np.median(score.sizes_bytes)):10,}"
        )


def _verdict(scores: Mapping[str, Mapping[str, Score]]) -> Iterator[str]:
    """Methods by their error over all kinds alike, the mean of every way of holding out."""
    means, needed = {}, {}
    for name in next(iter(scores.values())):
        errors = [score[name].share(way) for score in scores.values() for way in score[name].errors]
        means[name] = float(np.nanmean(errors))
        needed[name] = [points for score in scores.values() for points in score[name].points]
    yield "over all kinds: mean held-out error, operations that reach 5 %, points that half of the operations need"
    ranked = sorted(means, key=means.__getitem__)
    for name in ranked:
        reached = sum(map(math.isfinite, needed[name]))
        points = float(np.median(needed[name]))
        yield (
            f"  {name:18} {means[name]:6.1%} {reached:4} of {len(needed[name])} "
            f"{'-' if math.isinf(points) else round(points):>4}"
        )
    yield f"lowest held-out error: {ranked[0]}; the default is dooly"


if __name__ == "__main__":
    main()
