"""The package's own interpolation, asked about rows it has not seen: the baseline of the held-out benchmark.

The PyPI package `aiconfigurator-core` answers from Parquet tables in a systems directory. Here that directory holds
the training rows only, so what it answers for a held-out row is its interpolation and nothing else:

- rows of other versions, backends and systems stay out (one table in the directory, `shared_layer=False`);
- `mode="SILICON"` (the default) answers from measured rows or not at all; `"HYBRID"` adds the package's
  speed-of-light estimate, calibrated on the training rows, where it has no answer.

Every call writes a directory of its own, so that no cache of the package (keyed by that path) can serve old rows.

Source: aiconfigurator-core 0.12.0, `sdk/engine.py` (`EngineHandle.for_database`, `evaluate_ops_json`).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

BACKEND = "vllm"


@dataclass(frozen=True)
class _Size:
    """What the package calls an operation: everything but the batch and the lengths.

    Attributes:
        spec: the operation, as the engine's JSON.
        extra_ms: what the package adds to the table's latency.
    """

    spec: str
    extra_ms: float = 0.0


@dataclass(frozen=True)
class _Table:
    """How rows of one Parquet table are asked for.

    Attributes:
        path: family folder and file of the table, without its suffix.
        columns: columns that name a size; older tables have no `window_size`.
        operation: the package's operation of a size, given its name and its row; `None` if it has none.
        shape: columns that `call` takes, in its order.
        calls: weights and arguments of the engine's calls whose weighted sum answers one value of `shape`.
        extra_ms: what the package adds to the table's latency, given the operation and the system's figures.
    """

    path: str
    columns: tuple[str, ...]
    operation: Callable[[str, dict[str, Any], Any], Any]
    shape: tuple[str, ...]
    calls: Callable[..., list[tuple[float, dict[str, Any]]]]
    extra_ms: Callable[[Any, Any], float] = field(default=lambda operation, spec: 0.0)


def predict_held_out(
    table: str,
    train: pd.DataFrame,
    test: pd.DataFrame,
    system: str = "h200_sxm",
    version: str = "0.24.0",
    mode: str = "SILICON",
) -> NDArray[np.float64]:
    """Latency that the package gives for `test` when it holds the rows of `train` only.

    Args:
        table: a key of `TABLES`.
        train: rows of the package's table, all its columns.
        test: rows to answer; their `latency` is not read.
        system: whose hardware figures (bandwidth, peak FLOP/s) the package uses.
        version: version of vLLM that the table is of.
        mode: `"SILICON"` or `"HYBRID"`.

    Returns:
        Milliseconds, one per row of `test` (shape `(len(test),)`), NaN where the package has no answer.

    Raises:
        KeyError: unknown table.
        FileNotFoundError: the package has no such table for this system and version.
    """
    with trained_package(table, train, system, version, mode) as (engine, database):
        latency_ms = query(table, test, engine, database)
        if table == "generation_attention":
            outside = _outside_measured_lengths(train, test)
            latency_ms[outside] = query("generation_attention_smoothed", test[outside], engine, database)
        return latency_ms


@contextmanager
def trained_package(
    table: str, train: pd.DataFrame, system: str = "h200_sxm", version: str = "0.24.0", mode: str = "SILICON"
) -> Iterator[tuple[Any, Any]]:
    """The package's engine and database over `train` alone; the table is read on the first query."""
    import aiconfigurator_core
    import pyarrow as pa
    import pyarrow.parquet as pq
    from aiconfigurator_core.sdk import common
    from aiconfigurator_core.sdk.engine import EngineHandle
    from aiconfigurator_core.sdk.operations.base import clear_all_op_caches
    from aiconfigurator_core.sdk.perf_database import PerfDatabase, load_system_spec

    shipped = Path(aiconfigurator_core.__file__).parent / "systems"
    data_dir = load_system_spec(system, str(shipped))["data_dir"]
    family, name = TABLES[table].path.split("/")
    path = Path(data_dir, family, BACKEND, version, f"{name}_perf.parquet")
    schema = pq.read_schema(shipped / path).remove_metadata()
    with tempfile.TemporaryDirectory(prefix="package_baseline_") as folder:
        root = Path(folder)
        for name in (f"{system}.yaml", "attention_lane_defaults.yaml"):
            shutil.copy(shipped / name, root)
        (root / path).parent.mkdir(parents=True)
        sidecar = shipped / path.with_name("collection_meta.yaml")
        if sidecar.exists():  # without it the package warns of unknown provenance
            shutil.copy(sidecar, (root / path).parent)
        rows = pa.Table.from_pandas(train[schema.names], schema=schema, preserve_index=False)
        pq.write_table(rows, root / path)
        database = PerfDatabase(system, BACKEND, version, folder, shared_layer=False)
        database.set_default_database_mode(common.DatabaseMode[mode])
        try:
            yield EngineHandle.for_database(database, systems_path=folder), database
        finally:
            clear_all_op_caches()  # else up to eight tables stay in memory


def query(table: str, test: pd.DataFrame, engine: Any, database: Any) -> NDArray[np.float64]:
    """Latency of every row of `test` in milliseconds, NaN where the package has no answer."""
    how = TABLES[table]
    columns = [column for column in how.columns if column in test]
    size_of_row = test.groupby(columns, sort=False).ngroup().to_numpy()
    sizes = [
        _size(how, str(number), row, database)
        for number, row in enumerate(test[columns].drop_duplicates().to_dict("records"))
    ]
    latency_ms = np.full(len(test), np.nan)
    for shape, rows in test.groupby(list(how.shape), sort=False).indices.items():
        wanted = {str(number): size for number in set(size_of_row[rows]) if (size := sizes[number]) is not None}
        values = shape if isinstance(shape, tuple) else (shape,)
        latency_ms[rows] = 0.0
        for weight, call in how.calls(*(int(value) for value in values)):
            answers = _evaluate(engine, wanted, call)
            latency_ms[rows] += weight * np.array([answers.get(str(size_of_row[row]), np.nan) for row in rows])
    return latency_ms


def _outside_measured_lengths(train: pd.DataFrame, test: pd.DataFrame) -> NDArray[np.bool_]:
    """Rows of `test` whose size and batch were measured, but at longer lengths only or at shorter ones only.

    There the package scales its nearest rows: nothing is linear, so `_decode_unsmoothed` does not hold.
    """
    line = [column for column in (*_ATTENTION, "batch_size") if column in test]
    measured = train.groupby(line)["step"].agg(["min", "max"])
    ends = test[line].merge(measured, how="left", left_on=line, right_index=True)
    length = test["step"].to_numpy()
    return np.asarray((length < ends["min"].to_numpy()) | (length > ends["max"].to_numpy()))


def _size(how: _Table, name: str, row: dict[str, Any], database: Any) -> _Size | None:
    from aiconfigurator_core.sdk.engine import build_ops_json

    operation = how.operation(name, row, database)
    if operation is None:
        return None
    return _Size(build_ops_json([operation])[1:-1], how.extra_ms(operation, database.system_spec))


def _evaluate(engine: Any, sizes: dict[str, _Size], call: dict[str, Any]) -> dict[str, float]:
    """Milliseconds by name. A list with one unanswerable operation fails as a whole: then halves are asked."""
    from aiconfigurator_core.sdk.errors import EmpiricalNotImplementedError, PerfDataNotAvailableError

    if not sizes:
        return {}
    specs = ",".join(size.spec for size in sizes.values())
    try:
        answers = engine.evaluate_ops_json(f"[{specs}]", **call)
    except (PerfDataNotAvailableError, EmpiricalNotImplementedError):
        if len(sizes) == 1:
            return {}
        names = list(sizes)
        first, second = names[: len(names) // 2], names[len(names) // 2 :]
        return _evaluate(engine, {name: sizes[name] for name in first}, call) | _evaluate(
            engine, {name: sizes[name] for name in second}, call
        )
    return {name: latency_ms - sizes[name].extra_ms for name, latency_ms, _energy, _source in answers}


def _gemm(name: str, row: dict[str, Any], database: Any) -> Any:
    from aiconfigurator_core.sdk import common, operations

    return operations.GEMM(name, 1.0, row["n"], row["k"], common.GEMMQuantMode[row["gemm_dtype"]])


def _context_attention(name: str, row: dict[str, Any], database: Any) -> Any:
    from aiconfigurator_core.sdk import common, operations
    from aiconfigurator_core.sdk.operations.attention import resolved_lane_order_for_op

    return operations.ContextAttention(
        name,
        1.0,
        row["num_heads"],
        row["num_key_value_heads"],
        common.KVCacheQuantMode[row["kv_cache_dtype"]],
        common.FMHAQuantMode[row["attn_dtype"]],
        row.get("window_size", 0),
        row["head_dim"],
        lane_order=resolved_lane_order_for_op(database, "_context_attention_data"),
    )


def _context_attention_extra_ms(operation: Any, spec: Any) -> float:
    """Rotary embedding and KV-cache write, that the package adds to its table of attention kernels.

    Source: aiconfigurator-core, `operators/attention.rs`, `ContextAttentionOp::query`, `mem_op_latency_ms`.
    """
    gpu = spec["gpu"]

    def memory_ms(num_bytes: float) -> float:
        seconds = num_bytes / (gpu["mem_bw"] * gpu["mem_bw_empirical_scaling_factor"])
        return 1e3 * float(seconds + gpu["mem_empirical_constant_latency"])

    query_size, key_size = operation._n * operation._head_size, operation._n_kv * operation._head_size
    rotary = 2 * memory_ms(2 * (query_size + key_size))
    cache_write = 2 * memory_ms(key_size * operation._fmha_quant_mode.value.memory)
    return 1.1 * float(rotary + cache_write)


def _generation_attention(name: str, row: dict[str, Any], database: Any) -> Any:
    from aiconfigurator_core.sdk import common, operations
    from aiconfigurator_core.sdk.operations.attention import resolved_lane_order_for_op

    return operations.GenerationAttention(
        name,
        1.0,
        row["num_heads"],
        row["num_key_value_heads"],
        common.KVCacheQuantMode[row["kv_cache_dtype"]],
        row.get("window_size", 0),
        row["head_dim"],
        lane_order=resolved_lane_order_for_op(database, "_generation_attention_data"),
    )


def _moe(name: str, row: dict[str, Any], database: Any) -> Any:
    from aiconfigurator_core.sdk import common, operations

    return operations.MoE(
        name,
        1.0,
        row["hidden_size"],
        row["inter_size"],
        row["topk"],
        row["num_experts"],
        row["moe_tp_size"],
        row["moe_ep_size"],
        common.MoEQuantMode[row["moe_dtype"]],
        row["distribution"],
        attention_dp_size=1,
    )


def _mla(name: str, row: dict[str, Any], is_context: bool) -> Any:
    from aiconfigurator_core.sdk import common, operations

    return operations.MLAModule(
        name,
        1.0,
        is_context,
        row["num_heads"],
        common.KVCacheQuantMode[row["kv_cache_dtype"]],
        common.FMHAQuantMode[row["mla_dtype"]],
        common.GEMMQuantMode[row["gemm_type"]],
    )


def _custom_allreduce(name: str, row: dict[str, Any], database: Any) -> Any:
    from aiconfigurator_core.sdk import operations

    if row["kernel_source"].endswith("_eager"):
        return None  # the package drops eager rows when it reads the table
    return operations.CustomAllReduce(name, 1.0, 1, row["num_gpus"])


def _tokens(num_tokens: int) -> list[tuple[float, dict[str, Any]]]:
    return [(1.0, {"is_context": True, "batch_size": 1, "s": 1, "x": num_tokens})]


def _prefill(batch_size: int, length: int) -> list[tuple[float, dict[str, Any]]]:
    return [(1.0, {"is_context": True, "batch_size": batch_size, "s": length})]


def _decode(batch_size: int, new: int, cached: int) -> list[tuple[float, dict[str, Any]]]:
    return [(1.0, {"is_context": False, "batch_size": batch_size, "s": new + cached})]


def _decode_unsmoothed(batch_size: int, new: int, cached: int) -> list[tuple[float, dict[str, Any]]]:
    """Two calls that undo the package's average over lengths within 10 %.

    The package answers the mean of its table at five lengths around the one asked for; a measured row then does not
    give its own latency back. Its table is linear between measured lengths, so the line through two answers whose
    lengths all lie in one interval is the table itself. Exact where the measured lengths are powers of two and
    longer than the shortest one of their size and batch.

    Source: aiconfigurator-core, `perf_database/attention.rs`, `query_generation`.
    """
    length = new + cached
    if length < 10:  # five lengths round to two neighbours here
        lower, upper = (3, 4) if length <= 2 else (length - 1, length)
    else:
        upper = int(length / 1.1)
        lower = int(upper * 0.9)
    at_lower, at_upper = (float(np.mean(_smoothed_lengths(asked))) for asked in (lower, upper))
    weight = (length - at_lower) / (at_upper - at_lower)
    return [
        (1.0 - weight, {"is_context": False, "batch_size": batch_size, "s": lower}),
        (weight, {"is_context": False, "batch_size": batch_size, "s": upper}),
    ]


def _smoothed_lengths(length: int) -> list[int]:
    shortest = max(int(length * 0.9), 1)
    longest = max(int(length * 1.1), shortest)
    return [shortest + (longest - shortest) * step // 4 for step in range(5)]


_ATTENTION = ("num_heads", "num_key_value_heads", "head_dim", "window_size", "attn_dtype", "kv_cache_dtype")
_EXPERTS = ("hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size")
_MLA = ("num_heads", "mla_dtype", "kv_cache_dtype", "gemm_type")

TABLES: dict[str, _Table] = {
    "gemm": _Table("gemm/gemm", ("n", "k", "gemm_dtype"), _gemm, ("m",), _tokens),
    "context_attention": _Table(
        "attention/context_attention",
        _ATTENTION,
        _context_attention,
        ("batch_size", "isl"),
        _prefill,
        _context_attention_extra_ms,
    ),
    "generation_attention": _Table(
        "attention/generation_attention",
        _ATTENTION,
        _generation_attention,
        ("batch_size", "isl", "step"),
        _decode_unsmoothed,
    ),
    "generation_attention_smoothed": _Table(  # as the package answers its users
        "attention/generation_attention",
        _ATTENTION,
        _generation_attention,
        ("batch_size", "isl", "step"),
        _decode,
    ),
    "moe": _Table("moe/moe", (*_EXPERTS, "moe_dtype", "distribution"), _moe, ("num_tokens",), _tokens),
    "mla_context": _Table(
        "mla/mla_context_module", _MLA, lambda name, row, _: _mla(name, row, True), ("batch_size", "isl"), _prefill
    ),
    "mla_generation": _Table(
        "mla/mla_generation_module",
        _MLA,
        lambda name, row, _: _mla(name, row, False),
        ("batch_size", "isl", "step"),
        _decode,
    ),
    "custom_allreduce": _Table(
        "comm/custom_allreduce", ("num_gpus", "kernel_source"), _custom_allreduce, ("message_size",), _tokens
    ),
}
