"""Everything measured, as one CSV or Parquet file for other programs; a row a latency, in seconds."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, get_args

from pytest_dooly.core.environment import Environment
from pytest_dooly.errors import ConfigurationError, DoolyError, MissingExtraError, refusal_of
from pytest_dooly.latency_db.all_latencies import LatencyRow
from pytest_dooly.latency_db.db import LatencyDB

__all__ = ["COLUMNS", "Export", "ExportError", "Format", "export", "written_whole"]

Format = Literal["csv", "parquet"]

COLUMNS = tuple(field.name for field in dataclasses.fields(LatencyRow))
"""Names of the columns, in order."""

_BATCH_ROWS = 20_000
"""Rows of a Parquet row group: large enough to compress well, a few megabytes in memory."""


class ExportError(DoolyError):
    """A file that cannot be written: name another one, or free some disk space."""


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        path: of the file.
        rows: number of latencies and failures in it.
        environments: that they are true for.
    """

    path: Path
    rows: int
    environments: tuple[Environment, ...]


def export(db: LatencyDB, out: Path, *, file_format: Format | None = None, environment: str | None = None) -> Export:
    """Writes every latency to one file, whole or not at all; two exports of equal latency DBs are equal.

    Args:
        db: to read.
        out: a file, or a directory for `latencies.csv` or `latencies.parquet`; made where it is missing.
        file_format: of the file; None for what its suffix says, and CSV where it says nothing.
        environment: part of the name of the environments to export, in any case; None for all.

    Raises:
        ConfigurationError: the suffix names another format, or no environment has such a name.
        MissingExtraError: Parquet without pyarrow.
        ExportError: the file cannot be written; one that was there before is as it was.
    """
    path, chosen = _file(out, file_format)
    write = {"csv": _write_csv, "parquet": _write_parquet}[chosen]
    environments = _environments(db, environment)
    with written_whole(path) as temporary:
        rows = write(temporary, db.latencies(environments))
    return Export(path, rows, environments)


def _file(out: Path, asked: Format | None) -> tuple[Path, Format]:
    """The file that `out` stands for, and its format."""
    suffix = next((known for known in get_args(Format) if out.suffix.lower() == f".{known}"), None)
    if suffix is None or out.is_dir():
        if out.suffix[1:].isalpha() and not out.is_dir():  # `v1.2` is a directory, `a.xlsx` none
            raise ConfigurationError(f"{out} is no name of a CSV or Parquet file, nor a directory that is there")
        chosen: Format = asked or "csv"
        return out / f"latencies.{chosen}", chosen
    if asked not in (None, suffix):
        raise ConfigurationError(f"{out} is no name for a file in format {asked}: name a .{asked} file or a directory")
    return out, suffix


def _environments(db: LatencyDB, part: str | None) -> tuple[Environment, ...]:
    every = db.environments()
    chosen = tuple(each for each in every if part is None or part.lower() in str(each).lower())
    if part is not None and not chosen:
        known = "; ".join(sorted(map(str, every))) or "none"
        raise ConfigurationError(f"no environment in the latency DB has {part!r} in its name; there are: {known}")
    return chosen


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its place once it is complete and on the disk; directories are made.

    Raises:
        ExportError: it cannot be written; one that was there before is as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _replacing(path) as temporary:
            yield temporary
    except OSError as error:
        raise ExportError(
            f"cannot write {path}: {refusal_of(error)}; name another file, or free some disk space"
        ) from error


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_csv(path: Path, latencies: Iterable[LatencyRow]) -> int:
    """Numbers in full precision, nothing for None; returns the number of rows."""
    rows = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for rows, row in enumerate(map(attrgetter(*COLUMNS), latencies), start=1):  # noqa: B007 - counts
            writer.writerow(row)
    return rows


def _write_parquet(path: Path, latencies: Iterable[LatencyRow]) -> int:
    """Row group after row group; returns the number of rows."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError(
            "Parquet needs pyarrow, which is not installed: run pip install 'pytest-dooly[public-data]', "
            "or export to CSV with --format csv"
        ) from error
    types = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
    schema = pa.schema(
        [
            pa.field(field.name, types[kind], nullable=bool(optional))
            for field in dataclasses.fields(LatencyRow)
            for kind, _, optional in [str(field.type).partition(" | ")]
        ]
    )
    rows = 0
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in _batches(map(attrgetter(*COLUMNS), latencies)):
            columns = zip(*batch, strict=True)
            arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
            rows += len(batch)
    return rows


def _batches(rows: Iterator[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    while batch := list(itertools.islice(rows, _BATCH_ROWS)):
        yield batch
