"""In-situ comparisons: errors, shares and totals add up, and JSON round-trips."""

from __future__ import annotations

import json

import pytest

from pytest_dooly.core.in_situ import InSitu, InSituRow

LINEAR = InSituRow("linear-64x128-bf16", "linear", "8x1+512", 3, 11e-6, 10e-6, 0.02)
ATTENTION = InSituRow("attention-4h2kv16-bf16", "attention", "8x1+512", 2, 30e-6, 35e-6, 0.01)
PREFILL = InSituRow("linear-64x128-bf16", "linear", "512", 3, 2e-3, 2.5e-3, 0.03)
IN_SITU = InSitu((LINEAR, ATTENTION, PREFILL))


def test_an_isolated_latency_that_is_too_high_is_a_positive_error() -> None:
    assert LINEAR.error == pytest.approx(0.1)
    assert ATTENTION.error == pytest.approx(-1 / 7)


def test_a_step_holds_the_rows_of_its_batch_dearest_first() -> None:
    decode, prefill = IN_SITU.steps
    assert (decode.batch, decode.rows) == ("8x1+512", (ATTENTION, LINEAR))
    assert (prefill.batch, prefill.rows) == ("512", (PREFILL,))
    assert [decode.share(row) for row in decode.rows] == pytest.approx([0.7, 0.3])
    assert prefill.share(PREFILL) == 1


def test_totals_count_each_operation_as_often_as_the_step_runs_it() -> None:
    decode, _ = IN_SITU.steps
    assert decode.isolated_s == pytest.approx(93e-6)
    assert decode.in_situ_s == pytest.approx(100e-6)
    assert decode.error == pytest.approx(-0.07)


def test_it_comes_back_from_json() -> None:
    assert InSitu.from_json(json.loads(json.dumps(IN_SITU.to_json()))) == IN_SITU
