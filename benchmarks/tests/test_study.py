"""The redundancy study on two small models: what is counted once, twice and not at all can be told by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from benchmarks.study.costs import (
    STRATEGIES,
    Assumptions,
    Cases,
    adaptive_points,
    cases_of,
    is_predicted,
    within_limits,
)
from benchmarks.study.errors import NUM_SIZES, Rows, halves, held_out, learning_curve, rows_of
from benchmarks.study.plots import orders, save_hours, save_savings, save_sharing, sharing_of
from benchmarks.study.report import Study, figures, report
from pytest_dooly.core.batch import Limits, SweepPoint
from pytest_dooly.core.device import device_named
from pytest_dooly.core.environment import Environment
from pytest_dooly.core.operation import OperationKind
from pytest_dooly.core.published_latency import PublishedLatency, PublishedTable, Source
from pytest_dooly.core.signature import Signature, portable
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.published.basis import Basis, Foundation
from pytest_dooly.published.estimate import Estimate
from pytest_dooly.published.family import Family
from pytest_dooly.published.grounds import Grounds
from pytest_dooly.sweep.grid import refinements, sweep
from pytest_dooly.sweep.refine import TARGET
from tests.samples import LINEAR, SAMPLER, STEP, served, uses

H200 = device_named("h200_sxm")
GRAPHS = Environment(H200.product, 1, "unknown", "vllm", "0.24.0", "unknown", "cuda_event", "repeated", "cuda_graph")
SHORT = Limits(max_num_tokens=64, max_num_seqs=4, max_model_len=128)
LONG = dataclasses.replace(SHORT, max_num_tokens=256)
NOTHING_ELSE = Assumptions(engine_s=0.0, case_s=1.0, warm_up=0, rounds=0)
"""A case is a second, so that GPU-seconds count cases."""


def linear(n: int, k: int) -> Signature:
    tensors = (("input", "bf16", ("num_tokens", k)), ("weight", "bf16", (n, k)))
    return Signature(OperationKind.LINEAR, "linear", tensors, LINEAR.attributes, "num_tokens")


def reduced(ranks: int) -> Signature:
    tensors = (("arg0", "bf16", ("num_tokens", 64)),)
    return Signature(OperationKind.COLLECTIVE, "all_reduce", tensors, (("ranks", ranks),), "num_tokens")


class Known(Grounds):
    """Founds every operation on its estimate, and says it is of the kind and error that the test asks for."""

    def __init__(self, bases: dict[Signature, Basis] | None = None) -> None:
        self.device = H200
        self.bases = bases or {}

    def foundation(self, signature: Signature, limits: Limits) -> Foundation:
        basis = self.bases.get(signature, Basis("estimate", 0, (), None))
        return Foundation(Estimate(signature, H200), basis)


def two_models(bases: dict[Signature, Basis] | None = None) -> Cases:
    """Both run LINEAR, the second on longer batches; the sampler and the collective are one's own."""
    first = served(uses(LINEAR), uses(SAMPLER), name="first", limits=SHORT)
    second = served(uses(LINEAR), uses(reduced(4)), name="second", limits=LONG)
    return cases_of([first, second], Known(bases))


def points(signature: Signature, limits: Limits) -> set[SweepPoint]:
    return {*sweep(signature, limits), *refinements(signature, limits)}


def test_equal_operations_at_equal_points_are_timed_once() -> None:
    cases = two_models()
    short, long = points(LINEAR, SHORT), points(LINEAR, LONG)
    own = len(points(SAMPLER, SHORT)), len(points(reduced(4), LONG))
    assert cases.num_timed("separately", [0, 1]) == len(short) + len(long) + sum(own)
    assert cases.num_timed("exact sharing", [0, 1]) == len(short | long) + sum(own)
    assert short != long
    assert short & long


def test_hours_are_cumulated_in_the_order_asked_for_and_end_alike() -> None:
    cases = two_models()
    for strategy in STRATEGIES:
        there, back = (cases.hours(strategy, Assumptions(), order) for order in ([0, 1], [1, 0]))
        assert there[-1] == pytest.approx(back[-1])
        assert 0 < there[0] < there[1]
    assert cases.hours("separately", Assumptions(), [0])[0] == cases.hours("exact sharing", Assumptions(), [0])[0]


def test_a_collective_keeps_every_rank_busy() -> None:
    cases = two_models()
    hours = cases.hours_of(OperationKind.COLLECTIVE, "exact sharing", NOTHING_ELSE, [0, 1])
    assert hours * 3600 == pytest.approx(4 * len(points(reduced(4), LONG)))


def test_a_case_takes_its_set_up_and_its_runs_and_an_engine_its_start() -> None:
    cases = cases_of([served(uses(STEP), limits=SHORT)], Known())
    steps_s = Estimate(STEP, H200).predict_s(list(points(STEP, SHORT)))
    assumed = Assumptions(engine_s=7.0, case_s=2.0, warm_up=3, rounds=30)
    assert cases.hours("separately", assumed)[-1] * 3600 == pytest.approx(7 + 2 * len(steps_s) + 33 * steps_s.sum())


def test_no_strategy_takes_more_than_the_one_before() -> None:
    expected = Basis("across sizes", 9, (), TARGET)
    cases = two_models({LINEAR: expected})
    hours = [cases.hours(strategy, Assumptions())[-1] for strategy in STRATEGIES]
    assert hours == sorted(hours, reverse=True)
    assert hours[-1] < hours[-2] == hours[-3]


def test_what_is_expected_within_the_target_is_not_timed() -> None:
    assert is_predicted(Basis("published", 9, (), TARGET), "published")
    assert not is_predicted(Basis("across sizes", 9, (), TARGET), "published")
    assert not is_predicted(Basis("published", 9, (), 1.01 * TARGET), "published", "across sizes")
    assert not is_predicted(Basis("across sizes", 9, (), 0.01, reliable=False), "across sizes")
    assert not is_predicted(Basis("estimate", 0, (), None), "published", "across sizes")
    cases = two_models({LINEAR: Basis("published", 9, (), 0.01)})
    assert cases.hours_of(OperationKind.LINEAR, "public sizes", NOTHING_ELSE, [0, 1]) == 0
    assert cases.hours_of(OperationKind.LINEAR, "adaptive sweep", NOTHING_ELSE, [0, 1]) > 0


def test_an_adaptive_sweep_asks_for_more_where_latencies_are_rough() -> None:
    coarse, finer = sweep(LINEAR, LONG), refinements(LINEAR, LONG)
    smooth = {point: 1e-5 * (point.num_tokens or 0) for point in (*coarse, *finer)}
    steps = {point: 1e-5 * 3 ** ((point.num_tokens or 0).bit_length() % 3) for point in smooth}
    chosen, error = adaptive_points(LINEAR, smooth, coarse, finer)
    assert chosen == list(coarse)
    assert error is not None
    assert error < TARGET
    assert len(adaptive_points(LINEAR, steps, coarse, finer)[0]) > len(coarse)


def test_the_limits_are_the_study_s_where_the_model_allows_them() -> None:
    model = served(uses(LINEAR), limits=Limits(32768, 128, 4096))
    assert within_limits(model, Limits(8192, 256, 32768)).limits == Limits(8192, 256, 4096)


def product_s(n: int, k: int, num_tokens: int) -> float:
    return 3e-6 + 1e-12 * n * k + 3e-15 * n * k * num_tokens


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    """Twelve sizes of matrix products, twelve rows each, as a table would have them."""
    sizes = [(n, k) for n in (256, 512, 1024, 2048) for k in (512, 1024, 3072)]
    latencies = tuple(
        PublishedLatency(linear(n, k), SweepPoint(num_tokens=2**i), product_s(n, k, 2**i), "cublas")
        for n, k in sizes
        for i in range(12)
    )
    table = PublishedTable(Source("package", "1", "Apache-2.0", "gemm", "0", 1), {GRAPHS: latencies}, {})
    with LatencyDB.open(tmp_path / "study.db") as db:
        db.publish(table)
        assert rows_of(db, H200, Family("gemm", "fp8")) is None
        found = rows_of(db, H200, Family("gemm", "bf16"))
    assert found is not None
    return found


def test_rows_of_a_family_are_read_as_published(rows: Rows) -> None:
    assert len(rows.table) == 144
    assert len(rows.published) == len(rows.table.sizes) == 12
    assert rows.sizes_of(linear(256, 3072)) == (("k", 3072), ("n", 256))


def test_halves_are_whole_together_and_the_same_again(rows: Rows) -> None:
    every = rows.published[next(iter(rows.published))]
    seen, out = halves(every, 3)
    assert sorted(map(str, (*seen, *out))) == sorted(map(str, every))
    assert not {row.point for row in seen} & {row.point for row in out}
    assert halves(every, 3) == (seen, out) != halves(every, 4)


def test_held_out_errors_are_of_the_operations_that_the_tables_have(rows: Rows) -> None:
    asked = [linear(256, 512), linear(1024, 3072), linear(2048, 1024), linear(300, 512), SAMPLER]
    errors = held_out([rows], asked, LONG)
    assert [error.way for error in errors] == [
        "all points",
        "adaptive points",
        "across sizes, size unseen",
        "across sizes, size seen",
    ]
    assert {error.operations for error in errors} == {3}
    assert {error.rows for error in errors} == {18}
    assert [error.points for error in errors][2:] == [0, 6]
    assert errors[1].points <= errors[0].points == 6
    assert errors[0].median < 0.05  # latencies are a straight line
    assert all(error.median <= error.p95 for error in errors)


def test_a_learning_curve_is_the_same_again_and_leaves_others_to_ask_for(rows: Rows) -> None:
    curve = learning_curve(rows, (4, 8, 12), (0, 1))
    assert [(point.num_sizes, point.seed, point.others) for point in curve] == [
        (4, 0, 8),
        (4, 1, 8),
        (8, 0, 4),
        (8, 1, 4),
    ]
    assert curve == learning_curve(rows, (4, 8), (0, 1))
    assert all((point.error_skipped is None) == (point.skipped == 0) for point in curve)
    assert all((point.error_timed is None) == (point.skipped == 1) for point in curve)
    assert max(NUM_SIZES) < 483


def test_sharing_counts_what_only_one_model_has() -> None:
    sharing = sharing_of(["a", "b", "c"], [[LINEAR, SAMPLER], [LINEAR, STEP], [linear(1, 2), LINEAR, SAMPLER]])
    assert sharing.shared == (LINEAR, SAMPLER)
    assert sharing.users == (frozenset({0, 1, 2}), frozenset({0, 2}))
    assert sharing.alone == ({}, {OperationKind.OVERHEAD: 1}, {OperationKind.LINEAR: 1})


def test_random_orders_are_permutations_and_the_same_again() -> None:
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders(4))
    assert orders(4) == orders(4)
    assert len({tuple(order) for order in orders(4)}) > 10


def test_the_report_has_every_figure_and_the_pictures_are_drawn(rows: Rows, tmp_path: Path) -> None:
    cases = two_models({LINEAR: Basis("across sizes", 9, (), 0.04)})
    study = Study(
        names=("first", "second"),
        ranks=(1, 4),
        chosen=(0, 1),
        refused=("third at 4 ranks",),
        limits=LONG,
        cases={H200.name: cases},
        errors=held_out([rows], [linear(256, 512)], LONG),
        curve=learning_curve(rows, (4,), (0,)),
    )
    text = report(study)
    saved = 1 - cases.hours("across sizes", Assumptions())[-1] / cases.hours("separately", Assumptions())[-1]
    assert f"{100 * saved:.1f} % |" in text
    assert "third at 4 ranks" in text
    assert "56.4 %" in text
    assert "nan" not in text
    document = figures(study)
    assert document["devices"][H200.name]["strategies"]["separately"]["cases"] == cases.num_timed("separately", (0, 1))
    assert np.isfinite(document["devices"][H200.name]["exact_sharing_of_12_models"]).all()
    sharing = sharing_of(cases.models, [[portable(LINEAR), SAMPLER], [portable(LINEAR), reduced(4)]])
    save_sharing(sharing, tmp_path / "sharing.png")
    for save in (save_hours, save_savings):
        save({"H200": cases}, (0, 1), Assumptions(), tmp_path / f"{save.__name__}.png")
    drawn = list(tmp_path.glob("*.png"))
    assert len(drawn) == 3
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
