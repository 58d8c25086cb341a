"""An operation as the sum of its parts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pytest_dooly.core.batch import Batch, SweepPoint
from pytest_dooly.core.work import Work
from pytest_dooly.published.estimate import EXPECTED_ERROR, Estimate
from pytest_dooly.published.family import parts_of, rest_of
from pytest_dooly.published.parts import PartsModel
from tests.published.test_family_regressor import regressor
from tests.traced import (
    DEVICE,
    KNOWN,
    MAMBA,
    MIXTRAL_MOE,
    attention,
)


def parts(first_s: float, second_s: float, *, sign: int = 1) -> PartsModel:
    (part,) = parts_of(KNOWN)
    other = dataclasses.replace(part, sign=sign)
    first, second = (regressor(part.family, latency_s) for latency_s in (first_s, second_s))
    return PartsModel(((part, first), (other, second)), Estimate(KNOWN, DEVICE))


def test_parts_add_up_and_their_errors_are_independent() -> None:
    latencies_s, errors = parts(3e-9, 4e-9).predict([SweepPoint(num_tokens=n) for n in (1, 2)])
    assert latencies_s.tolist() == pytest.approx([7e-9, 7e-9])  # less than half the estimate, but nothing is taken off
    assert errors.tolist() == pytest.approx([0.1 * 5 / 7] * 2)


def test_where_a_part_is_taken_off_half_the_estimate_is_left() -> None:
    points = [SweepPoint(num_tokens=1)]
    assert parts(5e-3, 2e-3, sign=-1).predict_s(points)[0] == pytest.approx(3e-3)
    none_left = parts(2e-3, 5e-3, sign=-1)
    half_s = none_left.estimate.predict_s(points)[0] / 2
    latency_s, error = none_left.predict(points)
    assert latency_s[0] == pytest.approx(half_s)
    assert error[0] == pytest.approx(0.1 * 1e-3 * np.hypot(2, 5) / half_s)


def test_what_no_part_is_of_is_estimated_besides() -> None:
    products, rest = parts_of(MAMBA), rest_of(MAMBA)
    assert rest is not None
    known = tuple((part, regressor(part.family, 1e-3)) for part in products)
    model = PartsModel(known, Estimate(MAMBA, DEVICE))
    points = [SweepPoint(batch=Batch.parse("8x1+100"))]
    rest_s = float(Estimate(rest, DEVICE).predict_s(points)[0])
    latencies_s, errors = model.predict(points)
    assert latencies_s[0] == pytest.approx(2e-3 + rest_s)
    squares = 2 * (0.1 * 1e-3) ** 2 + (EXPECTED_ERROR * rest_s) ** 2
    assert errors[0] == pytest.approx(np.sqrt(squares) / latencies_s[0])
    state_bytes = 8 * 2 * 4 * 32 * 64 * 128
    assert rest_s > state_bytes / DEVICE.memory_bytes_per_s  # states are read and written, whatever products take


def test_a_part_that_a_step_does_not_run_costs_nothing() -> None:
    prefill, decode = parts_of(attention(32, 8, 128))
    model = PartsModel(
        ((prefill, regressor(prefill.family, 3e-3)), (decode, regressor(decode.family, 5e-4))), Estimate(KNOWN, DEVICE)
    )
    work = Work.of([SweepPoint(batch=Batch.parse(text)) for text in ("8", "1+8", "8,1+8")])
    assert model.predict_s(work).tolist() == pytest.approx([3e-3, 5e-4, 3.5e-3])
    assert model.predict_s([SweepPoint(batch=Batch.parse("8"))])[0] == pytest.approx(3e-3)


@pytest.mark.parametrize(("tokens", "gathered", "computed"), [(17, 68, 96), (100, 400, 400)])
def test_every_engine_that_shares_experts_is_padded_to_the_captured_size(
    tokens: int, gathered: int, computed: int
) -> None:
    """17 tokens of each of four engines are computed as 24; beyond the captured sizes as they are."""
    shared = dataclasses.replace(MIXTRAL_MOE, attributes=(*MIXTRAL_MOE.attributes, ("data_parallel", 4)))
    experts = parts_of(shared)[0]
    below = regressor(experts.family, 1e-3, num_tokens=(1.0, computed - 1.0))
    model = PartsModel(((experts, below),), Estimate(shared, DEVICE), captured_tokens=64)
    work = Work.of_sizes([tokens], activated=[8], busiest=[9], gathered=[gathered])
    assert model.out_of_range(work) == f"num_tokens {computed} is outside of the published 1 to {computed - 1}"


@pytest.mark.parametrize(
    ("point", "line"),
    [
        ("T8", None),
        ("T2", "num_tokens 2 is outside of the published 4 to 32"),
        ("T1000", "num_tokens 1,000 is outside of the published 4 to 32"),
    ],
)
def test_what_lies_outside_of_the_published_latencies_is_named(point: str, line: str | None) -> None:
    (part,) = parts_of(KNOWN)
    within = regressor(part.family, 1e-3, k=(512.0, 2048.0), n=(512.0, 8192.0), num_tokens=(4.0, 32.0))
    model = PartsModel(((part, within),), Estimate(KNOWN, DEVICE))
    assert model.out_of_range(SweepPoint.parse(point)) == line
    assert model.out_of_range(Work.of([SweepPoint.parse(point)])) == line


def test_steps_of_both_phases_are_predicted_whole_where_such_steps_are_known() -> None:
    prefill, decode = parts_of(attention(32, 8, 128))
    mixed = dataclasses.replace(prefill, family=dataclasses.replace(prefill.family, kernel="mixed"))
    known = [(part, regressor(part.family, s)) for part, s in ((prefill, 3e-3), (decode, 5e-4), (mixed, 7e-3))]
    model = PartsModel(tuple(known[:2]), Estimate(KNOWN, DEVICE), known[2])
    work = Work.of([SweepPoint(batch=Batch.parse(text)) for text in ("8", "1+8", "8,1+8")])
    assert model.predict_s(work).tolist() == pytest.approx([3e-3, 5e-4, 7e-3])
