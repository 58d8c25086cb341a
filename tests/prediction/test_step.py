"""Predictions against sums that are done by hand, and the virtual scheduler against steps written out."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dooly.core.batch import Batch, Limits, SweepPoint
from pytest_dooly.core.operation import LAUNCH, OperationKind
from pytest_dooly.core.routing import RoutingDistribution
from pytest_dooly.core.schedule import schedule
from pytest_dooly.core.signature import ServedModel, Signature
from pytest_dooly.core.workload import Workload
from pytest_dooly.errors import ConfigurationError, MissingMeasurements
from pytest_dooly.prediction.step import predict_step, step_operations
from pytest_dooly.prediction.workload import predict_workload
from pytest_dooly.regress.regressor import Regressor
from pytest_dooly.sweep.grid import sweep
from tests.samples import (
    ADMISSION,
    LIMITS,
    LINEAR,
    MIXTURE,
    TOKENS,
    fitted,
    model_and_regressors,
    served,
    uses,
)

MODEL = model_and_regressors()


def batches(workload: Workload, limits: Limits = LIMITS) -> list[str]:
    return [str(step.batch) for step in schedule(workload, limits)]


def test_a_step_is_the_sum_of_its_operations() -> None:
    model, regressors = model_and_regressors()
    step = predict_step(model, regressors, Batch.parse("3x1+32,61"))
    by_label = {operation.label: operation for operation in step.operations}
    assert by_label["linear-64x128-bf16"].latency_s == pytest.approx(3 * 64 * 10e-6, rel=1e-3)
    assert by_label["linear-64x128-bf16"].multiplicity == 3
    assert by_label["attention-4h2kv16-bf16"].latency_s == pytest.approx(2 * 4e-6, rel=1e-2)
    assert by_label["sampler-256-fp32"].latency_s == pytest.approx(4 * 2e-6, rel=1e-3)
    assert "admission" not in by_label
    assert step.latency_s == pytest.approx(sum(operation.latency_s for operation in step.operations))
    assert step.out_of_range == ()


def launching(launch_s: float) -> tuple[ServedModel, dict[str, Regressor]]:
    """The model on a GPU whose host takes that long to launch each of its 3 decoder layers."""
    model, regressors = model_and_regressors()
    launch = Signature(OperationKind.OVERHEAD, LAUNCH, (), (), "num_tokens")
    regressors[launch.key] = fitted(launch, lambda p: launch_s, TOKENS)
    return served(*model.operations, uses(launch, 3)), regressors


@pytest.mark.parametrize("launch_s", [1e-6, 100e-6])
def test_launches_hide_behind_the_forward_pass_as_far_as_it_reaches(launch_s: float) -> None:
    batch, workload = Batch.parse("2x1+32"), Workload(2, 1, 1)
    linears_s, per_request_s = 3 * 2 * 10e-6, 2 * 1e-6  # the sampler and the step come after
    step, alone = (predict_step(*each, batch) for each in (launching(launch_s), model_and_regressors()))
    exposed_s = max(0, 3 * launch_s - linears_s - 2 * per_request_s)
    assert step.latency_s - alone.latency_s == pytest.approx(exposed_s, rel=1e-2)
    ttfts = [predict_workload(*each, workload).ttft_s for each in (launching(launch_s), model_and_regressors())]
    assert ttfts[0] - ttfts[1] == pytest.approx(max(0, 3 * launch_s - linears_s - per_request_s), rel=1e-2)


def test_a_missing_regressor_is_named_with_what_to_run() -> None:
    model, regressors = model_and_regressors()
    del regressors[LINEAR.key]
    with pytest.raises(MissingMeasurements, match=r"linear-64x128-bf16: run pytest --dooly-model=small"):
        predict_step(model, regressors, Batch.uniform(1, 1))


def test_one_request_is_prefilled_then_decoded() -> None:
    assert batches(Workload(100, 3, 1)) == ["100+0", "1+100", "1+101"]


def test_a_long_prompt_is_cut_into_chunks() -> None:
    steps = list(schedule(Workload(600, 2, 1), LIMITS))
    assert [str(step.batch) for step in steps] == ["512+0", "88+512", "1+600"]
    assert [step.first for step in steps] == [(), (0,), ()]
    assert [step.last for step in steps] == [(), (), (0,)]


def test_requests_share_the_token_budget_in_order_of_arrival() -> None:
    assert batches(Workload(300, 2, 2)) == ["300+0,212+0", "1+300,88+212", "1+300"]


def test_requests_wait_for_a_seat() -> None:
    limits = Limits(max_num_tokens=512, max_num_seqs=2, max_model_len=1024)
    steps = list(schedule(Workload(10, 2, 3), limits))
    assert [str(step.batch) for step in steps] == ["2x10+0", "2x1+10", "10+0", "1+10"]
    assert [step.last for step in steps] == [(), (0, 1), (), (2,)]


def test_a_request_arrives_when_another_ends() -> None:
    steps = list(schedule(Workload(10, 3, 2, num_reqs=4), Limits(max_num_tokens=15, max_num_seqs=8, max_model_len=64)))
    assert [str(step.batch) for step in steps] == [
        "10+0,5+0",
        "1+10,5+5",
        "1+11,1+10",  # the first ends
        "1+11,10+0",  # the second ends
        "1+10,10+0",
        "1+11,1+10",
        "1+11",
    ]
    assert [step.arriving for step in steps] == [(), (), (2,), (3,), (), (), ()]
    assert [step.first for step in steps] == [(0,), (1,), (), (2,), (3,), (), ()]
    assert [step.last for step in steps] == [(), (), (0,), (1,), (), (2,), (3,)]


def test_a_request_s_clock_starts_when_it_arrives() -> None:
    """Two requests one after the other are one request twice: nothing waits."""
    model, regressors = model_and_regressors()
    once = predict_workload(model, regressors, Workload(100, 8, 1))
    twice = predict_workload(model, regressors, Workload(100, 8, 1, num_reqs=2))
    assert twice.duration_s == pytest.approx(2 * once.duration_s)
    assert twice.ttft_s == pytest.approx(once.ttft_s)
    assert twice.tpot_s == pytest.approx(once.tpot_s)
    assert twice.num_steps == 2 * once.num_steps


def test_requests_that_follow_disturb_those_that_decode() -> None:
    model, regressors = model_and_regressors()
    together, following = (
        predict_workload(model, regressors, Workload(400, 32, 4, num_reqs)) for num_reqs in (None, 40)
    )
    assert together.tpot_s is not None
    assert following.tpot_s is not None
    assert following.tpot_s > 1.5 * together.tpot_s  # three prompts of others in a request's life, not half as many
    assert following.ttft_s < 0.7 * together.ttft_s  # most arrive where one seat is free


requests_in_all = st.none() | st.integers(20, 50)


@given(
    st.integers(1, 900), st.integers(1, 60), st.integers(1, 20), requests_in_all, st.integers(1, 600), st.integers(1, 9)
)
def test_every_schedule_does_all_work_within_the_limits(
    prompt_len: int, output_len: int, concurrency: int, num_reqs: int | None, budget: int, seats: int
) -> None:
    limits = Limits(max(budget, seats), seats, 1024)
    workload = Workload(prompt_len, output_len, concurrency, num_reqs)
    steps = list(schedule(workload, limits))
    assert sum(step.batch.num_tokens for step in steps) == workload.total_reqs * (prompt_len + output_len - 1)
    assert all(step.batch.num_tokens <= limits.max_num_tokens and step.batch.num_reqs <= seats for step in steps)
    assert sorted(request for step in steps for request in step.first) == list(range(workload.total_reqs))
    assert sorted(request for step in steps for request in step.last) == list(range(workload.total_reqs))
    assert [request for step in steps for request in step.arriving] == list(range(concurrency, workload.total_reqs))


def one_step_at_a_time(workload: Workload, limits: Limits) -> list[tuple[tuple[int, int], ...]]:
    """(query_len, context_len) of every request in every step, by the rules alone."""
    computed = [0] * workload.concurrency
    total, steps = workload.prompt_len + workload.output_len - 1, []
    while any(tokens < total for tokens in computed):
        budget, parts = limits.max_num_tokens, []
        seated = [request for request, tokens in enumerate(computed) if tokens < total][: limits.max_num_seqs]
        for request in seated:
            query_len = min(budget, max(1, workload.prompt_len - computed[request]))
            if query_len:
                parts.append((query_len, computed[request]))
            budget -= query_len
            computed[request] += query_len
        steps.append(tuple(parts))
        ended = sum(tokens >= total for tokens in computed)
        computed += [0] * (min(workload.total_reqs, workload.concurrency + ended) - len(computed))
    return steps


@given(
    st.integers(1, 60), st.integers(1, 12), st.integers(1, 9), requests_in_all, st.integers(1, 100), st.integers(1, 5)
)
def test_decodes_that_are_taken_together_are_steps_like_any_other(
    prompt_len: int, output_len: int, concurrency: int, num_reqs: int | None, budget: int, seats: int
) -> None:
    workload, limits = Workload(prompt_len, output_len, concurrency, num_reqs), Limits(max(budget, seats), seats, 1024)
    steps = [tuple((r.query_len, r.context_len) for r in step.batch.requests) for step in schedule(workload, limits)]
    assert steps == one_step_at_a_time(workload, limits)


@given(st.integers(1, 900), st.integers(1, 40), st.integers(1, 12))
def test_a_workload_takes_as_long_as_its_steps(prompt_len: int, output_len: int, concurrency: int) -> None:
    model, regressors = MODEL
    workload = Workload(prompt_len, output_len, concurrency)
    steps = list(schedule(workload, LIMITS))
    seconds = [predict_step(model, regressors, step.batch).latency_s for step in steps]
    first = {request: sum(seconds[: i + 1]) for i, step in enumerate(steps) for request in step.first}
    last = {request: sum(seconds[: i + 1]) for i, step in enumerate(steps) for request in step.last}
    prediction = predict_workload(model, regressors, workload)
    assert prediction.num_steps == len(steps)
    waited = 50e-6 * (concurrency + 1) / 2  # for the admissions, on average
    assert prediction.ttft_s == pytest.approx(sum(first.values()) / concurrency + waited, rel=1e-3)
    decoding = sum(last[request] - first[request] for request in first) / concurrency
    assert (prediction.tpot_s or 0) * (output_len - 1) == pytest.approx(decoding)


def mixture() -> tuple[ServedModel, dict[str, Regressor]]:
    """A model of one mixture of experts that takes 10 µs an activated expert and 1 µs a token of the busiest one."""

    def latency_s(point: SweepPoint) -> float:
        assert point.routing is not None
        return 10e-6 * point.routing.activated + 1e-6 * point.routing.busiest

    model = served(uses(MIXTURE, 2), uses(ADMISSION))
    return model, {
        MIXTURE.key: fitted(MIXTURE, latency_s, sweep(MIXTURE, LIMITS)),
        ADMISSION.key: fitted(ADMISSION, lambda _: 50e-6, TOKENS),
    }


@pytest.mark.parametrize("text", ["uniform", "zipf:1.2", "4,4,2,2,1,1,1,1"])
def test_a_mixture_is_predicted_for_the_routing_that_is_expected(text: str) -> None:
    model, regressors = mixture()
    routing = RoutingDistribution.parse(text)
    for tokens in (2, 40, 300):
        activated, busiest = routing.expectations([tokens], 8, 2)
        step = predict_step(model, regressors, Batch.uniform(1, tokens), routing=routing)
        expected = 2 * (10e-6 * activated[0] + 1e-6 * busiest[0])
        assert step.latency_s == pytest.approx(expected, rel=0.02)
        assert step.out_of_range == ()


def test_a_rank_of_experts_meets_its_share_of_those_that_are_expected() -> None:
    """Eight of 32 experts on each of four ranks: the step waits for the busiest expert of all."""
    spread = replace(MIXTURE, attributes=(("num_experts", 32), ("num_local_experts", 8), ("top_k", 2)))
    _, regressors = mixture()
    models = {spread.key: regressors[MIXTURE.key]}
    for tokens in (8, 40, 300):
        activated, busiest = RoutingDistribution().expectations([tokens], 32, 2)
        step = predict_step(served(uses(spread)), models, Batch.uniform(1, tokens))
        assert step.latency_s == pytest.approx(10e-6 * activated[0] / 4 + 1e-6 * busiest[0], rel=0.02)


def test_operations_of_a_step_are_those_of_its_latencies() -> None:
    model, regressors = model_and_regressors()
    operations = step_operations(model)
    assert ADMISSION not in {operation.signature for operation in operations}
    assert [operation.signature.label for operation in operations] == [
        operation.label for operation in predict_step(model, regressors, Batch.uniform(1, 1)).operations
    ]


def test_skewed_routing_changes_a_workload() -> None:
    model, regressors = mixture()
    uniform, skewed = (
        predict_workload(model, regressors, Workload(100, 4, 2), routing=RoutingDistribution.parse(text))
        for text in ("uniform", "zipf:2")
    )
    assert uniform == predict_workload(model, regressors, Workload(100, 4, 2))
    assert skewed.ttft_s > uniform.ttft_s  # a prompt reaches every expert, and waits for the busiest
    assert skewed.tpot_s is not None
    assert uniform.tpot_s is not None
    assert skewed.tpot_s < uniform.tpot_s  # a decode reaches fewer experts


def test_a_routing_of_another_model_is_refused() -> None:
    model, regressors = mixture()
    with pytest.raises(ConfigurationError, match="has 2 shares for 8 experts"):
        predict_step(model, regressors, Batch.uniform(1, 8), routing=RoutingDistribution(shares=(1, 2)))


def test_a_request_longer_than_the_model_allows_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"1000 \+ 25 tokens exceed max_model_len 1024"):
        list(schedule(Workload(1000, 25, 1), LIMITS))


def test_a_workload_needs_something_to_do() -> None:
    with pytest.raises(ConfigurationError, match="at least 1"):
        Workload(0, 1, 1)
    with pytest.raises(ConfigurationError, match="2 requests in all cannot be 3 at once"):
        Workload(1, 1, 3, num_reqs=2)


def test_ttft_and_tpot_add_up() -> None:
    model, regressors = model_and_regressors()
    prediction = predict_workload(model, regressors, Workload(100, 3, 2))
    prefill = 3 * 200 * 10e-6 + 2 * 2e-6 + 2 * 2e-6 + 100e-6
    decode = 3 * 2 * 10e-6 + 2 * 2e-6 + 2 * 2e-6 + 100e-6
    admissions = (2 * 50e-6 + 1 * 50e-6) / 2  # the first request waits for both admissions, the second for its own
    assert prediction.num_steps == 3
    assert prediction.ttft_s == pytest.approx(admissions + prefill, rel=1e-2)
    assert prediction.tpot_s == pytest.approx(decode, rel=2e-2)


def test_one_token_has_no_tpot() -> None:
    model, regressors = model_and_regressors()
    assert predict_workload(model, regressors, Workload(100, 1, 1)).tpot_s is None


def test_out_of_range_is_told_once_for_each_operation() -> None:
    model, regressors = model_and_regressors()
    prediction = predict_workload(model, regressors, Workload(900, 20, 8))
    assert [line.partition(":")[0] for line in prediction.out_of_range] == [
        "attention-4h2kv16-bf16",
        "step",
        "admission",
    ][: len(prediction.out_of_range)]
    step = predict_step(model, regressors, Batch.uniform(1, 2000))
    assert any(line.startswith("linear-64x128-bf16: ") for line in step.out_of_range)
