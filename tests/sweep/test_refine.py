"""Sweeps stop where the held-out error meets the target, and go on around the points where it does not."""

from __future__ import annotations

import random
from collections.abc import Callable

from pytest_dooly.core.batch import Limits, SweepPoint
from pytest_dooly.core.measurement import Measurement
from pytest_dooly.sweep.grid import refinements, sweep
from pytest_dooly.sweep.refine import Refinement, grid_key
from tests.samples import ATTENTION, LINEAR, measured

LIMITS = Limits(max_num_tokens=4096, max_num_seqs=32, max_model_len=4096)


def refined(latency_s: Callable[[SweepPoint], float], **settings: float) -> tuple[Refinement, list[SweepPoint]]:
    """What is timed beyond the coarse grid, in the order of a run."""
    refinement = Refinement(LINEAR, {point: measured(latency_s(point)) for point in sweep(LINEAR, LIMITS)})
    refinement.noise = settings.get("noise", 0.0)
    timed = []
    for point in refinements(LINEAR, LIMITS):
        if refinement.needs(point):
            refinement.add(point, measured(latency_s(point)))
            timed.append(point)
    return refinement, timed


def tokens(point: SweepPoint) -> float:
    return float(point.num_tokens or 0)


def test_what_a_coarse_grid_shows_needs_no_more_points() -> None:
    refinement, timed = refined(lambda point: 1e-5 + 1e-6 * tokens(point))
    assert timed == []
    assert refinement.error is not None
    assert refinement.error < 0.01


def test_points_are_added_around_a_step_and_not_elsewhere() -> None:
    def steps(point: SweepPoint) -> float:
        return 1e-4 if tokens(point) <= 300 else 2e-3

    _, timed = refined(steps)
    assert timed
    assert len(timed) < len(refinements(LINEAR, LIMITS))
    assert any(128 <= tokens(point) <= 1024 for point in timed)


def test_noise_is_not_chased() -> None:
    draw = random.Random(3)
    noisy = {point: 1e-3 * draw.uniform(0.8, 1.25) for point in (*sweep(LINEAR, LIMITS), *refinements(LINEAR, LIMITS))}
    chased, averaged = (len(refined(lambda point: noisy[point], noise=noise)[1]) for noise in (0.0, 0.09))
    assert averaged < chased


def test_a_noisy_machine_needs_points_to_average_over() -> None:
    def line(point: SweepPoint) -> float:
        return 1e-5 + 1e-6 * tokens(point)

    assert len(refined(line, noise=0.12)[1]) > len(refined(line, noise=0.02)[1]) == 0


def test_too_few_points_need_every_other() -> None:
    first, *rest = sweep(LINEAR, LIMITS)
    refinement = Refinement(LINEAR, {first: measured(1e-3)})
    assert refinement.error is None
    assert all(refinement.needs(point) for point in rest)


def test_a_lower_target_needs_more_points() -> None:
    outcomes = {point: measured(1e-5 * tokens(point) ** 1.5) for point in sweep(LINEAR, LIMITS)}
    needed = [
        sum(Refinement(LINEAR, outcomes, target=target).needs(point) for point in refinements(LINEAR, LIMITS))
        for target in (1e-6, 10.0)
    ]
    assert needed[0] > needed[1] == 0


def test_an_error_within_the_rounds_own_spread_is_none() -> None:
    draw = random.Random(1)

    def outcomes(iqr: float) -> dict[SweepPoint, Measurement]:
        medians = {point: 1e-3 * draw.uniform(0.7, 1.4) for point in sweep(LINEAR, LIMITS)}
        return {point: Measurement(9, s, s, s, iqr * s) for point, s in medians.items()}

    wanted = refinements(LINEAR, LIMITS)
    assert any(Refinement(LINEAR, outcomes(0.01)).needs(point) for point in wanted)
    assert not any(Refinement(LINEAR, outcomes(3.0)).needs(point) for point in wanted)


def test_a_grid_is_known_by_its_points() -> None:
    points = refinements(ATTENTION, LIMITS)
    assert grid_key(points) == grid_key(reversed(points))
    assert grid_key(points) != grid_key(points[1:])
