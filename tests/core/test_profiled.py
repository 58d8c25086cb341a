"""How noisy a machine was, and what a profiling run keeps of itself."""

from __future__ import annotations

import json

import pytest

from pytest_dooly.core.measurement import Measurement
from pytest_dooly.core.profiled import MachineNoise, Profiled


def outcome(iqr_s: float) -> Measurement:
    return Measurement(rounds=25, min_s=0.9, median_s=1.0, mean_s=1.0, iqr_s=iqr_s)


def test_noise_from_case_to_case_adds_to_what_the_rounds_know() -> None:
    levels_s = [1.0, 1.05, 0.95, 1.1, 0.9, 1.0, 1.05]
    noise = MachineNoise.of(levels_s, [outcome(0.0), outcome(0.1), outcome(0.2)], waited_s=1.5)
    assert noise is not None
    assert noise.spread == pytest.approx(1.4826 * 0.05)
    assert noise.precision == pytest.approx(1.96 * 1.253 * (0.1 / 1.349) / 5)
    assert noise.reproducibility == pytest.approx((noise.precision**2 + (1.96 * noise.spread) ** 2) ** 0.5)
    assert noise.waited_s == 1.5


def test_a_quiet_machine_leaves_the_interval_as_it_is() -> None:
    noise = MachineNoise.of([1.0] * 5, [outcome(0.1)], waited_s=0.0)
    assert noise is not None
    assert noise.reproducibility == noise.precision > 0


@pytest.mark.parametrize(("levels_s", "outcomes"), [([], []), ([1.0] * 4, [outcome(0.1)]), ([1.0] * 5, [])])
def test_nothing_is_said_of_too_few_cases(levels_s: list[float], outcomes: list[Measurement]) -> None:
    assert MachineNoise.of(levels_s, outcomes, waited_s=0.0) is None


@pytest.mark.parametrize("machine", [None, MachineNoise(0.05, 0.02, 3.0)])
def test_what_a_run_has_done_comes_back_the_same(machine: MachineNoise | None) -> None:
    profiled = Profiled({"a": 3}, {"b": 2}, 12.5, 7.0, machine)
    assert Profiled.from_json(json.loads(json.dumps(profiled.to_json()))) == profiled
