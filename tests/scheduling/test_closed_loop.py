"""Equal requests that arrive as others end: the steps that are made of them, against the rules alone."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pytest_dooly.core.batch import Limits
from pytest_dooly.core.workload import Workload
from tests.samples import LIMITS
from tests.scheduling.schedulers import served

requests_in_all = st.none() | st.integers(20, 50)


def batches(workload: Workload, limits: Limits = LIMITS) -> list[str]:
    return [str(step.batch) for step in served(workload, limits)[0]]


def test_one_request_is_prefilled_then_decoded() -> None:
    assert batches(Workload(100, 3, 1)) == ["100+0", "1+100", "1+101"]


def test_a_long_prompt_is_cut_into_chunks() -> None:
    steps, simulated = served(Workload(600, 2, 1))
    assert [str(step.batch) for step in steps] == ["512+0", "88+512", "1+600"]
    assert (simulated.first_s.tolist(), simulated.last_s.tolist()) == ([2.0], [3.0])


def test_requests_share_the_token_budget_in_order_of_arrival() -> None:
    assert batches(Workload(300, 2, 2)) == ["300+0,212+0", "1+300,88+212", "1+300"]


def test_requests_wait_for_a_seat() -> None:
    steps, simulated = served(Workload(10, 2, 3), Limits(max_num_tokens=512, max_num_seqs=2, max_model_len=1024))
    assert [str(step.batch) for step in steps] == ["2x10+0", "2x1+10", "10+0", "1+10"]
    assert simulated.last_s.tolist() == [2.0, 2.0, 4.0]


def test_a_request_arrives_when_another_ends() -> None:
    workload, limits = Workload(10, 3, 2, num_reqs=4), Limits(max_num_tokens=15, max_num_seqs=8, max_model_len=64)
    steps, simulated = served(workload, limits)
    assert [str(step.batch) for step in steps] == [
        "10+0,5+0",
        "1+10,5+5",
        "1+11,1+10",  # the first ends
        "1+11,10+0",  # the second ends
        "1+10,10+0",
        "1+11,1+10",
        "1+11",
    ]
    assert simulated.sent_s.tolist() == [0.0, 0.0, 3.0, 4.0]
    assert simulated.first_s.tolist() == [1.0, 2.0, 4.0, 5.0]
    assert simulated.last_s.tolist() == [3.0, 4.0, 6.0, 7.0]


@given(
    st.integers(1, 900), st.integers(1, 60), st.integers(1, 20), requests_in_all, st.integers(1, 600), st.integers(1, 9)
)
def test_every_schedule_does_all_work_within_the_limits(
    prompt_len: int, output_len: int, concurrency: int, num_reqs: int | None, budget: int, seats: int
) -> None:
    limits = Limits(max(budget, seats), seats, 1024)
    workload = Workload(prompt_len, output_len, concurrency, num_reqs)
    steps, simulated = served(workload, limits)
    assert sum(step.num_tokens for step in steps) == workload.total_reqs * (prompt_len + output_len - 1)
    assert all(step.num_tokens <= limits.max_num_tokens and len(step.requests) <= seats for step in steps)
    assert np.all(simulated.sent_s < simulated.first_s)
    assert np.all(simulated.first_s <= simulated.last_s)
    ends = sorted(simulated.last_s)
    assert simulated.sent_s.tolist() == [0.0] * concurrency + ends[: workload.total_reqs - concurrency]


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
def test_steps_are_what_the_rules_alone_make_of_a_workload(
    prompt_len: int, output_len: int, concurrency: int, num_reqs: int | None, budget: int, seats: int
) -> None:
    workload, limits = Workload(prompt_len, output_len, concurrency, num_reqs), Limits(max(budget, seats), seats, 1024)
    steps = [tuple(zip(s.query_lens, s.context_lens, strict=True)) for s in served(workload, limits)[0]]
    assert steps == one_step_at_a_time(workload, limits)
