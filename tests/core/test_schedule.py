"""The steps of the virtual scheduler."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pytest_dooly.core.batch import Limits
from pytest_dooly.core.schedule import schedule
from pytest_dooly.core.workload import Workload
from pytest_dooly.prediction.workload import predict_workload
from tests.samples import (
    LIMITS,
    model_and_regressors,
)

requests_in_all = st.none() | st.integers(20, 50)


def batches(workload: Workload, limits: Limits = LIMITS) -> list[str]:
    return [str(step.batch) for step in schedule(workload, limits)]


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


def test_requests_that_follow_disturb_those_that_decode() -> None:
    model, regressors = model_and_regressors()
    together, following = (
        predict_workload(model, regressors, Workload(400, 32, 4, num_reqs)) for num_reqs in (None, 40)
    )
    assert together.tpot_s is not None
    assert following.tpot_s is not None
    assert following.tpot_s > 1.5 * together.tpot_s  # three prompts of others in a request's life, not half as many
    assert following.ttft_s < 0.7 * together.ttft_s  # most arrive where one seat is free


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
