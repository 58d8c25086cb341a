"""Public strategies: within the limits of what they were given, and the simplest of what fails is what is left."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis.strategies import SearchStrategy

from pytest_dooly import strategies
from pytest_dooly.core.batch import Batch, Limits, SweepPoint
from pytest_dooly.core.configuration import ServingOptions, resolve
from pytest_dooly.core.traffic import Traffic, TrafficRequest
from pytest_dooly.core.workload import Workload
from pytest_dooly.errors import ConfigurationError, UnknownModelError
from tests.samples import LIMITS, LINEAR, MIXTURE, SAMPLER, served, uses

T = TypeVar("T")

SHRINKS = settings(
    max_examples=300,
    database=None,
    derandomize=True,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)


def simplest(strategy: SearchStrategy[T], fails: Callable[[T], bool]) -> T:
    return find(strategy, fails, settings=SHRINKS)


def within(batch: Batch, limits: Limits) -> bool:
    return (
        batch.num_tokens <= limits.max_num_tokens
        and batch.num_reqs <= limits.max_num_seqs
        and max(request.seq_len for request in batch.requests) <= limits.max_model_len
    )


@given(strategies.batches("llama3", max_num_tokens=8192, max_kv_tokens=20_000))
def test_a_batch_is_within_the_limits_of_a_model_by_name(batch: Batch) -> None:
    assert within(batch, Limits(8192, 256, 131_072))
    assert sum(request.seq_len for request in batch.requests) <= 20_000
    assert eval(repr(batch)) == batch  # noqa: S307 - our own repr


@given(strategies.batches(served(), max_num_seqs=3))
def test_a_batch_is_within_the_limits_of_what_is_served(batch: Batch) -> None:
    assert within(batch, Limits(LIMITS.max_num_tokens, 3, LIMITS.max_model_len))


@given(strategies.batches(Limits(1, 1, 1)))
def test_the_smallest_limits_leave_the_smallest_batch(batch: Batch) -> None:
    assert batch == Batch.parse("1")


@pytest.mark.parametrize(
    ("fails", "left"),
    [
        (lambda batch: batch.num_tokens >= 513, "513+0"),
        (lambda batch: sum(request.context_len for request in batch.requests) >= 10_000, "1+10000"),
        (lambda batch: batch.num_reqs >= 33, "33x1+0"),
        (lambda batch: 3 * batch.num_tokens + sum(r.seq_len for r in batch.requests) / 100 > 2000, "665+0"),
        (lambda batch: batch.requests[0].context_len and not batch.requests[-1].context_len, "1+1,1+0"),
    ],
    ids=["tokens", "context", "requests", "cost", "mixed"],
)
def test_a_batch_shrinks_to_one_request_and_small_numbers(fails: Callable[[Batch], bool], left: str) -> None:
    batch = simplest(strategies.batches("llama3", max_num_tokens=8192), fails)
    assert str(batch) == left


def test_every_kind_of_batch_is_drawn() -> None:
    kinds = set()

    @settings(max_examples=200, database=None, derandomize=True, phases=[Phase.generate])
    @given(strategies.batches("llama3"))
    def look(batch: Batch) -> None:
        decodes = [r for r in batch.requests if r.query_len == 1 and r.context_len]
        kinds.update(
            {"ragged"} if len({r.context_len for r in decodes}) > 8 else {"decodes"} if decodes else {"prompts"}
        )
        kinds.update({"later chunk"} if any(r.query_len > 1 and r.context_len for r in batch.requests) else ())
        kinds.update({"full"} if batch.num_tokens > 1024 else {"few"} if batch.num_tokens < 8 else ())

    look()
    assert kinds == {"ragged", "decodes", "prompts", "later chunk", "full", "few"}


@given(strategies.workloads("llama3", max_prompt_len=4096, max_output_len=64, max_concurrency=8, max_num_reqs=20))
def test_a_workload_is_within_its_bounds(workload: Workload) -> None:
    assert workload.prompt_len <= 4096
    assert workload.output_len <= 64
    assert workload.concurrency <= 8
    assert workload.total_reqs <= 20


@given(strategies.workloads(LIMITS))
def test_a_request_of_a_workload_is_within_max_model_len(workload: Workload) -> None:
    assert workload.prompt_len + workload.output_len <= LIMITS.max_model_len
    assert workload.concurrency <= LIMITS.max_num_seqs
    assert workload.num_reqs is None


def test_a_workload_shrinks_to_one_request_then_a_short_prompt_then_a_short_output() -> None:
    of = strategies.workloads(LIMITS)
    assert simplest(of, lambda workload: True) == Workload(1, 1, 1)
    assert simplest(of, lambda workload: workload.prompt_len * workload.concurrency > 300) == Workload(301, 1, 1)
    assert simplest(of, lambda workload: workload.output_len > 9 and workload.concurrency > 2) == Workload(1, 10, 3)


@pytest.mark.parametrize(
    ("strategy", "printed"),
    [
        (strategies.batches(LIMITS), "value=Batch.parse('1+0')"),
        (strategies.workloads(LIMITS), "value=Workload(prompt_len=1, output_len=1, concurrency=1, num_reqs=None)"),
        (
            strategies.traffic(LIMITS),
            "value=Traffic(requests=(TrafficRequest(arrival_s=0.0, prompt_len=1,",
        ),
        (strategies.serving_options("llama-tiny"), "value=ServingOptions("),
    ],
)
def test_a_failing_example_prints_as_what_makes_it_again(strategy: SearchStrategy[object], printed: str) -> None:
    @SHRINKS
    @given(value=strategy)
    def fails(value: object) -> None:
        raise AssertionError

    with pytest.raises(AssertionError) as raised:
        fails()
    said = " ".join(" ".join(raised.value.__notes__).split()).replace("( ", "(")
    assert printed in said


@given(strategies.traffic(LIMITS, max_num_reqs=5, max_gap_s=0.5))
def test_traffic_arrives_in_order_and_fits(traffic: Traffic) -> None:
    times_s = [request.arrival_s for request in traffic.requests]
    assert times_s == sorted(times_s)
    assert times_s[0] == 0
    assert times_s[-1] <= 2.0
    assert traffic.longest() <= LIMITS.max_model_len


def test_traffic_shrinks_to_one_request_that_shares_nothing() -> None:
    of = strategies.traffic(LIMITS)
    assert simplest(of, lambda traffic: True) == Traffic((TrafficRequest(0.0, 1, 1),))
    alike = simplest(of, lambda traffic: sum(bool(request.segments) for request in traffic.requests) > 1)
    shared = [request.segments for request in alike.requests if request.segments]
    assert len(alike.requests) <= 3  # hypothesis does not always get rid of one beside the two
    assert len(shared) == 2
    assert all(first == (0, 1) and own[1] == 1 for first, own in shared)


@pytest.mark.parametrize("signature", [LINEAR, SAMPLER, MIXTURE])
def test_a_sweep_point_shrinks_to_the_smallest(signature: object) -> None:
    point = simplest(strategies.sweep_points(signature, served(uses(LINEAR))), lambda point: True)  # type: ignore[arg-type]
    assert str(point) in ("T1", "R1", "T1E2M1")
    assert eval(repr(point)) == point  # noqa: S307 - our own repr
    assert isinstance(point, SweepPoint)


@given(strategies.serving_options("mixtral-8x7b"))
def test_options_of_a_mixture_divide_its_heads(options: ServingOptions) -> None:
    assert 32 % options.tensor_parallel_size == 0
    assert options.expert_parallel_size in (1, options.tensor_parallel_size)


@given(strategies.serving_options("qwen2.5-7b"))
def test_options_of_a_dense_model_spread_no_experts(options: ServingOptions) -> None:
    assert options.tensor_parallel_size in (1, 2, 4)  # of 28 heads
    assert options.expert_parallel_size == 1


@given(strategies.serving_options("llama3", device="cpu"))
def test_options_of_a_cpu_are_one_rank_without_graphs(options: ServingOptions) -> None:
    assert (options.device, options.tensor_parallel_size, options.execution) == ("cpu", 1, "eager")


def test_options_shrink_to_the_default_ones() -> None:
    assert simplest(strategies.serving_options("mixtral-8x7b"), lambda options: True) == ServingOptions()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: strategies.batches("nonsense"), UnknownModelError, "unknown model 'nonsense'"),
        (
            lambda: strategies.batches("llama3", max_num_tokens=0),
            ConfigurationError,
            "max_num_tokens must be at least 1",
        ),
        (lambda: strategies.batches(resolve("some/model")), ConfigurationError, "some/model .* name max_model_len"),
        (lambda: strategies.serving_options("llama3", device="tpu"), ConfigurationError, "unknown device 'tpu'"),
    ],
)
def test_what_cannot_be_drawn_from_is_said(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_hub_id_is_bounded_by_what_is_named() -> None:
    assert (
        str(simplest(strategies.batches("some/model", max_model_len=64), lambda batch: batch.num_tokens > 60)) == "61+0"
    )


def test_strategies_need_no_torch_and_the_package_no_hypothesis() -> None:
    program = (
        "import sys, pytest_dooly; assert 'hypothesis' not in sys.modules; import pytest_dooly.strategies; "
        "assert not {'torch', 'vllm', 'pandas', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
