"""Workloads of a validation: within limits and budget, all over the space, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dooly.core.batch import Limits
from pytest_dooly.core.workload import Workload
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.prediction.draw import draw, grid, prefills_beside_decodes
from pytest_dooly.prediction.step_times import StepTimes
from pytest_dooly.prediction.workload import predict_workload
from tests.samples import model_and_regressors, served

SMALL, REGRESSORS = model_and_regressors()
LIMITS = Limits(max_num_tokens=512, max_num_seqs=32, max_model_len=2304)
MODEL = served(*SMALL.operations, limits=LIMITS)
TIMES = StepTimes(MODEL, REGRESSORS)
CORNERS = {Workload(prompt, output, num) for prompt in (32, 2048) for output in (1, 128) for num in (1, 32)}


def cost_s(workload: Workload) -> float:
    return predict_workload(TIMES, workload).duration_s


def test_the_grid_leaves_out_what_the_engine_cannot_run() -> None:
    assert grid(Limits(512, 4, 128), [32, 120], [1, 8], [16, 2]) == (
        Workload(32, 16, 1),
        Workload(32, 2, 1),
        Workload(120, 2, 1),
    )


def test_without_a_tight_budget_the_draw_has_every_corner_and_fills_what_is_between() -> None:
    drawn = draw(MODEL, REGRESSORS, budget_s=1e6)
    assert len(set(drawn.workloads)) == len(drawn.workloads) == 24
    assert set(drawn.workloads) > CORNERS
    assert drawn.replaced == ()
    assert drawn.cost_s == pytest.approx(sum(map(cost_s, drawn.workloads)))
    # Every half of every axis, in the logarithm, has its share of the inner workloads.
    inner = np.log2([(w.prompt_len, w.concurrency, w.output_len) for w in drawn.workloads[8:]])
    assert (inner > np.log2([256, 32**0.5, 128**0.5])).mean(0) == pytest.approx(np.full(3, 0.5), abs=0.15)


@pytest.mark.parametrize("seed", range(5))
def test_chunks_run_beside_decodes_in_many_of_the_drawn(seed: int) -> None:
    for budget_s in (1e6, 75.0, 10.0):
        drawn = draw(MODEL, REGRESSORS, budget_s=budget_s, seed=seed).workloads
        assert sum(prefills_beside_decodes(workload, LIMITS) for workload in drawn) >= 4


def test_a_budget_shrinks_what_is_dear_and_leaves_the_rest() -> None:
    dear = draw(MODEL, REGRESSORS, budget_s=1e6)
    drawn = draw(MODEL, REGRESSORS, budget_s=dear.cost_s / 4)
    assert len(drawn.workloads) == 24
    assert 0.8 * dear.cost_s / 4 < drawn.cost_s <= dear.cost_s / 4
    ran = {replacement.ran: replacement.asked for replacement in drawn.replaced}
    assert ran
    assert set(ran) < set(drawn.workloads)
    assert {ran.get(workload, workload) for workload in drawn.workloads} == set(dear.workloads)
    kept = set(drawn.workloads) - set(ran)
    for shrunk, asked in ran.items():
        assert cost_s(shrunk) < cost_s(asked)
        assert cost_s(asked) > max(cost_s(workload) for workload in kept - CORNERS)
        assert shrunk.prompt_len <= asked.prompt_len
        assert shrunk.output_len <= asked.output_len
        assert shrunk.concurrency <= asked.concurrency


def test_a_tight_budget_still_reaches_the_end_of_every_axis() -> None:
    ends = {Workload(32, 1, 1), Workload(2048, 1, 1), Workload(32, 128, 1), Workload(32, 1, 32)}
    budget_s = 3 * sum(map(cost_s, ends))
    drawn = draw(MODEL, REGRESSORS, budget_s=budget_s)
    assert set(drawn.workloads) & CORNERS == ends
    assert len(drawn.workloads) == 24
    assert drawn.cost_s <= budget_s


@given(
    budget_s=st.floats(0.05, 1000),
    points=st.integers(1, 40),
    seed=st.integers(0, 99),
    limits=st.builds(
        Limits,
        max_num_tokens=st.integers(2, 600),
        max_num_seqs=st.integers(1, 40),
        max_model_len=st.integers(2, 2500),
    ),
)
def test_no_draw_exceeds_limits_points_or_budget(budget_s: float, points: int, seed: int, limits: Limits) -> None:
    model = served(*SMALL.operations, limits=limits)
    drawn = draw(model, REGRESSORS, budget_s=budget_s, points=points, seed=seed)
    assert drawn == draw(model, REGRESSORS, budget_s=budget_s, points=points, seed=seed)
    assert 1 <= len(set(drawn.workloads)) == len(drawn.workloads) <= points
    assert drawn.cost_s <= budget_s * (1 + 1e-9)
    for workload in drawn.workloads:
        assert workload.prompt_len + workload.output_len <= limits.max_model_len
        assert workload.concurrency <= limits.max_num_seqs


def test_another_seed_draws_others_but_keeps_the_corners() -> None:
    first, second = (set(draw(MODEL, REGRESSORS, budget_s=1e6, seed=seed).workloads) for seed in (0, 1))
    assert first & second == CORNERS


def test_limits_that_leave_room_for_few_give_few() -> None:
    model = served(*SMALL.operations, limits=Limits(4, 1, 4))
    assert set(draw(model, REGRESSORS, budget_s=1e6).workloads) <= {
        Workload(prompt, output, 1) for prompt in (1, 2, 3) for output in (1, 2, 3) if prompt + output <= 4
    }


def test_a_budget_below_the_smallest_workload_is_one_clear_error() -> None:
    with pytest.raises(ConfigurationError, match=r"the smallest workload takes 0\.\d+ s, more than the 1e-06 s"):
        draw(MODEL, REGRESSORS, budget_s=1e-6)


@pytest.mark.parametrize(
    ("workload", "mixed"),
    [
        (Workload(2048, 128, 1), False),  # chunks, but no other request to decode
        (Workload(128, 1, 32), False),  # several steps, no decode
        (Workload(32, 128, 16), False),  # all prompts in the first step
        (Workload(400, 8, 4), True),
    ],
)
def test_mixed_steps_are_recognised(workload: Workload, mixed: bool) -> None:
    assert prefills_beside_decodes(workload, LIMITS) is mixed
