"""Tables as the package has them, small and written by hand, and those of the package itself."""

from __future__ import annotations

import importlib.metadata
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pytest_dooly.core.device import device_of
from pytest_dooly.core.environment import CUDA_GRAPH, EAGER
from pytest_dooly.core.published_latency import PublishedTable
from pytest_dooly.core.signature import Signature
from pytest_dooly.errors import ConfigurationError, PublishedDataError
from pytest_dooly.published.aiconfigurator import PACKAGE, read_tables, systems
from tests.published.aiconfigurator.rows import (
    ALL_REDUCE,
    ATTENTION,
    GEMM,
    LATENT,
    LINEAR,
    MOE,
    NCCL,
    ROW,
    Row,
    latencies,
    left_out,
    read,
    write,
)


def test_collectives_of_nccl_come_with_every_engine(root: Path) -> None:
    write(root, "gemm_perf", [GEMM])
    write(root, "nccl_perf", [NCCL], engine="nccl", version="2.29.2")
    environments = [environment for table in read_tables("h200_sxm", root=root) for environment in table.rows]
    assert [(e.engine, e.engine_version, e.execution) for e in environments] == [
        ("vllm", "0.24.0", CUDA_GRAPH),
        ("nccl", "2.29.2", EAGER),
    ]


@pytest.mark.parametrize(
    ("name", "row", "execution"),
    [
        ("gemm_perf", GEMM, CUDA_GRAPH),
        ("gemm_perf", {**GEMM, "gemm_dtype": "fp8"}, CUDA_GRAPH),
        ("gemm_perf", {**GEMM, "gemm_dtype": "fp8_block"}, EAGER),
        ("gemm_perf", {**GEMM, "device": "Intel(R) Graphics"}, EAGER),
        ("custom_allreduce_perf", ALL_REDUCE, CUDA_GRAPH),
        ("custom_allreduce_perf", {**ALL_REDUCE, "kernel_source": "vLLM_custom_eager"}, EAGER),
        ("custom_allreduce_perf", {**ALL_REDUCE, "kernel_source": "SGLang_custom_eager"}, EAGER),
    ],
)
def test_what_was_replayed_and_what_the_host_launched_are_different_environments(
    root: Path, name: str, row: Row, execution: str
) -> None:
    (environment,) = read(root, name, [row]).rows
    assert environment.execution == execution
    assert (environment.device, environment.engine_version) == (row["device"], "0.24.0")


def test_blocks_of_fp8_are_replayed_by_another_engine(root: Path) -> None:
    (environment,) = read(root, "gemm_perf", [{**GEMM, "gemm_dtype": "fp8_block"}], engine="sglang").rows
    assert (environment.engine, environment.execution) == ("sglang", CUDA_GRAPH)


def test_a_table_is_split_by_environment_and_loses_nothing(root: Path) -> None:
    rows = [ALL_REDUCE, {**ALL_REDUCE, "kernel_source": "vLLM_custom_eager", "latency": 3.0}]
    table = read(root, "custom_allreduce_perf", rows)
    assert {e.execution: [row.latency_s for row in of] for e, of in table.rows.items()} == {
        CUDA_GRAPH: [2e-3],
        EAGER: [3e-3],
    }
    assert table.unmapped == {}


def test_a_source_says_package_file_and_content(root: Path) -> None:
    table = read(root, "gemm_perf", [GEMM])
    assert (table.source.package, table.source.licence) == (PACKAGE, "Apache-2.0")
    assert table.source.file == "h200_sxm/gemm/vllm/0.24.0/gemm_perf.parquet"
    assert read(root, "gemm_perf", [GEMM]).source == table.source
    assert read(root, "gemm_perf", [{**GEMM, "latency": 2.5}]).source.key != table.source.key


# What is left out


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("gemm_perf", {**GEMM, "gemm_dtype": "fp3"}, "gemm_dtype fp3 is unknown"),
        ("gemm_perf", {**GEMM, "latency": 0.0}, "the latency is no positive number"),
        ("gemm_perf", {**GEMM, "latency": -1.0}, "the latency is no positive number"),
        ("gemm_perf", {**GEMM, "latency": math.nan}, "the latency is no positive number"),
        ("gemm_perf", {**GEMM, "latency": math.inf}, "the latency is no positive number"),
        ("gemm_perf", {**GEMM, "m": 0}, "a m of 0"),
        ("context_attention_perf", {**ATTENTION, "step": -1}, "a step of -1"),
        ("context_attention_perf", {**ATTENTION, "num_key_value_heads": 0}, "a num_key_value_heads of 0"),
        ("context_attention_perf", {**ATTENTION, "num_heads": 6}, "query heads are no multiple of KV heads"),
        ("context_attention_perf", {**ATTENTION, "kernel_source": "new"}, "kernel new is no known attention backend's"),
        (
            "context_attention_perf",
            {**ATTENTION, "attn_dtype": "fp8"},
            "attn_dtype fp8: no operation of a trace says so",
        ),
        ("mla_context_module_perf", {**LATENT, "tp_size": 2}, "tp_size 2: the heads of a rank are not said"),
        ("mla_context_module_perf", {**LATENT, "gemm_type": "fp3"}, "gemm_type fp3 is unknown"),
        ("mla_context_module_perf", {**LATENT, "mla_dtype": "fp8"}, "mla_dtype fp8: no operation of a trace says so"),
        (
            "mla_context_module_perf",
            {**LATENT, "model": "a/b"},
            "the package has no config.json with the sizes of a/b",
        ),
        ("moe_perf", {**MOE, "moe_dtype": "fp3"}, "moe_dtype fp3 is unknown"),
        ("moe_perf", {**MOE, "moe_ep_size": 3}, "experts or their sizes do not divide by the ranks"),
        ("moe_perf", {**MOE, "moe_tp_size": 3}, "experts or their sizes do not divide by the ranks"),
        ("moe_perf", {**MOE, "topk": 9}, "a token goes to more experts than there are"),
        ("moe_perf", {**MOE, "distribution": "zipf_1.1"}, "distribution zipf_1.1 is unknown"),
        ("moe_perf", {**MOE, "distribution": "power_law_x"}, "distribution power_law_x is unknown"),
        ("moe_perf", {**MOE, "distribution": "power_law_1.0"}, "distribution power_law_1.0 is unknown"),
        ("custom_allreduce_perf", {**ALL_REDUCE, "allreduce_dtype": "float32"}, "float32 messages"),
        (
            "custom_allreduce_perf",
            {**ALL_REDUCE, "message_size": 100},
            "messages that are no multiple of 128 elements",
        ),
        ("nccl_perf", {**NCCL, "nccl_dtype": "int8"}, "int8 messages"),
        ("nccl_perf", {**NCCL, "message_size": 256}, "messages that are no multiple of 128 elements"),
        ("nccl_perf", {**NCCL, "message_size": 2}, "messages that are no multiple of 128 elements"),
        ("nccl_perf", {**NCCL, "op_name": "alltoall"}, "no operation of a trace is a alltoall"),
        ("kda_perf", ROW, "no operation of a trace is a kda_perf"),
    ],
)
def test_what_no_operation_stands_for_is_counted_with_its_reason(root: Path, name: str, row: Row, reason: str) -> None:
    assert left_out(root, name, row) == reason


@pytest.mark.parametrize("column", ["latency", "device", "kernel_source", "gemm_dtype", "m"])
def test_a_row_with_a_gap_is_counted_and_its_neighbour_kept(root: Path, column: str) -> None:
    table = read(root, "gemm_perf", [GEMM, {**GEMM, column: None}])
    assert table.num_rows == 1
    assert table.unmapped == {"a value is missing": 1}


def test_of_repeated_rows_the_mean_is_kept_and_the_others_counted(root: Path) -> None:
    other = {**GEMM, "m": 65, "latency": 9.0}
    table = read(root, "gemm_perf", [GEMM, {**GEMM, "latency": 4.0}, other, {**GEMM, "latency": 6.0}])
    assert [(str(row.point), row.latency_s) for row in latencies(table)] == [("T64", 4e-3), ("T65", 9e-3)]
    assert table.unmapped == {"the same operation, point and kernel again: the mean is kept": 2}


def test_rows_of_two_kernels_or_two_distributions_are_both_kept(root: Path) -> None:
    kernels = [GEMM, {**GEMM, "kernel_source": "cutlass"}]
    assert [row.kernel for row in latencies(read(root, "gemm_perf", kernels))] == [GEMM["kernel_source"], "cutlass"]
    skewed = [{**MOE, "distribution": f"power_law_{alpha}"} for alpha in (1.01, 1.2)]
    (root / "systems" / "data" / "h200_sxm" / "gemm" / "vllm" / "0.24.0" / "gemm_perf.parquet").unlink()
    assert [row.variant for row in latencies(read(root, "moe_perf", skewed))] == ["power_law_1.01", "power_law_1.2"]


# Which files


def test_the_latest_version_of_each_kind_is_read_unless_one_is_named(root: Path) -> None:
    for version in ("0.9.0", "0.20.0", "0.24.0", "0.24.0rc2", "nightly"):
        write(root, "gemm_perf", [GEMM], version=version)
    write(root, "moe_perf", [MOE], version="0.9.0")
    read_ = [table.source.file for table in read_tables("h200_sxm", root=root)]
    assert read_ == ["h200_sxm/gemm/vllm/0.24.0/gemm_perf.parquet", "h200_sxm/moe/vllm/0.9.0/moe_perf.parquet"]
    (named,) = read_tables("h200_sxm", engine_version="0.24.0rc2", root=root)
    assert named.source.file == "h200_sxm/gemm/vllm/0.24.0rc2/gemm_perf.parquet"


def test_systems_are_those_with_tables(root: Path) -> None:
    write(root, "gemm_perf", [GEMM], system="l40s")
    write(root, "gemm_perf", [GEMM])
    (root / "systems" / "data" / "empty").mkdir()
    (root / "systems" / "data" / "README").write_text("none")
    assert systems(root) == ("h200_sxm", "l40s")


# Bad input


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"system": "h300"}, r"no tables of system 'h300': name one of h200_sxm$"),
        ({"engine": "tgi"}, r"no tables of engine 'tgi' on h200_sxm: name one of sglang, vllm$"),
        ({"engine_version": "9"}, r"no tables of vllm 9 on h200_sxm: name one of 0\.9\.0, 0\.24\.0$"),
    ],
)
def test_what_the_package_does_not_have_is_named_with_what_it_has(
    root: Path, asked: dict[str, str], message: str
) -> None:
    for version in ("0.24.0", "0.9.0"):
        write(root, "gemm_perf", [GEMM], version=version)
    write(root, "gemm_perf", [GEMM], engine="sglang")
    with pytest.raises(ConfigurationError, match=message):
        list(read_tables(**{"system": "h200_sxm", **asked}, root=root))


def refusal(root: Path) -> str:
    with pytest.raises(PublishedDataError) as raised:
        list(read_tables("h200_sxm", root=root))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_package_that_is_not_installed_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(PublishedDataError, match=r"not installed: run pip install 'pytest-dooly\[public-data\]'"):
        list(read_tables("h200_sxm"))
    with pytest.raises(PublishedDataError, match="not installed"):
        systems()


def test_another_copy_of_the_tables_has_no_version_where_the_package_is_not_installed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    assert read(root, "gemm_perf", [GEMM]).source.version == "unknown"


@pytest.mark.parametrize("folder", ["", "systems", "systems/data", "systems/data/h200_sxm/gemm/vllm/0.24.0"])
def test_a_directory_without_tables_is_said_to_have_none(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    assert f"has no tables under {tmp_path / 'systems' / 'data'}" in refusal(tmp_path)
    with pytest.raises(PublishedDataError, match="has no tables"):
        systems(tmp_path)


def test_a_missing_column_is_named(root: Path) -> None:
    write(root, "gemm_perf", [{name: value for name, value in GEMM.items() if name not in ("k", "device")}])
    assert "gemm_perf.parquet has no column device, k, only framework, version, latency, kernel_source" in refusal(root)


@pytest.mark.parametrize(
    ("column", "values", "type_"),
    [("m", ["many"], "string"), ("m", [1.5], "double"), ("latency", ["fast"], "string"), ("device", [[1]], "list")],
)
def test_a_column_of_another_type_is_named(root: Path, column: str, values: list[Any], type_: str) -> None:
    table = pa.Table.from_pylist([{**GEMM}]).drop_columns(column).append_column(column, pa.array(values))
    write(root, "gemm_perf", table)
    message = refusal(root)
    assert f"has {type_}" in message
    assert f"in its column {column} that cannot be read as " in message


def test_whole_numbers_may_be_written_as_fractions_or_narrow(root: Path) -> None:
    table = pa.Table.from_pylist([{**GEMM}])
    table = table.set_column(table.column_names.index("m"), "m", pa.array([64.0]))
    table = table.set_column(table.column_names.index("n"), "n", pa.array([3072], pa.int16()))
    write(root, "gemm_perf", table)
    (read_,) = read_tables("h200_sxm", root=root)
    assert latencies(read_)[0].signature == Signature.from_json(LINEAR)


@pytest.mark.parametrize("name", ["gemm_perf", "kda_perf"])
def test_a_table_without_rows_is_refused(root: Path, name: str) -> None:
    write(root, name, pa.Table.from_pylist([{**GEMM}]).slice(0, 0))
    assert f"{name}.parquet has no rows" in refusal(root)


@pytest.mark.parametrize("name", ["gemm_perf", "kda_perf"])
def test_a_truncated_file_is_refused(root: Path, name: str) -> None:
    path = write(root, name, [{**GEMM, "m": m} for m in range(1, 500)])
    content = path.read_bytes()
    for length in (0, 3, 8, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        assert f"{name}.parquet cannot be read as Parquet (" in refusal(root)


def test_a_file_of_another_kind_is_refused(root: Path) -> None:
    path = write(root, "gemm_perf", [GEMM])
    for content in (b"m,n,k\n1,2,3\n" * 100, b"PAR1" + bytes(1000) + b"PAR1"):
        path.write_bytes(content)
        assert "cannot be read as Parquet" in refusal(root)


def test_a_damaged_byte_is_refused_or_harmless(root: Path) -> None:
    path = write(root, "gemm_perf", [{**GEMM, "m": m} for m in range(1, 50)])
    content = path.read_bytes()
    refused = 0
    for place in range(0, len(content), 5):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        try:
            list(read_tables("h200_sxm", root=root))
        except PublishedDataError:
            refused += 1
    assert refused


def test_a_damaged_config_is_refused(root: Path) -> None:
    write(root, "mla_context_module_perf", [LATENT])
    (root / "model_configs" / "deepseek-ai--DeepSeek-V3_config.json").write_text('{"hidden_size": ')
    assert "deepseek-ai--DeepSeek-V3_config.json is no JSON" in refusal(root)


def test_a_config_without_latent_attention_has_no_sizes(root: Path) -> None:
    (root / "model_configs" / "deepseek-ai--DeepSeek-V3_config.json").write_text('{"hidden_size": 7168}')
    assert left_out(root, "mla_context_module_perf", LATENT).startswith("the package has no config.json with the sizes")


# The package itself


@pytest.fixture(scope="module", params=["a100_sxm", "h200_sxm"])
def published(request: pytest.FixtureRequest) -> list[PublishedTable]:
    return list(read_tables(request.param))


def test_no_row_of_the_package_is_dropped_silently(published: list[PublishedTable]) -> None:
    files = Path(str(importlib.metadata.distribution(PACKAGE).locate_file("aiconfigurator_core"))) / "systems" / "data"
    for table in published:
        in_file = pq.read_metadata(files / table.source.file).num_rows
        assert table.num_rows + sum(table.unmapped.values()) == in_file > 0, table.source.file
        assert all(reason and number > 0 for reason, number in table.unmapped.items())
        assert table.source.version == importlib.metadata.version(PACKAGE)


def test_every_kind_of_table_of_the_package_is_read(published: list[PublishedTable]) -> None:
    kept = {Path(table.source.file).stem for table in published if table.num_rows}
    usual = {"gemm_perf", "context_attention_perf", "generation_attention_perf", "moe_perf"}
    assert kept >= usual | {"custom_allreduce_perf", "nccl_perf"}
    assert sum(table.num_rows for table in published) > 25_000


def test_latencies_of_the_package_are_of_a_known_device_and_between_a_microsecond_and_a_minute(
    published: list[PublishedTable],
) -> None:
    for table in published:
        for environment, rows in table.rows.items():
            device = device_of(environment.device)
            assert device is not None
            assert table.source.file.startswith(device.name)
            assert all(1e-6 < row.latency_s < 60 for row in rows)
            assert len({(row.signature, row.point, row.kernel, row.variant) for row in rows}) == len(rows)


def test_the_systems_of_the_package_are_those_that_are_promised() -> None:
    assert set(systems()) >= {"h200_sxm", "h100_sxm", "a100_sxm", "b200_sxm", "l40s"}
