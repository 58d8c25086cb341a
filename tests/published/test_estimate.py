"""Estimates against sums that are done by hand on a device of 1 TB/s and 100 TFLOP/s."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dooly.core.batch import Batch, Routing, SweepPoint
from pytest_dooly.core.device import device_named
from pytest_dooly.core.operation import LAUNCH, OperationKind
from pytest_dooly.core.signature import Signature
from pytest_dooly.core.work import Work
from pytest_dooly.published.estimate import ADMISSION_S, STEP_REQUEST_S, STEP_S, Estimate
from pytest_dooly.published.graphs import kernels_of
from pytest_dooly.published.kernels import LAUNCH_S, MEMORY_SHARE, PEAK_SHARE
from tests.samples import ADMISSION, MIXTURE, SAMPLER, STEP
from tests.traced import (
    DEEPSEEK_ATTENTION,
    DEEPSEEK_MOE,
    DEVICE,
    EMBEDDING,
    LOGITS,
    MIXTRAL_MOE,
    NORM,
    attention,
    collective,
    linear,
)

BYTES_PER_S, FLOPS_PER_S = MEMORY_SHARE * 1e12, PEAK_SHARE * 1e14


def estimate_s(signature: Signature, point: str) -> float:
    return float(Estimate(signature, DEVICE).predict_s([SweepPoint.parse(point)])[0])


def moved(signature: Signature, point: str) -> float:
    """Bytes behind an estimate that memory decides."""
    return (estimate_s(signature, point) - kernels_of(signature) * LAUNCH_S) * BYTES_PER_S


def computed(signature: Signature, point: str) -> float:
    """Operations behind an estimate that the multiprocessors decide."""
    return (estimate_s(signature, point) - kernels_of(signature) * LAUNCH_S) * FLOPS_PER_S


def test_a_norm_reads_and_writes_its_input() -> None:
    assert moved(NORM, "T1000") == pytest.approx(2 * 1000 * 4096 * 2 + 4096 * 2)
    residual = ("residual", "bf16", ("num_tokens", 4096))
    fused = dataclasses.replace(NORM, tensors=(NORM.tensors[0], residual, NORM.tensors[1]))
    assert moved(fused, "T1000") == pytest.approx(4 * 1000 * 4096 * 2 + 4096 * 2)


def test_a_gated_activation_writes_half_of_what_it_reads() -> None:
    activation = Signature(
        OperationKind.ACTIVATION, "silu_and_mul", (("x", "bf16", ("num_tokens", 7168)),), (), "num_tokens"
    )
    assert moved(activation, "T1000") == pytest.approx(1000 * (7168 + 3584) * 2)


def test_an_embedding_reads_the_rows_that_are_asked_for_not_the_whole_table() -> None:
    assert moved(EMBEDDING, "T1000") == pytest.approx(1000 * (8 + 2 * 4096 * 2))
    assert computed(EMBEDDING, "T1000") < moved(EMBEDDING, "T1000") * FLOPS_PER_S / BYTES_PER_S + 1


def test_a_linear_is_bound_by_its_weights_and_then_by_its_operations() -> None:
    assert moved(linear(6144, 4096), "T1") == pytest.approx(2 * (4096 + 6144 * 4096 + 6144))
    assert computed(linear(6144, 4096), "T8192") == pytest.approx(2 * 8192 * 6144 * 4096)
    assert moved(LOGITS, "R2") == pytest.approx(2 * (2 * 4096 + 32064 * 4096 + 2 * 32064))


def test_a_router_in_single_precision_runs_on_no_matrix_cores() -> None:
    """MiniMax-M2.5's gate (`F.linear(x.float(), weight)` beyond 32 tokens): 12.9 GFLOP on an H200's 67 TFLOP/s."""
    tensors = (("x", "bf16", ("num_tokens", 3072)), ("weight", "fp32", (256, 3072)))
    gate = dataclasses.replace(linear(256, 3072), tensors=tensors)
    products = 2 * 8192 * 256 * 3072
    h200 = device_named("h200_sxm")
    assert Estimate(gate, h200).predict_s([SweepPoint.parse("T8192")])[0] == pytest.approx(
        LAUNCH_S + products / (PEAK_SHARE * 67e12)
    )
    assert computed(gate, "T8192") == pytest.approx(10 * products)


def test_a_sampler_moves_single_precision_too() -> None:
    assert moved(SAMPLER, "R1000") == pytest.approx(5 * 4 * 1000 * 256)


def test_attention_reads_its_cache_and_works_on_pairs() -> None:
    full = attention(32, 8, 128)
    inputs = 2 * 64 * (32 + 8 + 8) * 128
    assert moved(full, "64x1+4095") == pytest.approx(inputs + 64 * 4096 * (2 * 2 * 8 * 128 + 4))  # with its block table
    assert computed(full, "4x4096+0") == pytest.approx(4 * 4 * 32 * 128 * 4096 * 4097 / 2)
    near = attention(32, 8, 128, window=128)
    assert moved(near, "64x1+4095") == pytest.approx(inputs + 64 * 128 * (2 * 2 * 8 * 128 + 4))
    assert computed(DEEPSEEK_ATTENTION, "4096+0") > computed(DEEPSEEK_ATTENTION, "2048+0") > 0


def test_a_mixture_reads_the_experts_that_get_a_token() -> None:
    rest = 2 * (4096 + 8)
    weights = 2 * 3 * 4096 * 7168
    assert moved(MIXTRAL_MOE, "T1E2M1") == pytest.approx(rest + 2 * weights)
    assert moved(MIXTRAL_MOE, "T4E5M2") == pytest.approx(4 * rest + 5 * weights)
    assert computed(MIXTRAL_MOE, "T32768E8M9000") == pytest.approx(32_768 * 2 * 2 * 3 * 4096 * 7168)
    assert moved(DEEPSEEK_MOE, "T1E6M1") == pytest.approx(
        2 * 2 * 2048 + 2 * 6 * 3 * 2048 * 1408 + 2 * (64 * 2048 + 3 * 2048 * 2816)
    )


def test_a_rank_of_a_spread_mixture_works_on_its_share_of_the_tokens() -> None:
    tensors = tuple(
        (role, dtype, (4, *shape[1:]) if "weight" in role else shape) for role, dtype, shape in MIXTRAL_MOE.tensors
    )
    attributes = tuple((name, 4 if name == "num_local_experts" else value) for name, value in MIXTRAL_MOE.attributes)
    spread = dataclasses.replace(MIXTRAL_MOE, tensors=tensors, attributes=attributes)
    assert computed(spread, "T32768E4M9000") == pytest.approx(computed(MIXTRAL_MOE, "T32768E8M9000") / 2)
    # Where the number of experts is not said, it is that of the rank.
    assert computed(MIXTURE, "T1000000E8M300000") == pytest.approx(2 * 1e6 * 2 * 256 * 64)


@pytest.mark.parametrize(("name", "shares"), [("all_reduce", 2 / 4), ("reduce_scatter", 1 / 4), ("all_gather", 1)])
def test_a_collective_sends_through_the_links(name: str, shares: float) -> None:
    sent = (estimate_s(collective(name, 4096, 4), "T1000") - LAUNCH_S) * DEVICE.link_bytes_per_s
    assert sent == pytest.approx(1000 * 4096 * 2 * 3 * shares)


def test_overheads_grow_with_requests_alone_and_a_replayed_graph_launches_nothing() -> None:
    launch = Signature(OperationKind.OVERHEAD, LAUNCH, (), (), "num_tokens")
    for point in ("T1", "T8192"):
        assert estimate_s(ADMISSION, point) == ADMISSION_S
        assert estimate_s(launch, point) == 0
    assert estimate_s(STEP, "8x1+512") == pytest.approx(STEP_S + 8 * STEP_REQUEST_S)
    assert estimate_s(STEP, "512+0") == pytest.approx(STEP_S + STEP_REQUEST_S)


def test_bytes_follow_the_dtype() -> None:
    for dtype, size in (("fp8_e4m3fn", 1), ("uint8", 1), ("fp32", 4), ("bf16", 2)):
        rest = 2 * (4096 + 6144)
        assert moved(linear(6144, 4096, dtype=dtype), "T1") == pytest.approx(rest + size * 6144 * 4096)
    mask = Signature(OperationKind.OTHER, "mask", (("mask", "bool", ("num_tokens", 1000)),), (), "num_tokens")
    assert moved(mask, "T8") == pytest.approx(2 * 8000)


def test_a_state_is_read_and_written_for_each_request() -> None:
    tensors = (("x", "bf16", ("num_tokens", 8)), ("state0", "fp32", (32, 128, 128)), ("weight", "bf16", (8, 8)))
    mixer = Signature(OperationKind.MIXER, "mamba_mixer2", tensors, (), "batch")
    state = 4 * 32 * 128 * 128
    assert moved(mixer, "1x1+9") == pytest.approx(2 * 8 + 2 * 64 + 2 * state)
    assert moved(mixer, "5x1+9") == pytest.approx(5 * 2 * 8 + 2 * 64 + 5 * 2 * state)
    assert moved(mixer, "5x7+9") == pytest.approx(35 * 2 * 8 + 2 * 64 + 5 * 2 * state)


@given(st.integers(1, 100_000), st.integers(1, 64))
def test_no_kernel_takes_less_than_its_launch_and_more_work_takes_no_less(tokens: int, requests: int) -> None:
    routing = Routing(8, tokens)
    for signature in (NORM, EMBEDDING, linear(64, 64), LOGITS, collective("all_reduce", 64, 2), SAMPLER, MIXTRAL_MOE):
        points = [SweepPoint(num_tokens=size, routing=routing) for size in (tokens, 2 * tokens)]
        less, more = Estimate(signature, DEVICE).predict_s(points)
        assert LAUNCH_S < less <= more
    batches = [SweepPoint(batch=Batch.uniform(n, 1, tokens)) for n in (requests, 2 * requests)]
    less, more = Estimate(attention(8, 8, 64), DEVICE).predict_s(batches)
    assert LAUNCH_S < less <= more


def test_an_estimate_has_no_range_and_takes_a_work() -> None:
    estimate = Estimate(NORM, DEVICE)
    assert estimate.out_of_range(SweepPoint(num_tokens=10**9)) is None
    points = [SweepPoint(num_tokens=size) for size in (1, 10)]
    assert np.array_equal(estimate.predict_s(points), estimate.predict_s(Work.of(points)))
