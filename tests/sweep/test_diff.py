"""What two models share, what differs, and the time that saves."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_dooly.core.signature import ServedModel, Signature
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.report.text import format_diff
from pytest_dooly.sweep.diff import Difference, diff
from pytest_dooly.sweep.grid import sweep
from pytest_dooly.sweep.plan import make_plan
from tests.samples import ATTENTION, ENVIRONMENT, LIMITS, LINEAR, SAMPLER, measured, served, uses

WIDER = Signature(
    LINEAR.kind,
    LINEAR.name,
    (("input", "bf16", ("num_tokens", 64)), ("weight", "bf16", (256, 64))),
    (("method", "fp8"),),
    "num_tokens",
)
LARGER = dataclasses.replace(SAMPLER, tensors=(("logits", "fp32", ("num_reqs", 512)),))
FIRST = served(uses(LINEAR), uses(LARGER), uses(SAMPLER), name="first")
SECOND = served(uses(SAMPLER), uses(WIDER), uses(ATTENTION), name="second")


@pytest.fixture
def db(tmp_path: Path) -> Iterator[LatencyDB]:
    with LatencyDB.open(tmp_path / "latency.db") as opened:
        for point in sweep(SAMPLER, LIMITS):
            opened.record(SAMPLER, ENVIRONMENT, point, measured(1e-3), spent_s=5.0)
        yield opened


def compared(db: LatencyDB, first: ServedModel, second: ServedModel) -> Difference:
    return diff(*(make_plan([model], ENVIRONMENT, db) for model in (first, second)))


def test_operations_are_shared_differ_or_stand_alone(db: LatencyDB) -> None:
    found = compared(db, FIRST, SECOND)
    assert [op.signature for op in found.shared] == [SAMPLER]
    assert [(pair.first.signature, pair.second.signature) for pair in found.differing] == [(LINEAR, WIDER)]
    assert found.differing[0].changes == (
        "weight: bf16 [128, 64] -> bf16 [256, 64]",
        "method: unquantized -> fp8",
    )
    assert [op.signature for op in found.only_first] == [LARGER]
    assert [op.signature for op in found.only_second] == [ATTENTION]


def test_the_time_of_shared_cases_is_saved(db: LatencyDB) -> None:
    found = compared(db, FIRST, SECOND)
    assert found.saved_s == 5.0 * len(sweep(SAMPLER, LIMITS))
    assert found.total_s > found.saved_s
    assert compared(db, FIRST, FIRST).share_saved == 1
    assert compared(db, served(uses(LINEAR)), served(uses(ATTENTION))).share_saved == 0
    assert compared(db, served(), served()).share_saved == 0


def test_it_reads_in_a_hundred_columns(db: LatencyDB) -> None:
    text = format_diff(FIRST, SECOND, compared(db, FIRST, SECOND))
    assert max(map(len, text.splitlines())) <= 100
    assert "shared (1)\n  sampler-256-fp32\n" in text
    assert "  linear-64x128-bf16 -> linear-64x256-bf16-fp8\n      weight: bf16 [128, 64] -> bf16 [256, 64]" in text
    assert "only in first (1)\n  sampler-512-fp32" in text
    assert text.endswith("% of its time")
