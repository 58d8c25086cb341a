"""One candidate: excluded, or simulated until its goodput is known."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pytest_dooly.core.configuration import ServingOptions
from pytest_dooly.core.signature import ServedModel
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.searching.evaluate import Evaluator, Question
from pytest_dooly.searching.objective import Objective
from pytest_dooly.searching.outcome import Outcome
from pytest_dooly.simulation.arrivals import AT_ONCE
from pytest_dooly.simulation.lengths import Lengths, PromptAndOutput
from pytest_dooly.simulation.simulate import Engine
from pytest_dooly.simulation.synthetic import SyntheticTraffic
from tests.samples import uses
from tests.searching.samples import LARGE, MODEL, SLO, grid, question, traffic, trials
from tests.traced import MIXTRAL_MOE


@pytest.fixture
def db(tmp_path: Path) -> Path:
    path = tmp_path / "latency.db"
    LatencyDB.open(path).close()
    return path


def evaluated(db: Path, asked: Question, *, model=MODEL, **axes: object) -> list[Outcome]:  # type: ignore[no-untyped-def]
    with Evaluator(db, asked) as evaluator:
        return [evaluator.evaluate(trial) for trial in trials(db, asked, grid(**axes), model)]  # type: ignore[arg-type]


def test_a_goodput_lies_within_its_interval_and_below_its_bound(db: Path) -> None:
    (found,) = evaluated(db, question())
    assert found.excluded is None
    assert 0 < found.low < found.rate < found.high
    assert found.rate < 1.1 * found.bound
    assert max(found.ratios) <= 1
    assert found.limit is not None
    assert found.limit.ratio > 1
    assert sum(cause.share for cause in found.limit.causes) == pytest.approx(1)
    assert found.estimated == pytest.approx(1)
    assert Outcome.from_json(found.to_json()) == found


def test_a_higher_bound_and_more_bandwidth_allow_no_lower_rate(db: Path) -> None:
    (strict,) = evaluated(db, question(Objective.parse("tpot_p90:9ms")))
    (lax,) = evaluated(db, question(Objective.parse("tpot_p90:18ms")))
    assert strict.rate < lax.rate
    on_h100, on_h200 = evaluated(db, question(), devices=("h100_sxm", "h200_sxm"))
    assert on_h100.rate < on_h200.rate


def test_engines_that_share_experts_keep_up_with_more_than_one_of_them(db: Path) -> None:
    """Of a mixture with eight experts: four on each of two engines; one alone has eight, and as much to attend to."""

    def mixture(engines: int) -> ServedModel:
        local = {"num_local_experts": 8 // engines} | ({"data_parallel": engines} if engines > 1 else {})
        tensors = tuple(
            (name, dtype, (8 // engines, *shape[1:]) if "weight" in name else shape)
            for name, dtype, shape in MIXTRAL_MOE.tensors
        )
        experts = dataclasses.replace(
            MIXTRAL_MOE, tensors=tensors, attributes=tuple(sorted((dict(MIXTRAL_MOE.attributes) | local).items()))
        )
        return dataclasses.replace(MODEL, operations=(*MODEL.operations[:2], uses(experts, 16), *MODEL.operations[4:]))

    asked = question(Objective.parse("tpot_p90:25ms"))
    (one,), (two,) = (evaluated(db, asked, model=mixture(engines)) for engines in (1, 2))
    assert (one.excluded, two.excluded) == (None, None)
    assert 1.3 * one.rate < two.rate < 1.1 * two.bound
    assert two.limit is not None
    assert two.limit.num_decodes > one.limit.num_decodes  # type: ignore[union-attr]


def test_what_does_not_fit_is_excluded_without_step_times(db: Path) -> None:
    (found,) = evaluated(db, question(), model=LARGE)
    assert "does not fit on h200_sxm" in (found.excluded or "")
    assert found.simulations == 0
    (found,) = evaluated(db, question(), max_num_seqs=[64], max_num_tokens=[32])
    assert "vLLM refuses" in (found.excluded or "")
    (found,) = evaluated(db, question(traffic=traffic(20, 3000)))
    assert "exceed max_model_len 2048" in (found.excluded or "")


def test_a_request_that_misses_alone_is_not_simulated(db: Path) -> None:
    (found,) = evaluated(db, question(Objective.parse("tpot:2ms,ttft:10s")))
    assert "misses the SLO already: tpot_p99" in (found.excluded or "")
    assert "ttft" not in (found.excluded or "")
    assert found.simulations == 0
    assert found.missed_by > 1


def test_the_ends_are_goodputs_of_slower_and_faster_engines(db: Path) -> None:
    """Times f times as long are the same simulation on a clock f times as slow: the claim behind the interval."""
    asked = question(Objective.parse("tpot_p90:18ms"), tolerance=0.01)
    (trial,) = trials(db, asked, grid())
    with Evaluator(db, asked) as evaluator:
        found = evaluator.evaluate(trial)
        ready = evaluator._ready(trial.place)
        factor = 1.5
        slower = dataclasses.replace(ready, times=Slower(ready.times, factor))  # type: ignore[arg-type]
        evaluator._places[trial.place] = slower
        slow = evaluator.evaluate(trial)
        asked = dataclasses.replace(asked, objective=Objective.parse(f"tpot_p90:{18 / factor}ms"))
    with Evaluator(db, asked) as evaluator:
        scaled = evaluator.evaluate(trial)
    assert slow.rate == pytest.approx(scaled.rate / factor, rel=0.03)
    assert slow.rate < found.rate


class Slower:
    """Step times that are so many times as long."""

    def __init__(self, times, factor: float) -> None:  # type: ignore[no-untyped-def]
        self._times, self._factor = times, factor
        self.model, self.models = times.model, times.models

    def step_s(self, step) -> float:  # type: ignore[no-untyped-def]
        return self._factor * self._times.step_s(step)


def test_few_requests_and_few_kv_blocks_are_told(db: Path) -> None:
    (short,) = evaluated(db, question(Objective.parse("tpot:10s"), traffic=traffic(40, 64, 64)))
    assert "name more --requests" in short.remark
    assert short.limit is None
    assert 0 < short.rate <= short.bound
    assert short.offered >= short.rate
    with pytest.raises(ConfigurationError, match="in 20 requests at least, and in hundreds well: got 19"):
        question(traffic=traffic(19, 64, 64))
    scarce = question(
        Objective.parse("ttft_p99:1s"), engine=Engine(kv_blocks=140), traffic=traffic(60, 256, 128), tolerance=0.1
    )
    (found,) = evaluated(db, scarce)
    assert found.limit is not None
    assert found.limit.causes[0].name == "waiting for KV blocks"
    assert found.limit.used_blocks > 0.8


def test_step_times_are_shared_by_candidates_that_replay_the_same_graphs(db: Path) -> None:
    asked = question()
    of = trials(db, asked, grid(max_num_seqs=[8, 64], max_num_tokens=[512, 2048]))
    assert len({trial.place for trial in of}) == 2
    assert [trial.place.model.limits.captured_tokens for trial in of] == [16, 16, 128, 128]
    assert all(trial.served.limits.captured_tokens == 2 * trial.candidate.max_num_seqs for trial in of)
    assert of[0].place.model.limits.max_model_len == asked.traffic.longest() + 1
    few, many = (trial for trial in of if trial.candidate.max_num_tokens == 2048)
    with Evaluator(db, asked) as evaluator:
        assert evaluator.evaluate(few).rate < evaluator.evaluate(many).rate
        assert len(evaluator._places) == 2


@pytest.mark.parametrize("tolerance", [0.0, 0.9])
def test_questions_that_make_no_sense(tolerance: float) -> None:
    with pytest.raises(ConfigurationError, match="tolerance must be a share"):
        Question(traffic(), SLO, tolerance=tolerance)
    loop = SyntheticTraffic(AT_ONCE, PromptAndOutput(Lengths.fixed(8), Lengths.fixed(8)), concurrency=2)
    with pytest.raises(ConfigurationError, match="no closed loop"):
        Question(loop.draw(num_requests=4), SLO)


@pytest.mark.parametrize("slo", ["ttft_p99:500ms", "tpot_p90:14ms"])
def test_few_requests_say_no_more_than_many(db: Path, slo: str) -> None:
    """A run of few has ended before its queue has grown, and half of it has less under way than the rest."""
    few, many = (
        evaluated(db, question(Objective.parse(slo), traffic=traffic(number, 512, 128)))[0] for number in (150, 3000)
    )
    assert 0.9 * many.rate < few.rate < 1.08 * many.rate
    assert few.low <= few.rate <= few.high
    assert few.rate <= few.bound
    assert max(few.rate, many.rate) < 1.02 * min(few.bound, many.bound)


def test_graphs_that_are_not_captured_are_not_replayed(db: Path) -> None:
    asked = question()
    captured, none = (
        next(iter(trials(db, asked, grid(), options=ServingOptions(max_captured=most)))) for most in (None, 0)
    )
    assert captured.key != none.key
    assert none.served.limits.captured_tokens == none.place.model.limits.captured_tokens == 0
    assert captured.served.limits.captured_tokens > 0
