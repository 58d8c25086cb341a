"""An export read back: measurements as other programs and other machines have them, a row each."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.core.environment import Environment
from pytest_dooly.core.measurement import Measurement
from pytest_dooly.errors import ConfigurationError, MissingExtraError

__all__ = ["read_measurements"]

_STATISTICS = ("rounds", "min_s", "median_s", "mean_s", "iqr_s")


def read_measurements(path: Path) -> dict[Environment, dict[str, dict[SweepPoint, Measurement]]]:
    """Own measurements of an export by environment, signature key and sweep point; failures and held-out ones not.

    Args:
        path: a file that `dooly export` wrote, CSV or Parquet by its suffix.

    Raises:
        ConfigurationError: it is no such file.
        MissingExtraError: Parquet without pyarrow.
    """
    import pandas as pd

    read = pd.read_parquet if path.suffix.lower() == ".parquet" else pd.read_csv
    try:
        table = read(path)
        names = [field.name for field in dataclasses.fields(Environment)]
        own = table[table["source"].isna() & table["reason"].isna() & ~table["held_out"].astype(bool)]
        own = own.astype({name: str for name in names if name != "device_count"})  # a CSV's "1" is a version
        found: dict[Environment, dict[str, dict[SweepPoint, Measurement]]] = {}
        for values, rows in own.groupby(names, sort=False):
            environment = Environment(**dict(zip(names, values, strict=True)))
            of = found.setdefault(environment, {})
            for row in rows.to_dict("records"):
                outcome = Measurement(**{name: row[name] for name in _STATISTICS})
                of.setdefault(row["signature_key"], {})[SweepPoint.parse(row["sweep_point"])] = outcome
    except ImportError as error:
        raise MissingExtraError(
            f"{path} is Parquet, which needs pyarrow: run pip install 'pytest-dooly[public-data]', or export to CSV"
        ) from error
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise ConfigurationError(
            f"cannot read {path} as an export of a latency DB ({error}): name one that dooly export wrote"
        ) from error
    return found
