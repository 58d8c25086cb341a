"""The files of aiconfigurator-core: which there are, and their rows as published latencies."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import statistics
from collections import Counter, namedtuple
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.version import InvalidVersion, Version

from pytest_dooly.core.environment import CUDA_EVENT, CUDA_GRAPH, EAGER, REPEATED, UNKNOWN, Environment
from pytest_dooly.core.published_latency import PublishedLatency, PublishedTable, Source
from pytest_dooly.errors import ConfigurationError, PublishedDataError
from pytest_dooly.published.aiconfigurator.mapping import MAPPING, PACKAGE, Latency, Row, readers

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["OPTIONAL", "PACKAGE", "installed", "read_tables", "systems", "table_files"]

_LICENCE = "Apache-2.0"

_EVERYWHERE = ("device", "kernel_source", "latency")
"""Columns of every file that is read."""

OPTIONAL: Mapping[str, str | int] = {"attn_dtype": "bfloat16", "mla_dtype": "bfloat16", "window_size": 0}
"""Columns that older files lack, and what they would say."""

_TEXTS = frozenset(
    {
        *("device", "kernel_source", "op_name", "model", "distribution", "kv_cache_dtype", "gemm_type"),
        *("allreduce_dtype", "attn_dtype", "gemm_dtype", "mla_dtype", "moe_dtype", "nccl_dtype"),
    }
)
"""Columns of text; all others but the latency are whole numbers."""

_FROM_ZERO = frozenset({"step", "window_size"})
"""Whole numbers that may be 0."""


def systems(root: Path | None = None) -> tuple[str, ...]:
    """Names of the systems that the package has tables of.

    Args:
        root: directory of the package's files; the installed package's where it is None.

    Raises:
        PublishedDataError: the package is not installed, or has no tables.
    """
    data = _data(root or installed())
    names = tuple(sorted(path.name for path in data.iterdir() if any(path.glob("*/*/*/*.parquet"))))
    if not names:
        raise PublishedDataError(f"{PACKAGE} has no tables under {data}: install {PACKAGE} 0.12 again")
    return names


def read_tables(
    system: str, *, engine: str = "vllm", engine_version: str | None = None, root: Path | None = None
) -> Iterator[PublishedTable]:
    """The latencies of every table of a system, file after file.

    Collectives that the engine leaves to NCCL come from NCCL's own tables.

    Args:
        system: as the package names it (`h200_sxm`).
        engine: that ran the operations.
        engine_version: of the engine; None for the latest of each kind of operation.
        root: directory of the package's files; the installed package's where it is None.

    Raises:
        PublishedDataError: the package is missing, a file is damaged or has other columns.
        ConfigurationError: the package has no such system, engine or version; names those it has.
    """
    root = root or installed()
    for path in table_files(root, system, engine, engine_version):
        yield _read(path, root)


def installed() -> Path:
    """Directory of the installed package's files.

    Raises:
        PublishedDataError: the package is not installed.
    """
    try:
        located = importlib.metadata.distribution(PACKAGE).locate_file("aiconfigurator_core")
    except importlib.metadata.PackageNotFoundError as error:
        raise PublishedDataError(
            f"{PACKAGE} is not installed: run pip install 'pytest-dooly[public-data]', which brings its tables"
        ) from error
    return Path(str(located))


def _data(root: Path) -> Path:
    data = root / "systems" / "data"
    if not data.is_dir():
        raise PublishedDataError(f"{PACKAGE} has no tables under {data}: install {PACKAGE} 0.12 again")
    return data


def table_files(root: Path, system: str, engine: str, engine_version: str | None) -> list[Path]:
    """The tables asked for: of each kind of operation those of one version, the latest where none is named."""
    known = systems(root)
    if system not in known:
        raise ConfigurationError(f"{PACKAGE} has no tables of system {system!r}: name one of {', '.join(known)}")
    every = sorted(_data(root).joinpath(system).glob("*/*/*/*.parquet"))
    engines = {path.parent.parent.name for path in every}
    if engine not in engines:
        raise ConfigurationError(
            f"{PACKAGE} has no tables of engine {engine!r} on {system}: name one of {', '.join(sorted(engines))}"
        )
    of_engine = [path for path in every if path.parent.parent.name == engine]
    versions = sorted({path.parent.name for path in of_engine}, key=_version)
    if engine_version is not None and engine_version not in versions:
        raise ConfigurationError(
            f"{PACKAGE} has no tables of {engine} {engine_version} on {system}: name one of {', '.join(versions)}"
        )
    of_nccl = [path for path in every if path.parent.parent.name == "nccl"]
    return [
        path
        for files, asked in ((of_engine, engine_version), (of_nccl, None))
        for path in files
        if path.parent.name == (asked or _latest(path, files))
    ]


def _latest(path: Path, files: list[Path]) -> str:
    """The latest version among the files of the same kind of operation."""
    kind = path.parent.parent
    return max((each.parent.name for each in files if each.parent.parent == kind), key=_version)


def _version(text: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion:
        return Version("0")


def _read(path: Path, root: Path) -> PublishedTable:
    """The latencies of one file, those of graphs apart from those that the host launches."""
    content = path.read_bytes()
    source = Source(
        package=PACKAGE,
        version=_package_version(root),
        licence=_LICENCE,
        file=path.relative_to(_data(root)).as_posix(),
        sha256=hashlib.sha256(content).hexdigest(),
        mapping=MAPPING,
    )
    table = _parquet(path, content)
    reader = readers(root).get(path.stem)
    if reader is None:
        return PublishedTable(source, {}, {f"no operation of a trace is a {path.stem}": table.num_rows})
    engine, engine_version = path.parts[-3:-1]
    unmapped: Counter[str] = Counter()
    found: dict[tuple[str, bool], dict[Latency, list[float]]] = {}
    for row in _rows(path, table, reader.columns):
        latency = _flaw(row) or reader.latency(row)
        if isinstance(latency, str):
            unmapped[latency] += 1
            continue
        latencies_s = found.setdefault((row.device, _is_eager(engine, row)), {}).setdefault(latency, [])
        latencies_s.append(row.latency / 1e3)
        if len(latencies_s) > 1:
            unmapped["the same operation, point and kernel again: the mean is kept"] += 1
    rows = {
        _environment(device, engine, engine_version, EAGER if eager else CUDA_GRAPH): tuple(
            PublishedLatency(signature, point, statistics.fmean(latencies_s), kernel, variant)
            for (signature, point, kernel, variant), latencies_s in of.items()
        )
        for (device, eager), of in found.items()
    }
    return PublishedTable(source, rows, dict(unmapped))


def _is_eager(engine: str, row: Row) -> bool:
    """Whether the host launched the kernels one by one, rather than replay a graph."""
    if engine == "vllm" and getattr(row, "gemm_dtype", None) == "fp8_block":
        return True
    return row.kernel_source == "NCCL" or row.kernel_source.endswith("_eager") or not row.device.startswith("NVIDIA")


def _environment(device: str, engine: str, engine_version: str, execution: str) -> Environment:
    return Environment(
        device=device,
        device_count=1,
        driver=UNKNOWN,
        engine=engine,
        engine_version=engine_version,
        torch_version=UNKNOWN,
        clock=CUDA_EVENT,
        cache_mode=REPEATED,
        execution=execution,
    )


def _package_version(root: Path) -> str:
    try:
        return importlib.metadata.version(PACKAGE) if root == installed() else UNKNOWN
    except PublishedDataError:
        return UNKNOWN


def _parquet(path: Path, content: bytes) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(content))
        names = table.column_names
    except (pa.ArrowException, OSError, ValueError) as error:  # a ValueError where names are no text
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise PublishedDataError(f"{path} cannot be read as Parquet ({first}): install {PACKAGE} again") from error
    if not names or not table.num_rows:
        raise PublishedDataError(f"{path} has no rows: install {PACKAGE} again")
    return table


def _rows(path: Path, table: pa.Table, columns: tuple[str, ...]) -> Iterator[Row]:
    """The rows as named tuples of text, whole numbers and the latency; None where a value is missing.

    Raises:
        PublishedDataError: a column is missing or of another type.
    """
    import pyarrow as pa

    names = (*_EVERYWHERE, *columns)
    present = set(table.column_names)
    missing = [name for name in names if name not in present and name not in OPTIONAL]
    if missing:
        raise PublishedDataError(
            f"{path} has no column {', '.join(missing)}, only {', '.join(table.column_names)}: "
            f"its schema has changed, install {PACKAGE} 0.12"
        )
    values = []
    for name in names:
        if name not in present:
            values.append([OPTIONAL[name]] * table.num_rows)
            continue
        expected = pa.float64() if name == "latency" else pa.string() if name in _TEXTS else pa.int64()
        try:
            values.append(table[name].cast(expected).to_pylist())
        except (pa.ArrowException, ValueError) as error:  # a ValueError where text is no text
            raise PublishedDataError(
                f"{path} has {table[name].type} in its column {name} that cannot be read as {expected}: "
                f"it is damaged or its schema has changed, install {PACKAGE} 0.12"
            ) from error
    row = namedtuple("Row", names)  # type: ignore[misc] # noqa: PYI024 - the names are those of the file
    return map(row._make, zip(*values, strict=True))


def _flaw(row: Row) -> str | None:
    """Why nothing can be made of a row, whatever its file; None where something can."""
    if None in row:
        return "a value is missing"
    if not 0 < row.latency < math.inf:
        return "the latency is no positive number"
    for name, value in zip(row._fields, row, strict=True):
        if isinstance(value, int) and value < (0 if name in _FROM_ZERO else 1):
            return f"a {name} of {value}"
    return None
