"""What a latency DB holds as pandas DataFrames, predictions included; what `pytest_dooly.frame` is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.regress.stored import regressors_of

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FrameKind", "frame"]

FrameKind = Literal["measurements", "published", "predictions"]


def frame(db: str | Path | LatencyDB = ".dooly/latency.db", kind: FrameKind = "measurements") -> pd.DataFrame:
    """Measurements, published latencies or predictions, a row each.

    Args:
        db: a latency DB, or the path of one.
        kind: `measurements` or `published`, as of `LatencyDB.frame`, which describes the columns; `predictions` for
            every measurement, failures left out, of an operation with a regressor: its method (`regressor`), what it
            says (`predicted_s`), and how far that is off the mean, with its sign (`relative_error`, 0.05 for 5 % too
            slow). It was fitted to these very points, but for those that are `held_out`.

    Raises:
        ConfigurationError: there is no such kind.
        DatabaseError: there is no latency DB, or it cannot be read.
    """
    if kind not in get_args(FrameKind):
        raise ConfigurationError(f"no frame of {kind!r}: name one of {', '.join(get_args(FrameKind))}")
    if not isinstance(db, LatencyDB):
        with LatencyDB.open(Path(db), create=False) as opened:
            return frame(opened, kind)
    return _predictions(db) if kind == "predictions" else db.frame(kind)


def _predictions(db: LatencyDB) -> pd.DataFrame:
    import pandas as pd

    parts = []
    for environment in db.environments():
        measured = db.frame("measurements", environment=environment)
        measured = measured[measured["mean_s"].notna()]
        regressors = regressors_of(db, environment)
        for key, rows in measured.groupby("signature_key", sort=False):
            if key in regressors:
                predicted_s = regressors[key].predict_s([SweepPoint.parse(point) for point in rows["sweep_point"]])
                parts.append(rows.assign(regressor=regressors[key].method, predicted_s=predicted_s))
    if not parts:
        parts = [db.frame("measurements").iloc[:0].assign(regressor="", predicted_s=0.0)]
    table = pd.concat(parts, ignore_index=True).drop(columns="reason")
    return table.assign(relative_error=table["predicted_s"] / table["mean_s"] - 1)
