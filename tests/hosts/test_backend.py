"""Step times for hosts: what the predictor says, in any order, once for equal steps, within the model's limits."""

from __future__ import annotations

import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pytest_dooly
from pytest_dooly.core.batch import Batch
from pytest_dooly.errors import ConfigurationError, MissingMeasurements
from pytest_dooly.hosts.backend import Backend
from pytest_dooly.prediction.step import predict_step
from pytest_dooly.prediction.step_times import Shape, StepTimes
from tests.samples import LIMITS, model_and_regressors

MODEL, REGRESSORS = model_and_regressors()
STEP = [(1, 512), (1, 40), (1, 512), (100, 0), (30, 60)]


@pytest.fixture(scope="module")
def backend() -> Backend:
    return Backend(StepTimes(MODEL, REGRESSORS))


@pytest.mark.parametrize("seed", range(10))
def test_a_step_takes_what_the_predictor_says(backend: Backend, seed: int) -> None:
    draw = random.Random(seed)
    step = [(1, draw.randint(1, 900)) for _ in range(draw.randint(0, 5))] + [(draw.randint(2, 200), 0)]
    exact_s = predict_step(MODEL, REGRESSORS, Batch.of(step)).latency_s
    assert backend.step_s(step) == pytest.approx(exact_s, rel=0.02)
    assert backend.steps_s([step, step]) == [backend.step_s(step)] * 2


def test_only_what_decides_is_asked_of_a_step(backend: Backend) -> None:
    shuffled = [STEP[3], STEP[2], STEP[4], STEP[0], STEP[1]]
    assert backend.step_s(shuffled) == backend.step_s(STEP)
    assert backend.step_s([(1, 256), (1, 768)]) == backend.step_s([(1, 512)] * 2)
    assert backend.step_s(iter(STEP)) == backend.step_s(STEP)
    numbers: Any = (np.int64(1), np.int64(512))
    assert backend.step_s([numbers]) == backend.step_s([(1, 512)])


def test_equal_steps_are_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Shape] = []
    exact = StepTimes.step_s

    def noted(self: StepTimes, step: Shape) -> float:
        asked.append(step)
        return exact(self, step)

    monkeypatch.setattr(StepTimes, "step_s", noted)
    backend = Backend(StepTimes(MODEL, REGRESSORS))
    assert len({backend.step_s(STEP) for _ in range(3)}) == 1
    assert [(step.num_decodes, step.decode_tokens, step.num_tokens) for step in asked] == [(3, 1064, 133)]


def test_a_worker_gets_the_tables(backend: Backend) -> None:
    sent = pickle.loads(pickle.dumps(backend))  # noqa: S301 - our own
    assert sent.step_s(STEP) == backend.step_s(STEP)
    assert sent.model == backend.model
    assert sent.step_s([(1, 1000)] * 8) > 0
    assert sent.out_of_range() == ()


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ([], "a step needs at least one request"),
        ([(0, 5)], r"query_len >= 1 and context_len >= 0, got 0\+5"),
        ([(-3, 5)], r"got -3\+5"),
        ([(1, -1)], r"got 1\+-1"),
        ([(2, -1), (1, 8)], r"got 2\+-1"),
        ([(300, 0), (213, 0)], "a step of 513 tokens is beyond max_num_tokens 512, which small is served with"),
        ([(1, 5)] * 9, "a step of 9 requests is beyond max_num_seqs 8"),
        ([(1, 1024)], "a request of 1,025 tokens is beyond max_model_len 1,024"),
        ([(100, 925)], "a request of 1,025 tokens is beyond max_model_len 1,024"),
        ([(1, 5.5)], "whole numbers"),
        ([(1.5, 0)], "whole numbers"),
        ([(1, float("nan"))], "whole numbers"),
        ([(7, float("nan"))], "whole numbers"),
        ([(1, 2, 3)], "whole numbers"),
        ([1, 2], "whole numbers"),
        ([("1", "2")], "whole numbers"),
    ],
)
def test_what_no_step_can_be_is_one_message(backend: Backend, step: list[tuple[int, int]], message: str) -> None:
    for _ in range(2):  # remembered it is not
        with pytest.raises(ConfigurationError, match=message):
            backend.step_s(step)


def test_the_widest_steps_are_answered(backend: Backend) -> None:
    widest = [(1, LIMITS.max_model_len - 1)] * LIMITS.max_num_seqs
    assert backend.step_s(widest) > backend.step_s([(1, 1)])
    assert backend.step_s([(LIMITS.max_num_tokens, LIMITS.max_model_len - LIMITS.max_num_tokens)]) > 0
    assert any("attention" in line for line in backend.out_of_range())


def test_a_model_of_a_latency_db_on_a_named_gpu(db: Path) -> None:
    backend = pytest_dooly.backend("planned", device="h100_sxm", db=db)
    assert isinstance(backend, pytest_dooly.Backend)
    faster = pytest_dooly.backend("planned", device="b200_sxm", db=db, routing="zipf:1.2")
    assert 0 < faster.step_s([(1, 512)]) < backend.step_s([(1, 512)])


def test_what_is_unknown_is_one_message(db: Path) -> None:
    with pytest.raises(ConfigurationError, match="unknown device 'abacus'"):
        pytest_dooly.backend("planned", device="abacus", db=db)
    with pytest.raises(ConfigurationError, match="as a routing"):
        pytest_dooly.backend("planned", device="h100_sxm", db=db, routing="skewed")
    with pytest.raises(MissingMeasurements, match="no model 'other', only planned"):
        pytest_dooly.backend("other", device="h100_sxm", db=db)


def test_a_process_that_is_sent_a_back_end_needs_no_pandas(backend: Backend) -> None:
    code = (
        "import sys, pickle; b = pickle.load(sys.stdin.buffer); b.step_s([(1, 5), (8, 0)]); b.steps_s([[(1, 7)]]); "
        "assert not {'torch', 'vllm', 'pandas', 'sqlite_utils', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, input=pickle.dumps(backend))
