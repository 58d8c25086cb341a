"""What stays in memory: parameters, and what requests keep."""

from __future__ import annotations

import dataclasses
import math

import pytest

from pytest_dooly.core.batch import Batch
from pytest_dooly.core.device import Device
from pytest_dooly.core.operation import OperationKind
from pytest_dooly.core.signature import ModelOperation, Signature, dtype_bytes
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.published.footprint import (
    ENGINE_SHARE,
    CacheRoom,
    cache_room,
    footprint,
    footprint_of_batch,
    state_blocks,
    working_bytes,
)
from tests.samples import LIMITS, served, uses
from tests.traced import DEVICE, MIXTRAL_MOE, NORM, attention, linear


def held(*operations: ModelOperation, num_reqs: int = 1, seq_len: int = 128) -> tuple[float, float]:
    found = footprint(served(*operations), DEVICE, num_reqs=num_reqs, seq_len=seq_len)
    return found.weights_bytes, found.cache_bytes


def test_parameters_count_as_often_as_layers_have_them_and_activations_do_not() -> None:
    assert held(uses(linear(100, 10)), uses(linear(7, 10, dtype="fp8_e4m3fn"), 3)) == (2 * 1000 + 3 * 70, 0)
    ((_, dtype, (size,)),) = (tensor for tensor in NORM.tensors if tensor[0] == "weight")
    assert held(uses(NORM, 2)) == (2 * dtype_bytes(dtype) * int(size), 0)


def test_keys_and_values_count_for_every_token_of_every_request() -> None:
    a_token = 2 * 2 * (2 * 64)  # keys and values of two bytes
    assert held(uses(attention(8, 2, 64), 4), num_reqs=3, seq_len=256) == (0, 4 * 3 * 256 * a_token)
    assert held(uses(attention(8, 2, 64)), seq_len=257) == (0, 257 * a_token)


def test_requests_of_a_step_are_counted_each_with_its_own_length() -> None:
    model = served(uses(attention(8, 2, 64)), uses(linear(100, 10)))
    found = footprint_of_batch(model, DEVICE, Batch.parse("2x1+99,50"))
    both = [footprint(model, DEVICE, num_reqs=2, seq_len=100), footprint(model, DEVICE, num_reqs=1, seq_len=50)]
    assert found.weights_bytes == both[0].weights_bytes
    assert found.cache_bytes == sum(each.cache_bytes for each in both)


def test_a_window_keeps_no_more_than_it_sees() -> None:
    assert held(uses(attention(8, 2, 64, window=128)), seq_len=4096) == held(uses(attention(8, 2, 64)), seq_len=128)
    assert held(uses(attention(8, 2, 64, window=4096)), seq_len=128) == held(uses(attention(8, 2, 64)), seq_len=128)


def test_a_block_of_a_long_request_takes_less_where_some_layers_have_a_window() -> None:
    """Half of the layers see 128 tokens: of 1,024 in the cache they keep an eighth."""
    layers = served(uses(attention(8, 2, 64), 2), uses(attention(8, 2, 64, window=128), 2))
    short, long = (cache_room(layers, DEVICE, seq_len=tokens).num_blocks for tokens in (128, 1024))
    assert cache_room(layers, DEVICE).num_blocks == short
    assert long == pytest.approx(short / (1 / 2 + 1 / 2 / 8), abs=1)
    full = served(uses(attention(8, 2, 64), 4))
    assert cache_room(full, DEVICE, seq_len=1024) == cache_room(full, DEVICE) == CacheRoom(short)


def test_experts_in_mxfp4_are_as_large_as_kernels_have_them() -> None:
    """gpt-oss-120b: a hidden size of 2,880 is one of 3,072."""

    def experts(precision: str, hidden: int) -> float:
        tensors = (
            ("hidden_states", "bf16", ("num_tokens", hidden)),
            ("routed_experts.w13_weight", "uint4", (128, 5760, hidden)),
            ("routed_experts.w2_weight", "uint4", (128, hidden, 2880)),
        )
        attributes = (("num_local_experts", 128), ("precision", precision), ("top_k", 4))
        return held(uses(Signature(OperationKind.MOE, "fused_moe", tensors, attributes, "routing")))[0]

    assert experts("mxfp4", 2880) == pytest.approx(experts("int4", 2880) * 3072 / 2880)
    assert experts("mxfp4", 3072) == experts("int4", 3072)


def test_a_state_counts_once_a_request_whatever_its_length() -> None:
    tensors = (("x", "bf16", ("num_tokens", 8)), ("state0", "fp32", (4, 8)), ("in_proj.weight", "bf16", (8, 8)))
    mixer = Signature(OperationKind.MIXER, "mamba_mixer2", tensors, (), "batch")
    assert held(uses(mixer, 2), num_reqs=5, seq_len=1) == held(uses(mixer, 2), num_reqs=5, seq_len=999)
    assert held(uses(mixer, 2), num_reqs=5) == (2 * 2 * 64, 2 * 5 * 4 * 32)


def test_it_fits_up_to_what_the_engine_takes() -> None:
    model = served(uses(linear(1000, 1000)))
    just = dataclasses.replace(DEVICE, memory_bytes=2e6 / ENGINE_SHARE)
    assert footprint(model, just, num_reqs=1, seq_len=1).fits
    less = dataclasses.replace(just, memory_bytes=0.999 * just.memory_bytes)
    assert not footprint(model, less, num_reqs=1, seq_len=1).fits


def test_work_takes_what_a_step_and_its_logits_take() -> None:
    gated = Signature(OperationKind.ACTIVATION, "silu_and_mul", (("x", "bf16", ("num_tokens", 64)),), (), "num_tokens")
    sampler = Signature(OperationKind.SAMPLER, "sampler", (("logits", "bf16", ("num_reqs", 100)),), (), "num_reqs")
    alone = working_bytes(served())
    limits = served().limits
    assert working_bytes(served(uses(gated, 9))) - alone == pytest.approx(1.5 * limits.max_num_tokens * 2 * 64)
    assert working_bytes(served(uses(sampler))) - alone == pytest.approx(5 * limits.max_num_seqs * 4 * 100)
    reduced = Signature(OperationKind.COLLECTIVE, "all_reduce", (), (("ranks", 2),), "num_tokens")
    assert working_bytes(served(uses(reduced))) > alone + 2**28


@pytest.mark.parametrize(
    ("dtype", "size"), [("bf16", 2), ("fp32", 4), ("fp8_e4m3fn", 1), ("uint8", 1), ("int64", 8), ("bool", 1)]
)
def test_the_name_of_a_dtype_says_its_size(dtype: str, size: float) -> None:
    assert dtype_bytes(dtype) == size


def test_blocks_are_what_the_weights_leave() -> None:
    """10 GB, 92 % of it taken, less what a step takes; 2 MB of weights; 32 layers of 8 heads of 128 in bf16."""
    model = served(uses(linear(1024, 1024)), uses(attention(32, 8, 128), 32))
    block_bytes = 16 * 32 * 2 * 8 * 128 * 2
    assert cache_room(model, DEVICE).num_blocks == int((9.2e9 - working_bytes(model) - 2 * 1024 * 1024) / block_bytes)
    assert cache_room(model, DEVICE, share=0.5).num_blocks == int(
        (5e9 - working_bytes(model) - 2 * 1024 * 1024) / block_bytes
    )


def test_a_state_takes_blocks_once_a_request_and_leaves_those_of_tokens_as_they_are() -> None:
    """Qwen3.5-9B: 24 states of 2 MB, 8 layers of attention; counted in every block, 15 requests filled an H100."""
    state = (("x", "bf16", ("num_tokens", 8)), ("state0", "fp32", (32, 128, 128)))
    mixer = uses(Signature(OperationKind.MIXER, "mamba_mixer2", state, (), "batch"), 24)
    alone = served(uses(attention(16, 4, 256), 8))
    hybrid = served(uses(attention(16, 4, 256), 8), mixer)
    block_bytes = 16 * 8 * 2 * 4 * 256 * 2
    blocks, of_states = (
        int((9.2e9 - working_bytes(hybrid)) / block_bytes),
        math.ceil(24 * 4 * 32 * 128**2 / block_bytes),
    )
    assert cache_room(hybrid, DEVICE) == CacheRoom(blocks, of_states)
    assert state_blocks(hybrid, DEVICE) == of_states
    assert state_blocks(alone, DEVICE) == state_blocks(served(mixer), DEVICE) == 0
    assert cache_room(alone, DEVICE) == CacheRoom(blocks)
    assert CacheRoom(blocks, of_states).for_tokens(8) == blocks - 8 * of_states
    with pytest.raises(ConfigurationError, match=r"the states of 1,000 requests take all of .* serve fewer at once"):
        CacheRoom(blocks, of_states).for_tokens(1000)
    with pytest.raises(ConfigurationError, match="keeps no keys and values"):
        cache_room(served(mixer), DEVICE)


def test_engines_that_share_experts_hold_the_tokens_of_all() -> None:
    shared = dataclasses.replace(MIXTRAL_MOE, attributes=(*MIXTRAL_MOE.attributes, ("data_parallel", 8)))
    alone, all_ = (working_bytes(served(uses(each))) for each in (MIXTRAL_MOE, shared))
    assert all_ - alone == pytest.approx(0.45 * 2**30 + 1.5 * LIMITS.max_num_tokens * 7 * 4096 * 2)


def test_weights_that_do_not_fit_are_refused() -> None:
    small = Device("tiny", "Tiny GPU", 1, 1e8, 1e12, 1e14, 1e13, 1e11)
    with pytest.raises(ConfigurationError, match=r"does not fit on tiny: 0.0 GB of weights .* use more ranks"):
        cache_room(served(uses(linear(64, 64)), uses(attention(32, 8, 128))), small)
    with pytest.raises(ConfigurationError, match="keeps no keys and values: name the number of KV blocks"):
        cache_room(served(uses(linear(64, 64))), DEVICE)
