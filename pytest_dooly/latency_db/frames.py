"""Latencies as pandas DataFrames: a row a latency, units at the end of the names, those of an export kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.core.environment import Environment
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.latency_db.all_latencies import AllLatencies, LatencyKind, LatencyRow

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Frames"]

_BATCH_ROWS = 20_000
"""Rows that are objects of Python at once: some 20 MB."""

_EMPTY_IN: Mapping[LatencyKind, frozenset[str]] = {
    "measurements": frozenset({"source", "licence", "kernel", "variant"}),
    "published": frozenset({"median_s", "min_s", "iqr_s", "rounds", "noise", "reason", "measured_at", "held_out"}),
}
"""Columns that have no value in a kind."""

_DTYPES = {"str": "str", "int": "int64", "int | None": "Int64", "float": "float64", "bool": "bool"}
"""Of columns by the type of the field; what may be missing is NaN, and NA among whole numbers."""

_TYPES = {
    field.name: _DTYPES.get(str(field.type)) or _DTYPES[str(field.type).removesuffix(" | None")]
    for field in dataclasses.fields(LatencyRow)
}

_SHAPE = ("query_len_tokens", "context_len_tokens", "activated_experts", "busiest_expert_tokens")


class Frames(AllLatencies):
    """Latencies as tables for notebooks."""

    def frame(self, kind: LatencyKind = "measurements", *, environment: Environment | None = None) -> pd.DataFrame:
        """Our own measurements and failures, or published latencies, each with its operation and its environment.

        Args:
            kind: `measurements` or `published`. Predictions need regressors: `pytest_dooly.frame(db, "predictions")`.
            environment: of all rows; None for every one.

        Returns:
            a row each, in the order of an export. Columns are those of an export, which `LatencyRow` describes, but
            for those that are empty in all of a kind; the environment's whole name; and what a point asks of every
            request or expert: `query_len_tokens` and `context_len_tokens`, missing where requests differ,
            `activated_experts` and `busiest_expert_tokens`.

        Raises:
            ConfigurationError: there is no such kind.
        """
        if kind not in get_args(LatencyKind):
            kinds = " or ".join(get_args(LatencyKind))
            raise ConfigurationError(f"no frame of {kind!r}: name {kinds}, and for predictions use pytest_dooly.frame")
        import pandas as pd

        parts = [
            _frame(batch, str(environment), _EMPTY_IN[kind])
            for environment in ([environment] if environment is not None else sorted(self.environments(), key=_order))
            for batch in self._latencies([environment], kind, _BATCH_ROWS)
        ]
        return pd.concat(parts or [_frame([], "", _EMPTY_IN[kind])], ignore_index=True)


def _order(environment: Environment) -> tuple[str, str]:
    return str(environment), environment.key


def _frame(rows: Sequence[tuple[Any, ...]], environment: str, without: frozenset[str]) -> pd.DataFrame:
    """Rows of one environment, column by column."""
    import pandas as pd

    columns = dict(zip(_TYPES, zip(*rows, strict=True) if rows else [()] * len(_TYPES), strict=True))
    points = columns["sweep_point"]
    shapes = {point: _shape(point) for point in set(points)}
    series = {name: _series(columns[name], dtype) for name, dtype in _TYPES.items() if name not in without}
    series |= {name: _series([shapes[point][i] for point in points], "Int64") for i, name in enumerate(_SHAPE)}
    return pd.DataFrame(series).assign(environment=_series([environment] * len(rows), "str"))


def _series(values: Sequence[Any], dtype: str) -> pd.Series:
    import pandas as pd

    return pd.Series(values, dtype=dtype)


def _shape(sweep_point: str) -> tuple[int | None, int | None, int | None, int | None]:
    """What a point asks of each of its requests, where they are alike, and of its experts."""
    point = SweepPoint.parse(sweep_point)
    if point.routing is not None:
        return None, None, point.routing.activated, point.routing.busiest
    groups = () if point.batch is None else point.batch.groups
    if len(groups) != 1:
        return None, None, None, None
    return groups[0][0].query_len, groups[0][0].context_len, None, None
