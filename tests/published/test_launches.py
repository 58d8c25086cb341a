"""What the host's launches hide, and what stands in for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.core.environment import CUDA_GRAPH, EAGER
from pytest_dooly.core.published_latency import PublishedLatency
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.published.family import Family
from pytest_dooly.published.grounds import Grounds
from pytest_dooly.published.launches import peer_of, without_launches
from tests.traced import DEVICE, GRID, linear, product_s, replayed, table

LAUNCH_S = 60e-6
TOKENS = (1, 16, 256, 1024, 8192)


def rows(method: str, factor: float = 1.0, least_s: float = 0.0) -> list[PublishedLatency]:
    """Products that take so much of what they take in bf16, or at least their launch."""
    return [
        PublishedLatency(
            linear(n, k, method, "fp8_e4m3fn"),
            SweepPoint(num_tokens=tokens),
            max(factor * product_s(n, k, tokens), least_s),
            "kernel",
        )
        for n, k in GRID
        for tokens in TOKENS
    ]


def test_what_is_shorter_than_its_launch_is_the_peers() -> None:
    freed = without_launches(rows("fp8_block", 1.1, LAUNCH_S), rows("fp8"))
    expected = rows("fp8_block", 1.1)
    assert len(freed.rows) == len(expected)
    assert [row.latency_s for row in freed.rows] == pytest.approx([row.latency_s for row in expected])
    assert freed.error < 1e-6


def test_what_is_longer_than_two_launches_stays() -> None:
    freed = without_launches(rows("fp8_block", 1.3, LAUNCH_S), rows("fp8"))
    for found, own in zip(freed.rows, rows("fp8_block", 1.3, LAUNCH_S), strict=True):
        if own.latency_s >= 2 * LAUNCH_S:
            assert found == own


def test_the_launch_of_each_kernel_is_its_own() -> None:
    slow = [
        PublishedLatency(row.signature, row.point, max(row.latency_s, 3 * LAUNCH_S), "slow")
        for row in rows("fp8_block", 1.0, LAUNCH_S)
        if row.point.num_tokens == 16
    ]
    quick = [row for row in rows("fp8_block", 1.0, LAUNCH_S) if row.point.num_tokens != 16]
    freed = without_launches([*quick, *slow], rows("fp8"))
    least = {kernel: min(row.latency_s for row in freed.rows if row.kernel == kernel) for kernel in ("kernel", "slow")}
    assert max(least.values()) < LAUNCH_S / 4


def test_without_the_peer_a_row_that_its_launch_hides_is_left_out() -> None:
    own = rows("fp8_block", 1.0, LAUNCH_S)
    some = [row for row in rows("fp8") if row.point.num_tokens != 1]
    freed = without_launches(own, some)
    hidden = [row for row in own if row.point.num_tokens == 1 and row.latency_s < 2 * LAUNCH_S]
    assert len(freed.rows) == len(own) - len(hidden)
    launched = without_launches(own, [])
    assert all(row.latency_s >= 2 * LAUNCH_S for row in launched.rows)
    assert len(launched.rows) == sum(row.latency_s >= 2 * LAUNCH_S for row in own)
    only_launches = [row for row in own if row.latency_s < 1.5 * LAUNCH_S]
    assert without_launches(only_launches, rows("fp8")) == without_launches(only_launches, [])
    assert without_launches(only_launches, []).rows == []


def test_only_products_in_fp8_blocks_have_a_peer() -> None:
    assert peer_of(Family("gemm", "fp8_block")) == Family("gemm", "fp8")
    assert peer_of(Family("gemm", "bf16")) is None
    assert peer_of(Family("all_reduce", "bf16")) is None


@pytest.mark.parametrize(("execution", "hidden"), [(EAGER, False), (CUDA_GRAPH, True)])
def test_a_prediction_launches_nothing(tmp_path: Path, execution: str, hidden: bool) -> None:
    of_blocks = {(row.signature, row.point): row.latency_s for row in rows("fp8_block", 1.0, LAUNCH_S)}
    of_tensors = {(row.signature, row.point): row.latency_s for row in rows("fp8")}
    with LatencyDB.open(tmp_path / "latency.db") as db:
        db.publish(table(of_blocks, environment=replayed(execution=execution)))
        db.publish(table(of_tensors, file="tensors.parquet"))
        regressor = Grounds(db, DEVICE).regressor(Family("gemm", "fp8_block"))
        assert regressor is not None
        again = Grounds(db, DEVICE).regressor(Family("gemm", "fp8_block"))
    assert again is not None
    columns = {"num_tokens": 1.0, "n": 1024.0, "k": 1024.0}
    asked = {name: np.array([value]) for name, value in columns.items()}
    latency_s, error = regressor.predict(asked)
    assert bool(latency_s[0] > 0.8 * LAUNCH_S) is hidden
    assert bool(latency_s[0] < 2 * product_s(1024, 1024, 1)) is not hidden
    assert np.concatenate(again.predict(asked)) == pytest.approx(np.concatenate([latency_s, error]))
    assert ("tensors.parquet" in " ".join(regressor.sources)) is not hidden
