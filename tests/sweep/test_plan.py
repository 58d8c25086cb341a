"""Plans: what is measured is reused, what failed or is missing is new, whoever measured it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_dooly.core.batch import Limits, SweepPoint
from pytest_dooly.core.measurement import Failure
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.sweep.grid import refinements, sweep
from pytest_dooly.sweep.plan import case_cost_s, make_plan
from pytest_dooly.sweep.refine import grid_key
from tests.samples import ATTENTION, ENVIRONMENT, LIMITS, LINEAR, SAMPLER, STEP, measured, served, uses


@pytest.fixture
def db(tmp_path: Path) -> Iterator[LatencyDB]:
    with LatencyDB.open(tmp_path / "latency.db") as opened:
        yield opened


def test_every_signature_and_point_is_one_case_however_many_models_use_it(db: LatencyDB) -> None:
    first = served(uses(LINEAR, 3), uses(SAMPLER), name="first")
    second = served(uses(LINEAR, 9, layer="layers.7.y"), uses(ATTENTION), name="second")
    plan = make_plan([first, second], ENVIRONMENT, db)
    expected = sum(len(sweep(signature, LIMITS)) for signature in (LINEAR, SAMPLER, ATTENTION))
    assert len(plan.new) == expected
    assert len(plan.cases) == len(plan.new) + len(plan.possible)
    assert {case.model.name for case in plan.cases if case.operation.signature == LINEAR} == {"first"}
    assert len({case.id for case in plan.cases}) == len(plan.cases)


def test_measured_is_reused_and_what_it_took_is_saved(db: LatencyDB) -> None:
    points = sweep(LINEAR, LIMITS)
    db.record(LINEAR, ENVIRONMENT, points[0], measured(1e-3), spent_s=2.0)
    db.record(LINEAR, ENVIRONMENT, points[1], Failure("out of memory"), spent_s=4.0)
    plan = make_plan([served(uses(LINEAR))], ENVIRONMENT, db)
    assert [case.point for case in plan.reused] == [points[0]]
    assert plan.saved_s == 2.0
    assert len(plan.new) == len(points) - 1


def test_the_estimate_knows_what_was_spent_and_guesses_by_work(db: LatencyDB) -> None:
    first, second, *rest = sweep(LINEAR, LIMITS)
    db.record(LINEAR, ENVIRONMENT, first, measured(2 * 64 * 128 / 1e6), spent_s=2.0)  # a million operations a second
    db.record(LINEAR, ENVIRONMENT, second, Failure("out of memory"), spent_s=4.0)
    guessed = sum(0.8 + 12 * 2 * 64 * 128 * (point.num_tokens or 0) / 1e6 for point in rest)
    assert make_plan([served(uses(LINEAR))], ENVIRONMENT, db).estimate_s == pytest.approx(4.0 + guessed)
    (attention,) = [c for c in make_plan([served(uses(ATTENTION))], ENVIRONMENT, db).new if str(c.point) == "512+0"]
    assert attention.spent_s == pytest.approx(0.8 + 12 * 4 * 4 * 16 * 512 * 256.5 / 1e11)


def test_a_gpu_is_assumed_to_be_faster_until_it_is_known_how_fast() -> None:
    point = SweepPoint(num_tokens=1_000_000)
    flops = 2 * 64 * 128 * 1_000_000
    assert case_cost_s(LINEAR, point, gpu=True) == pytest.approx(0.8 + 12 * flops / 2e14)
    assert case_cost_s(LINEAR, point, gpu=False) == pytest.approx(0.8 + 12 * flops / 1e11)
    assert case_cost_s(LINEAR, point, gpu=True, flops_per_s=1e9) == pytest.approx(0.8 + 12 * flops / 1e9)


def test_another_environment_has_measured_nothing(db: LatencyDB) -> None:
    db.record(LINEAR, replace(ENVIRONMENT, engine_version="2"), sweep(LINEAR, LIMITS)[0], measured(1e-3), spent_s=2.0)
    assert make_plan([served(uses(LINEAR))], ENVIRONMENT, db).reused == ()


def test_refresh_times_everything_again(db: LatencyDB) -> None:
    measured_before = sweep(LINEAR, LIMITS)[0], refinements(LINEAR, LIMITS)[0]
    for point in measured_before:
        db.record(LINEAR, ENVIRONMENT, point, measured(1e-3), spent_s=2.0)
    plan = make_plan([served(uses(LINEAR))], ENVIRONMENT, db, refresh=True)
    assert plan.reused == ()
    assert set(measured_before) <= {case.point for case in plan.new}


def test_larger_limits_time_only_what_lies_beyond(db: LatencyDB) -> None:
    for point in sweep(LINEAR, LIMITS):
        db.record(LINEAR, ENVIRONMENT, point, measured(1e-3), spent_s=1.0)
    plan = make_plan([served(uses(LINEAR), limits=Limits(2048, 8, 2048))], ENVIRONMENT, db)
    assert [str(case.point) for case in plan.new] == ["T1024", "T2048"]


def test_a_settled_sweep_needs_no_more_points_until_more_is_asked_of_it(db: LatencyDB) -> None:
    for point in sweep(LINEAR, LIMITS):
        db.record(LINEAR, ENVIRONMENT, point, measured(1e-3), spent_s=1.0)
    models = [served(uses(LINEAR))]
    finer = refinements(LINEAR, LIMITS)
    assert len(make_plan(models, ENVIRONMENT, db).possible) == len(finer)
    db.settle(LINEAR.key, ENVIRONMENT, target=0.05, error=0.02, grid=grid_key(finer))
    settled = make_plan(models, ENVIRONMENT, db)
    assert (len(settled.new), len(settled.possible), len(settled.unneeded)) == (0, 0, len(finer))
    assert len(make_plan(models, ENVIRONMENT, db, target=0.01).possible) == len(finer)
    larger = [served(uses(LINEAR), limits=Limits(2048, 8, 2048))]
    assert make_plan(larger, ENVIRONMENT, db).possible


def test_points_held_out_are_cases_of_their_own(db: LatencyDB) -> None:
    plan = make_plan([served(uses(LINEAR), uses(STEP))], ENVIRONMENT, db, held_out=3)
    held_out = [case for case in plan.new if case.use == "held out"]
    assert len(held_out) == 3
    assert {case.operation.signature for case in held_out} == {LINEAR}
    db.record(LINEAR, ENVIRONMENT, held_out[0].point, measured(1e-3), spent_s=1.0, held_out=True)
    again = make_plan([served(uses(LINEAR), uses(STEP))], ENVIRONMENT, db, held_out=3)
    assert [case.point for case in again.reused] == [held_out[0].point]


def test_what_one_model_may_need_and_another_takes_is_taken(db: LatencyDB) -> None:
    small, large = Limits(48, 8, 64), Limits(96, 8, 128)
    plan = make_plan([served(uses(LINEAR), limits=large), served(uses(LINEAR), limits=small)], ENVIRONMENT, db)
    assert [case.use for case in plan.cases if str(case.point) == "T48"] == ["sweep"]
    assert len({case.point for case in plan.cases}) == len(plan.cases)


def test_ids_are_readable(db: LatencyDB) -> None:
    ids = [case.id for case in make_plan([served(uses(LINEAR), uses(ATTENTION))], ENVIRONMENT, db).cases]
    assert "linear-64x128-bf16-T128" in ids
    assert "attention-4h2kv16-bf16-8x1+16" in ids
