import dataclasses

import pytest

from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.core.published_latency import PublishedLatency, PublishedTable, Source
from tests.samples import ENVIRONMENT, LINEAR

SOURCE = Source("tables", "1.0", "MIT", "here/gemm.parquet", "abc", 1)


def test_a_source_is_equal_for_the_same_file_read_by_the_same_rules() -> None:
    assert dataclasses.replace(SOURCE).key == SOURCE.key


@pytest.mark.parametrize(
    "change", [{"package": "x"}, {"version": "x"}, {"licence": "x"}, {"file": "x"}, {"sha256": "x"}, {"mapping": 2}]
)
def test_everything_about_a_source_is_in_its_key(change: dict[str, str]) -> None:
    assert dataclasses.replace(SOURCE, **change).key != SOURCE.key  # type: ignore[arg-type]


def test_people_read_package_version_and_file() -> None:
    assert SOURCE.name == "tables 1.0, here/gemm.parquet"


def test_a_table_counts_the_rows_of_all_environments() -> None:
    row = PublishedLatency(LINEAR, SweepPoint(num_tokens=1), 1e-3, "cutlass")
    other = dataclasses.replace(ENVIRONMENT, device="NVIDIA H200")
    table = PublishedTable(SOURCE, {ENVIRONMENT: (row, row), other: (row,)}, {"unknown": 7})
    assert (table.num_rows, PublishedTable(SOURCE, {}, {"unknown": 7}).num_rows) == (3, 0)
