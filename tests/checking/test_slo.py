"""The smallest workload that breaks an SLO; step times are those that `samples` adds up by hand."""

from __future__ import annotations

import pytest

from pytest_dooly.checking.slo import smallest_that_breaks
from pytest_dooly.core.workload import Workload
from pytest_dooly.searching.objective import Objective
from pytest_dooly.simulation.predicted_model import PredictedModel
from tests.samples import model_and_regressors

MODEL = PredictedModel(*model_and_regressors())


@pytest.mark.parametrize(
    ("slo", "smallest"),
    [
        # 30 µs a token, and 154 µs for attention, sampler, step and admission.
        ("ttft:10ms", Workload(329, 1, 1)),
        ("ttft:10s", None),
        ("tpot:10s,e2el:1ms", Workload(1, 8, 1)),
    ],
)
def test_fewest_requests_then_the_shortest_prompt(slo: str, smallest: Workload | None) -> None:
    broken = smallest_that_breaks(MODEL, Objective.parse(slo), examples=30)
    assert (broken and broken.workload) == smallest


def test_requests_that_disturb_each_other_break_a_tpot_and_bounds_are_heeded() -> None:
    slo = Objective.parse("tpot_mean:1ms")
    broken = smallest_that_breaks(MODEL, slo, examples=30)
    assert broken is not None
    assert broken.workload.output_len == 2  # one token that waits for others' prompts
    fewer = smallest_that_breaks(MODEL, slo, max_concurrency=broken.workload.concurrency - 1, examples=30)
    assert fewer is None
    assert "--concurrency" in str(broken)
    assert "of 1.00 ms" in str(broken)
    assert smallest_that_breaks(MODEL, slo, max_prompt_len=10, max_output_len=4, examples=30) is None
