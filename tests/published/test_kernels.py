"""Features of what kernels do: finite wherever they are asked for, with rooflines that are computed by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dooly.core.device import DEVICES, Device
from pytest_dooly.published.family import Columns, Family
from pytest_dooly.published.kernels import Description, describe
from tests.traced import DEVICE

Sizes = dict[str, float]

ONE_OF = st.sampled_from
TOKENS = st.integers(1, 1_000_000)
LATENT = {
    "hidden_size": 7168.0,
    "kv_lora_rank": 512.0,
    "q_lora_rank": 1536.0,
    "qk_nope_head_dim": 128.0,
    "qk_rope_head_dim": 64.0,
    "v_head_dim": 128.0,
}
INDEXER = {"index_head_size": 128.0, "index_heads": 64.0, "index_top_k": 2048.0}
KERNELS = (
    "gemm",
    "prefill",
    "decode",
    "experts",
    "latent prefill",
    "latent decode",
    "sparse latent prefill",
    "sparse latent decode",
    "all_gather",
)


def arrays(values: Sizes) -> Columns:
    return {name: np.array([float(value)]) for name, value in values.items()}


def described(kernel: str, precision: str, device: Device = DEVICE, /, **values: float) -> Description:
    return describe(Family(kernel, precision), arrays(values), device)


def feature(description: Description, name: str) -> float:
    return float(description.matrix[0, description.names.index(name)])


@st.composite
def kernels(draw: st.DrawFn) -> tuple[Family, Sizes]:
    """A row of any family, from the smallest work to more than any device does in a step."""
    kernel = draw(ONE_OF(KERNELS))
    precision = draw(
        ONE_OF(["bf16", "fp8", "fp8_block", "int4", "mxfp4", "mxfp4_mxfp8", "nvfp4", "fp32", "unheard_of"])
    )
    groups = draw(ONE_OF([1, 2, 8]))
    request: Sizes = {"batch_size": draw(st.floats(1e-3, 4096)), "prompt_len": draw(st.floats(2, 1e6))}
    if kernel.endswith("decode"):
        request = {"batch_size": draw(st.integers(1, 4096)), "context_len": draw(st.integers(0, 1_000_000))}
    if kernel == "gemm":
        return Family(kernel, precision), {
            "k": draw(st.integers(1, 100_000)),
            "n": draw(st.integers(1, 300_000)),
            "num_tokens": draw(TOKENS),
        }
    if kernel in ("prefill", "decode"):
        heads = draw(st.integers(1, 128))
        sizes = {"head_size": draw(ONE_OF([64, 80, 128, 256])), "num_heads": heads * groups, "num_kv_heads": heads}
        window = draw(ONE_OF([0, 1, 128, 4096]))
        return Family(kernel, draw(ONE_OF(["auto", "fp8"]))), {**sizes, "window": window, **request}
    if kernel == "experts":
        local = draw(st.integers(1, 256))
        return Family(kernel, precision), {
            "experts": local * groups,
            "hidden_size": draw(st.integers(64, 16_384)),
            "intermediate_size": draw(st.integers(16, 32_768)),
            "local_experts": local,
            "top_k": draw(st.integers(1, local)),
            "num_tokens": draw(TOKENS),
            "activated": draw(st.floats(0, local)),
            "busiest": draw(st.floats(0, 1e6)),
        }
    if kernel.startswith("latent"):
        return Family(kernel, f"{precision} auto"), {**LATENT, "num_heads": draw(st.integers(1, 128)), **request}
    if kernel.startswith("sparse"):
        of_rank: Sizes = {"num_heads": draw(st.integers(1, 128))}
        return Family(kernel, f"{precision} auto"), {**LATENT, **INDEXER, **of_rank, **request}
    ranks = draw(st.integers(2, 64))
    return Family(draw(ONE_OF(["all_reduce", kernel])), "bf16"), {
        "ranks": ranks,
        "elements": draw(st.integers(1, 10**10)),
    }


@given(kernels(), ONE_OF(DEVICES))
def test_every_feature_of_every_kernel_is_finite(row: tuple[Family, Sizes], device: Device) -> None:
    description = describe(row[0], arrays(row[1]), device)
    assert np.isfinite(description.matrix).all()
    assert description.matrix.shape == (1, len(description.names))
    assert len(set(description.names)) == len(description.names)
    assert description.names[: description.num_sizes] == tuple(f"size {name}" for name in row[1])
    assert description.roofline_s[0] > 0
    for name in description.names:
        if name.startswith("padded"):
            assert feature(description, name) >= 1 - 1e-9


def test_the_roofline_of_a_product_is_the_slower_of_operations_and_bytes() -> None:
    many = described("gemm", "bf16", k=4096, n=6144, num_tokens=8192)
    assert many.roofline_s[0] == pytest.approx(2 * 8192 * 6144 * 4096 / 1e14)
    few = described("gemm", "bf16", k=4096, n=6144, num_tokens=1)
    assert few.roofline_s[0] == pytest.approx(2 * (4096 + 6144 * 4096 + 6144) / 1e12)
    assert feature(many, "intensity") > feature(few, "intensity")


def test_smaller_weights_are_read_and_multiplied_faster() -> None:
    product = {"k": 4096.0, "n": 6144.0}
    for num_tokens in (1.0, 8192.0):
        half, whole = (described("gemm", p, **product, num_tokens=num_tokens).roofline_s[0] for p in ("fp8", "bf16"))
        assert half == pytest.approx(whole / 2, rel=0.01)
    weight_only, half = (described("gemm", p, **product, num_tokens=8192.0).roofline_s[0] for p in ("int4", "bf16"))
    assert weight_only == half  # made bf16 first


def test_tiles_and_waves_of_a_product() -> None:
    full = described("gemm", "bf16", k=4096, n=128 * 20, num_tokens=128 * 5)  # 100 tiles for 100 multiprocessors
    assert feature(full, "waves 128x128") == 0
    assert feature(full, "quantised 128x128") == feature(full, "padded 128x128") == 1
    more = described("gemm", "bf16", k=4096, n=128 * 20, num_tokens=128 * 5 + 1)
    assert feature(more, "quantised 128x128") == pytest.approx(200 / 120)
    assert feature(more, "padded 128x128") == pytest.approx(768 / 641)


def test_attention_works_on_pairs_and_reads_its_cache() -> None:
    sizes = {"head_size": 128.0, "num_heads": 32.0, "num_kv_heads": 8.0}
    prompts = described("prefill", "auto", **sizes, window=0, batch_size=4, prompt_len=4096)
    assert prompts.roofline_s[0] == pytest.approx(4 * 4 * 32 * 128 * (4096 * 4097 / 2) / 1e14)
    decodes = described("decode", "auto", **sizes, window=0, batch_size=64, context_len=4095)
    assert decodes.roofline_s[0] == pytest.approx((2 * 2 * 64 * 4096 * 8 * 128 + 2 * 2 * 64 * 32 * 128) / 1e12)
    smaller = described("decode", "fp8", **sizes, window=0, batch_size=64, context_len=4095)
    assert smaller.roofline_s[0] == pytest.approx(decodes.roofline_s[0] / 2, rel=0.01)
    near = described("decode", "auto", **sizes, window=128, batch_size=64, context_len=4095)
    assert near.roofline_s[0] == pytest.approx((2 * 2 * 64 * 128 * 8 * 128 + 2 * 2 * 64 * 32 * 128) / 1e12)
    banded = described("prefill", "auto", **sizes, window=128, batch_size=4, prompt_len=4096)
    assert feature(banded, "pairs") == pytest.approx(np.log2(128 * 129 / 2 + (4096 - 128) * 128))


def test_experts_read_the_weights_of_those_that_get_a_token() -> None:
    sizes = {"experts": 64.0, "local_experts": 64.0, "hidden_size": 2048.0, "intermediate_size": 1408.0, "top_k": 6.0}
    few = described("experts", "bf16", **sizes, num_tokens=1, activated=6, busiest=1)
    routed = 2 * 6 * (2 * 2048 + 3 * 1408)
    assert few.roofline_s[0] == pytest.approx((2 * 3 * 6 * 2048 * 1408 + routed) / 1e12)
    many = described("experts", "bf16", **sizes, num_tokens=65_536, activated=64, busiest=7000)
    assert many.roofline_s[0] == pytest.approx(6 * 65_536 * 6 * 2048 * 1408 / 1e14)
    halved = described(
        "experts", "bf16", **sizes | {"local_experts": 32.0}, num_tokens=65_536, activated=32, busiest=7000
    )
    assert halved.roofline_s[0] == pytest.approx(many.roofline_s[0] / 2)


@pytest.mark.parametrize(("name", "shares"), [("all_reduce", 2 / 4), ("reduce_scatter", 1 / 4), ("all_gather", 1)])
def test_collectives_are_bound_by_the_links(name: str, shares: float) -> None:
    message = described(name, "bf16", ranks=4, elements=1e9)
    assert message.roofline_s[0] == pytest.approx(2e9 * 3 * shares / 1e11)


def test_latent_attention_reads_latents_once_for_all_heads() -> None:
    fast = dataclasses.replace(DEVICE, flops_per_s=1e16)
    decodes = [
        described("latent decode", "bf16 auto", fast, **LATENT, num_heads=16, batch_size=64, context_len=context_len)
        for context_len in (8191, 16_383)
    ]
    more_s = decodes[1].roofline_s[0] - decodes[0].roofline_s[0]
    assert more_s == pytest.approx(2 * 64 * 8192 * (512 + 64) / 1e12)
    cached = described("latent decode", "bf16 fp8", fast, **LATENT, num_heads=16, batch_size=64, context_len=16_383)
    assert decodes[1].roofline_s[0] - cached.roofline_s[0] == pytest.approx(64 * 16_384 * (512 + 64) / 1e12)


def test_sparse_attention_reads_and_attends_to_the_tokens_that_its_indexer_has_chosen() -> None:
    fast, slow = (dataclasses.replace(DEVICE, flops_per_s=flops) for flops in (1e18, 1e6))
    sizes = {**LATENT, **INDEXER, "num_heads": 64.0, "batch_size": 64.0}

    def of(device: Device, context_len: int) -> float:
        return float(
            described("sparse latent decode", "bf16 auto", device, **sizes, context_len=context_len).roofline_s[0]
        )

    # Beyond index_top_k a further token costs what the indexer reads and scores of it.
    assert of(fast, 16_383) - of(fast, 8191) == pytest.approx(64 * 8192 * 128 / 1e12)
    assert of(slow, 16_383) - of(slow, 8191) == pytest.approx(64 * 8192 * 64 * 128 / 1e6, rel=1e-3)
    # Up to it, the whole context is attended to.
    attended = 2 * 64 * 64 * 1024 * (2 * 512 + 64)
    assert of(slow, 2047) - of(slow, 1023) == pytest.approx((attended + 64 * 1024 * 64 * 128) / 1e6, rel=1e-3)
    near, far = (
        described("sparse latent prefill", "bf16 auto", **{**sizes, "batch_size": 1.0}, prompt_len=length)
        for length in (2048, 16_384)
    )
    assert feature(near, "chosen") == 1
    assert feature(far, "chosen") == 1 / 8
    assert feature(far, "attended") == pytest.approx(np.log2((2048 * 2049 / 2 + (16_384 - 2048) * 2048) / 16_384))


def test_another_device_is_another_roofline() -> None:
    slower = dataclasses.replace(DEVICE, flops_per_s=DEVICE.flops_per_s / 4)
    product = {"k": 4096.0, "n": 4096.0, "num_tokens": 8192.0}
    assert described("gemm", "bf16", slower, **product).roofline_s[0] == pytest.approx(
        4 * described("gemm", "bf16", **product).roofline_s[0]
    )
