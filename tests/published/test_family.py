"""Which kernels an operation is made of, and what their latency depends on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dooly.core.batch import Batch, Routing, SweepPoint
from pytest_dooly.core.published_latency import PublishedLatency
from pytest_dooly.core.signature import Signature
from pytest_dooly.core.work import Work
from pytest_dooly.published.aiconfigurator import mapping
from pytest_dooly.published.family import (
    Family,
    Part,
    columns_of,
    lone_parts_of,
    mixed_part_of,
    parts_of,
    rest_of,
    running,
    table_of,
)
from tests.samples import STEP
from tests.traced import (
    DEEPSEEK_ATTENTION,
    DEEPSEEK_MOE,
    EMBEDDING,
    LOGITS,
    MAMBA,
    MIXTRAL_MOE,
    NORM,
    attention,
    collective,
    linear,
)

LENGTHS = st.integers(2, 20_000)
WINDOWS = st.sampled_from([0, 2, 100, 128, 1000, 4096])


def gemm(n: int, k: int, sign: int = 1) -> Part:
    return Part(Family("gemm", "bf16"), (("k", k), ("n", n)), sign)


def with_attributes(signature: Signature, **values: str | int) -> Signature:
    attributes = dict(signature.attributes) | values
    return dataclasses.replace(signature, attributes=tuple(sorted(attributes.items())))


def with_dtype(signature: Signature, dtype: str) -> Signature:
    tensors = tuple((role, dtype if of == "bf16" else of, shape) for role, of, shape in signature.tensors)
    return dataclasses.replace(signature, tensors=tensors)


def columns(signature: Signature, batch: str, kernel: str) -> dict[str, float]:
    (part,) = (each for each in parts_of(signature) if each.family.kernel == kernel)
    values = columns_of(part, Work.of([SweepPoint(batch=Batch.parse(batch))]))
    return {name: float(value) for name, (value,) in values.items()}


@pytest.mark.parametrize(
    ("signature", "parts"),
    [
        (linear(6144, 4096), (gemm(6144, 4096),)),
        (linear(6144, 4096, "fp8", "fp8_e4m3fn"), (Part(Family("gemm", "fp8"), (("k", 4096), ("n", 6144))),)),
        (linear(6144, 4096, "fp8pertensoronline"), (Part(Family("gemm", "fp8"), (("k", 4096), ("n", 6144))),)),
        (LOGITS, (gemm(32064, 4096),)),
        (
            collective("all_reduce", 4096, 4),
            (Part(Family("all_reduce", "bf16"), (("ranks", 4),), columns=4096),),
        ),
        (
            dataclasses.replace(collective("all_reduce", 2, 4), tensors=(("arg0", "fp32", ("num_tokens", 2)),)),
            (Part(Family("all_reduce", "bf16"), (("ranks", 4),), columns=4),),
        ),
        (
            collective("all_gather", 32064, 4, "num_reqs"),
            (Part(Family("all_gather", "bf16"), (("ranks", 4),), columns=32064),),
        ),
        (NORM, ()),
        (EMBEDDING, ()),
        (STEP, ()),
    ],
    ids=lambda value: value.label if isinstance(value, Signature) else "",
)
def test_parts_of_traced_operations(signature: Signature, parts: tuple[Part, ...]) -> None:
    assert parts_of(signature) == parts


def test_attention_is_prefill_and_decode_over_the_window_on_any_backend() -> None:
    prefill, decode = parts_of(attention(64, 8, 64, window=128))
    assert (str(prefill.family), str(decode.family)) == ("prefill auto", "decode auto")
    assert prefill.sizes == decode.sizes == (("head_size", 64), ("num_heads", 64), ("num_kv_heads", 8), ("window", 128))
    full, _ = parts_of(attention(64, 8, 64, backend="FLASH_ATTN"))
    assert str(full.family) == "prefill auto FLASH_ATTN"
    assert dict(full.sizes)["window"] == 0


def test_experts_without_a_gate_are_as_gated_ones_of_as_many_weights() -> None:
    """Nemotron 3 Nano: two matrices of 2688 x 1856, as many weights as three of 2688 x 1237."""
    (experts,) = parts_of(mapping.moe_signature("bfloat16", "relu2_no_mul", 2688, 1856, 6, 128, 128))
    assert experts.family == Family("experts", "bf16")
    assert dict(experts.sizes)["intermediate_size"] == 1237


def test_a_state_space_mixer_is_its_products_and_a_rest_of_which_nothing_is_published() -> None:
    assert parts_of(MAMBA) == (gemm(5152, 2688), gemm(2688, 2048))
    rest = rest_of(MAMBA)
    assert rest is not None
    assert [role for role, _, _ in rest.tensors] == ["hidden_states", "state0", "state1", "A", "conv1d.weight"]
    assert parts_of(rest) == ()
    assert lone_parts_of(MAMBA) == ()  # its latency is none of a product's
    assert rest_of(MIXTRAL_MOE) is None


def test_a_mixture_is_experts_router_and_shared_experts() -> None:
    experts, gate, up, down = parts_of(DEEPSEEK_MOE)
    assert experts.family == Family("experts", "bf16")
    assert dict(experts.sizes) == {
        "experts": 64,
        "hidden_size": 2048,
        "intermediate_size": 1408,
        "local_experts": 64,
        "top_k": 6,
    }
    assert (gate, up, down) == (gemm(64, 2048), gemm(5632, 2048), gemm(2048, 2816))
    assert [dict(part.sizes)["intermediate_size"] for part in parts_of(MIXTRAL_MOE)] == [7168]


def test_engines_that_share_experts_gather_what_each_has_and_sum_what_belongs_to_each() -> None:
    shared = with_attributes(DEEPSEEK_MOE, data_parallel=4)
    experts, gate, up, down, gather, scatter = parts_of(shared)
    assert (experts, gate, up, down) == parts_of(DEEPSEEK_MOE)
    assert (str(gather.family), str(scatter.family)) == ("all_gather bf16", "reduce_scatter bf16")
    assert gather.sizes == scatter.sizes == (("ranks", 4),)
    work = Work.of_sizes([8.0], activated=[64.0], busiest=[7.0], gathered=[40.0])

    def seen(part: Part, column: str) -> float:
        return float(columns_of(part, work)[column][0])

    assert [seen(part, "num_tokens") for part in (experts, gate, up, down)] == [40, 8, 8, 8]
    # Each rank sends its quarter of all 40 tokens, and gets its quarter of the sum over all: NCCL counts the inputs.
    assert (seen(gather, "elements"), seen(scatter, "elements")) == (10 * 2048, 40 * 2048)


def test_ranks_of_an_engine_that_each_have_a_share_of_its_tokens_all_gather_theirs() -> None:
    shared = with_attributes(DEEPSEEK_MOE, data_parallel=4, sequence_parallel=2)
    gather, scatter = parts_of(shared)[-2:]
    assert gather.sizes == scatter.sizes == (("ranks", 8),)
    assert (gather.columns, scatter.columns) == (2048 / 8, 2048)
    for rows, columns in (
        ("num_tokens", 2048),
        ("-(num_tokens // -2)", 1024),
        ("((num_tokens + (PythonMod(-num_tokens, 2))) // 2)", 1024),
        ("num_tokens + (PythonMod(-num_tokens, 2))", 2048),
    ):
        share = dataclasses.replace(collective("all_gather", 2048, 2), tensors=(("arg0", "bf16", (rows, 2048)),))
        assert parts_of(share)[0].columns == columns


def test_a_router_and_shared_experts_have_precisions_of_their_own() -> None:
    def precisions(experts: str, gate: str, shared: str) -> list[str]:
        dtypes = {"gate.weight": gate} | {
            f"_shared_experts._layer.{name}_proj.weight": shared for name in ("gate_up", "down")
        }
        tensors = tuple((role, dtypes.get(role, dtype), shape) for role, dtype, shape in DEEPSEEK_MOE.tensors)
        signature = with_attributes(dataclasses.replace(DEEPSEEK_MOE, tensors=tensors), precision=experts)
        return [part.family.precision for part in parts_of(signature)]

    fp8 = "float8_e4m3fn"
    assert precisions("fp8_block", "bf16", fp8) == ["fp8_block", "bf16", "fp8_block", "fp8_block"]
    assert precisions("fp8", fp8, fp8) == ["fp8", "fp8", "fp8", "fp8"]
    assert precisions("int4", "uint4", "bf16") == ["int4", "int4", "bf16", "bf16"]
    assert precisions("nvfp4", "bf16", fp8) == ["nvfp4", "bf16", "fp8", "fp8"]  # as some checkpoints mix them
    assert precisions("mxfp4", "fp16", "int8") == ["mxfp4", "bf16", "int8_weights", "int8_weights"]
    router = dataclasses.replace(
        DEEPSEEK_MOE,
        tensors=tuple(
            (role, "fp32" if role == "gate.weight" else dtype, shape) for role, dtype, shape in DEEPSEEK_MOE.tensors
        ),
    )
    assert parts_of(router)[0].family == Family("experts", "bf16")


def test_latent_attention_is_a_layer_less_its_matrix_products() -> None:
    *attend, down, query, out = parts_of(DEEPSEEK_ATTENTION)
    assert [str(part.family) for part in attend] == ["latent prefill bf16 auto", "latent decode bf16 auto"]
    assert dict(attend[0].sizes)["num_heads"] == 16
    assert (down, query, out) == (gemm(2112, 7168, -1), gemm(16 * 192, 1536, -1), gemm(7168, 16 * 128, -1))
    assert parts_of(with_attributes(DEEPSEEK_ATTENTION, kv_lora_rank=256)) == ()


def test_half_precision_of_either_kind_is_one_family_and_single_precision_another() -> None:
    for signature in (
        linear(6144, 4096),
        LOGITS,
        MIXTRAL_MOE,
        attention(32, 8, 128),
    ):
        assert parts_of(with_dtype(signature, "fp16")) == parts_of(signature)
        single = with_dtype(signature, "fp32")
        assert not {part.family for part in parts_of(single)} & {part.family for part in parts_of(signature)}
    message = collective("all_reduce", 4096, 4)
    assert parts_of(with_dtype(message, "fp16")) == parts_of(message)


def test_published_operations_are_the_traced_ones_of_the_same_sizes() -> None:
    sizes: dict[str, int] = {
        "hidden_size": 7168,
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
    }
    layer = mapping.latent_signature("FLASH_ATTN_MLA", 16, "bfloat16", "auto", tuple(sizes.items()))
    pairs = [
        (mapping.linear_signature("bfloat16", 6144, 4096), linear(6144, 4096)),
        (mapping.attention_signature("FLASH_ATTN", 32, 8, 128, 0, "auto"), attention(32, 8, 128)),
        (mapping.attention_signature("FLASH_ATTN", 64, 8, 64, 128, "auto"), attention(64, 8, 64, window=128)),
        (mapping.moe_signature("bfloat16", "silu", 4096, 7168, 2, 8, 8), MIXTRAL_MOE),
        (mapping.moe_signature("bfloat16", "silu", 2048, 1408, 6, 64, 64), DEEPSEEK_MOE),
        (layer, DEEPSEEK_ATTENTION),
    ]
    for published, traced in pairs:
        known = parts_of(published)
        asked = parts_of(traced)[: len(known)]  # a trace's mixture runs its router too
        assert [part.sizes for part in known] == [part.sizes for part in asked]
        assert all(one.family.serves(other.family) for one, other in zip(known, asked, strict=True))
        assert known


def test_collectives_of_any_width_are_compared_by_elements() -> None:
    (published,) = parts_of(mapping.collective_signature("all_reduce", 4))
    (traced,) = parts_of(collective("all_reduce", 4096, 4))
    (flat,) = parts_of(collective("all_reduce", 1, 4))
    assert (published.family, published.sizes) == (traced.family, traced.sizes) == (flat.family, flat.sizes)
    works = [Work.of([SweepPoint(num_tokens=tokens)]) for tokens in (32, 1, 4096)]
    elements = [
        columns_of(part, work)["elements"][0] for part, work in zip((published, traced, flat), works, strict=True)
    ]
    assert elements == [4096, 4096, 4096]


def test_a_backend_that_is_asked_for_is_the_only_one_that_serves() -> None:
    flash, other, any_backend = (Family("decode", "auto", backend) for backend in ("FLASH_ATTN", "TRITON_ATTN", None))
    assert flash.serves(any_backend)
    assert flash.serves(flash)
    assert not flash.serves(other)
    assert not any_backend.serves(flash)
    assert not flash.serves(Family("prefill", "auto"))
    assert len({flash.key, other.key, any_backend.key, Family("decode", "auto", "FLASH_ATTN").key}) == 3


@given(st.integers(1, 300), LENGTHS, WINDOWS)
def test_equal_prompts_are_given_back_exactly(num_reqs: int, prompt_len: int, window: int) -> None:
    batch = f"{num_reqs}x{prompt_len}"
    got = columns(attention(8, 2, 64, window=window), batch, "prefill")
    assert (got["batch_size"], got["prompt_len"]) == (num_reqs, prompt_len)
    assert columns(attention(8, 2, 64, window=window), batch, "decode")["batch_size"] == 0


@given(st.integers(1, 300), st.integers(0, 100_000), WINDOWS)
def test_equal_decodes_are_given_back_exactly(num_reqs: int, context_len: int, window: int) -> None:
    batch = f"{num_reqs}x1+{context_len}"
    got = columns(attention(8, 2, 64, window=window), batch, "decode")
    assert (got["batch_size"], got["context_len"]) == (num_reqs, context_len)
    assert columns(attention(8, 2, 64, window=window), batch, "prefill")["batch_size"] == 0


def pairs_of(num_reqs: float, prompt_len: float, window: int) -> float:
    """Attended pairs of equal prompts, summed by hand."""
    if not window or prompt_len <= window:
        return num_reqs * prompt_len * (prompt_len + 1) / 2
    return num_reqs * (window * (window + 1) / 2 + (prompt_len - window) * window)


@given(st.lists(LENGTHS, min_size=1, max_size=6), WINDOWS)
def test_unequal_prompts_have_as_many_tokens_and_pairs_as_equal_ones(lengths: Sequence[int], window: int) -> None:
    got = columns(attention(8, 2, 64, window=window), ",".join(map(str, lengths)), "prefill")
    assert got["batch_size"] * got["prompt_len"] == pytest.approx(sum(lengths), rel=1e-6)
    attended = sum(pairs_of(1, length, window) for length in lengths)
    assert pairs_of(got["batch_size"], got["prompt_len"], window) == pytest.approx(attended, rel=1e-6)


@given(LENGTHS, st.integers(1, 50_000))
def test_a_chunk_attends_its_context_too(query_len: int, context_len: int) -> None:
    got = columns(attention(8, 2, 64), f"{query_len}+{context_len}", "prefill")
    assert got["batch_size"] * got["prompt_len"] == pytest.approx(query_len, rel=1e-6)
    attended = sum(context_len + i for i in range(1, query_len + 1))
    assert pairs_of(got["batch_size"], got["prompt_len"], 0) == pytest.approx(attended, rel=1e-6)


def test_a_chunk_beyond_the_window_is_part_of_a_prompt_no_longer_than_its_own() -> None:
    got = columns(attention(8, 2, 64, window=128), "4096+8192", "prefill")
    assert got["prompt_len"] == 12_288
    assert pairs_of(got["batch_size"], got["prompt_len"], 128) == pytest.approx(4096 * 128, rel=0.01)


def test_a_mixed_batch_is_prompts_and_decodes() -> None:
    signature = attention(8, 2, 64)
    prefill, decode = (columns(signature, "3x1+100,1+400,2x64", kernel) for kernel in ("prefill", "decode"))
    assert (prefill["batch_size"], prefill["prompt_len"]) == (2, 64)
    assert (decode["batch_size"], decode["context_len"]) == (4, 175)


def test_which_points_run_a_part() -> None:
    points = [SweepPoint(batch=Batch.parse(text)) for text in ("8", "2x1+8", "8,1+8")]
    prefill, decode = parts_of(attention(8, 2, 64))
    work = Work.of(points)
    assert running(columns_of(prefill, work), 3).tolist() == [True, False, True]
    assert running(columns_of(decode, work), 3).tolist() == [False, True, True]
    (product,) = parts_of(linear(64, 64))
    assert running(columns_of(product, work), 3).all()


def test_experts_see_how_many_they_are() -> None:
    (part,) = parts_of(MIXTRAL_MOE)
    work = Work.of([SweepPoint(num_tokens=16, routing=Routing(activated=7, busiest=9))])
    got = columns_of(part, work)
    assert [got[name].tolist() for name in ("num_tokens", "activated", "busiest", "top_k")] == [[16], [7], [9], [2]]


def published(signature: Signature, point: str, latency_s: float) -> PublishedLatency:
    return PublishedLatency(signature, SweepPoint.parse(point), latency_s, "kernel")


def test_a_table_numbers_the_sizes_of_its_rows() -> None:
    rows = [
        published(linear(64, 32), "T1", 1.0),
        published(linear(128, 32), "T1", 2.0),
        published(NORM, "T1", 3.0),
        published(linear(64, 32), "T8", 4.0),
        published(linear(64, 32, "fp8"), "T8", 5.0),
    ]
    table = table_of(Family("gemm", "bf16"), rows)
    assert len(table) == 3
    assert table.sizes == ((("k", 32), ("n", 64)), (("k", 32), ("n", 128)))
    assert table.groups.tolist() == [0, 0, 1]
    assert table.latencies_s.tolist() == [1.0, 4.0, 2.0]
    assert {name: values.tolist() for name, values in table.columns.items()} == {
        "k": [32, 32, 32],
        "n": [64, 64, 128],
        "num_tokens": [1, 8, 1],
    }


def test_a_table_of_one_phase_leaves_the_other_out() -> None:
    both, prompts_only = attention(8, 2, 64, backend="A"), attention(4, 2, 64, backend="A")
    rows = [published(both, "2x16+0", 1.0), published(both, "4x1+32", 2.0), published(prompts_only, "16+0", 3.0)]
    decodes, prompts = (table_of(Family(phase, "auto", "A"), rows) for phase in ("decode", "prefill"))
    assert decodes.latencies_s.tolist() == [2.0]
    assert [dict(sizes)["num_heads"] for sizes in decodes.sizes] == [8]
    assert prompts.latencies_s.tolist() == [1.0, 3.0]
    assert len(prompts.sizes) == 2
    assert table_of(Family("decode", "auto", "B"), rows).columns == {}
    assert np.array_equal(table_of(Family("decode", "auto", "B"), rows).latencies_s, np.empty(0))


def test_steps_of_both_phases_are_a_family_of_their_own() -> None:
    signature = attention(8, 2, 64, backend="A")
    rows = [published(signature, text, 1.0 + i) for i, text in enumerate(("16", "4x1+32", "16,4x1+32"))]
    mixed = mixed_part_of(signature)
    assert mixed is not None
    table = table_of(mixed.family, rows)
    assert table.latencies_s.tolist() == [3.0]
    names = ("batch_size", "prompt_len", "num_decodes", "context_len", "num_heads")
    assert [table.columns[name].tolist() for name in names] == [[1], [16], [4], [32], [8]]
    assert mixed_part_of(linear(64, 64)) is None
