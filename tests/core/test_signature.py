import dataclasses
import json

import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from pytest_dooly.core.operation import Operation, OperationKind, TensorSpec, Trace
from pytest_dooly.core.signature import Attribute, Signature, attending_by, model_operations, signature_of
from tests.samples import served, uses
from tests.traced import NORM, attention

hidden_size, intermediate_size, num_tokens, num_reqs = sympy.symbols(
    "hidden_size intermediate_size num_tokens num_reqs", integer=True, positive=True
)
SYMBOLS = {"hidden_size": 8, "intermediate_size": 32}

dimensions = st.integers(1, 2**40) | st.sampled_from(["num_tokens", "2*num_reqs", "num_tokens + 1"])
tensors = st.tuples(st.text(), st.sampled_from(["bf16", "int64"]), st.lists(dimensions, max_size=4).map(tuple))
values = st.text() | st.integers() | st.booleans() | st.floats(allow_nan=False)
signatures = st.builds(
    Signature,
    kind=st.sampled_from(OperationKind).filter(lambda kind: kind is not OperationKind.ATTENTION),
    name=st.text(min_size=1),
    tensors=st.lists(tensors, max_size=4).map(tuple),
    attributes=st.dictionaries(st.text(), values, max_size=4).map(lambda pairs: tuple(sorted(pairs.items()))),
    swept=st.sampled_from(["num_tokens", "num_reqs", "batch", "routing"]),
)


def linear(layer: str, *, columns: sympy.Expr = intermediate_size, attributes: tuple[Attribute, ...] = ()) -> Operation:
    return Operation(
        kind=OperationKind.LINEAR,
        name="linear",
        inputs=(TensorSpec("input", (num_tokens, hidden_size), "bf16"),),
        parameters=(TensorSpec("weight", (columns, hidden_size), "bf16"),),
        attributes=attributes,
        layer=layer,
    )


@given(signatures)
def test_a_signature_is_read_back_from_its_json(signature: Signature) -> None:
    again = Signature.from_json(json.loads(json.dumps(signature.to_json())))
    assert again == signature
    assert (again.key, again.label, hash(again)) == (signature.key, signature.label, hash(signature))


@given(signatures, signatures)
def test_a_hash_is_that_of_the_content_and_no_part_of_it(signature: Signature, other: Signature) -> None:
    again = dataclasses.replace(signature)
    assert hash(signature) == hash(signature) == hash(again)
    assert (again, repr(again), again.key) == (signature, repr(signature), signature.key)
    assert {signature: 1, other: 2}[again] == (2 if signature == other else 1)
    swept = dataclasses.replace(signature, swept="num_reqs" if signature.swept == "batch" else "batch")
    assert (swept == signature, hash(swept) == hash(signature)) == (False, False)


def test_numbers_make_the_identity_and_names_do_not() -> None:
    one = signature_of(linear("model.layers.0.up"), SYMBOLS)
    other = signature_of(linear("h.7.c_fc", columns=4 * hidden_size), {"hidden_size": 8})
    assert one == other
    assert one.key == other.key
    assert one.tensors == (("input", "bf16", ("num_tokens", 8)), ("weight", "bf16", (32, 8)))


def test_what_changes_the_kernel_changes_the_key() -> None:
    signature = signature_of(linear("up"), SYMBOLS)
    others = [
        signature_of(linear("up"), {**SYMBOLS, "hidden_size": 16}),
        signature_of(linear("up", attributes=(("quantisation", "fp8"),)), SYMBOLS),
        dataclasses.replace(signature, kind=OperationKind.MOE),
        dataclasses.replace(signature, name="linear_without_bias"),
        dataclasses.replace(signature, swept="num_reqs"),
        dataclasses.replace(signature, tensors=signature.tensors[::-1]),
        dataclasses.replace(signature, tensors=tuple((role, "fp16", shape) for role, _, shape in signature.tensors)),
    ]
    assert len({signature.key, *(other.key for other in others)}) == len(others) + 1


@pytest.mark.parametrize(
    ("kind", "attributes", "shape", "swept"),
    [
        (OperationKind.LINEAR, (), (num_tokens, hidden_size), "num_tokens"),
        (OperationKind.SAMPLER, (), (num_reqs, hidden_size), "num_reqs"),
        (OperationKind.OTHER, (), (num_tokens, num_reqs), "num_tokens"),
        (OperationKind.OTHER, (), (hidden_size,), "num_tokens"),
        (OperationKind.ATTENTION, (), (num_tokens, hidden_size), "batch"),
        (OperationKind.MIXER, (), (num_tokens, hidden_size), "batch"),
        (OperationKind.OVERHEAD, (("swept", "batch"),), (), "batch"),
    ],
)
def test_an_operation_is_swept_over_what_its_latency_depends_on(
    kind: OperationKind, attributes: tuple[Attribute, ...], shape: tuple[sympy.Expr, ...], swept: str
) -> None:
    operation = Operation(kind, "kernel", (TensorSpec("input", shape, "bf16"),), (), attributes, "layer")
    assert signature_of(operation, SYMBOLS).swept == swept


def test_equal_operations_are_counted_together_in_order() -> None:
    trace = Trace(
        "LlamaForCausalLM",
        SYMBOLS,
        (linear("0.up"), linear("0.down", columns=hidden_size), linear("1.up"), linear("1.up")),
    )
    up, down = model_operations(trace)
    assert (up.multiplicity, up.layers) == (3, ("0.up", "1.up"))
    assert (down.multiplicity, down.layers) == (1, ("0.down",))
    assert up.origins == (
        ("input", "bf16", ("num_tokens", "hidden_size")),
        ("weight", "bf16", ("intermediate_size", "hidden_size")),
    )


def test_labels_are_for_people() -> None:
    attention = Signature(
        OperationKind.ATTENTION,
        "attention",
        (("query", "bf16", ("num_tokens", 32, 128)), ("key", "bf16", ("num_tokens", 8, 128))),
        (("head_size", 128), ("num_heads", 32), ("num_kv_heads", 8)),
        "batch",
    )
    norm = (("input", "bf16", ("num_tokens",)), ("residual", "bf16", ("num_tokens", 8)))
    assert signature_of(linear("up"), SYMBOLS).label == "linear-8x32-bf16"
    assert attention.label == "attention-32h8kv128-bf16"
    assert Signature(OperationKind.NORM, "rms_norm", norm, (), "num_tokens").label == "fused_add_rms_norm-8-bf16"
    assert Signature(OperationKind.OVERHEAD, "schedule", (), (), "batch").label == "schedule"


def test_positions_give_no_label_its_sizes() -> None:
    tensors = (("positions", "int64", (3, "num_tokens")), ("query", "bf16", ("num_tokens", 512)))
    rotary = Signature(OperationKind.ROTARY, "rotary_embedding", tensors, (), "num_tokens")
    assert rotary.label == "rotary_embedding-512-bf16"


@pytest.mark.parametrize(
    ("attributes", "window", "detail"),
    [
        ((), None, ""),
        ((("sliding_window", 1024),), 1024, "-w1024"),
        ((("attention_chunk_size", 8192),), 8192, "-c8192"),
    ],
)
def test_a_query_attends_to_its_window_or_to_its_chunk(
    attributes: tuple[tuple[str, int], ...], window: int | None, detail: str
) -> None:
    heads = (("head_size", 128), ("num_heads", 32), ("num_kv_heads", 8), *attributes)
    attention = Signature(OperationKind.ATTENTION, "attention", (), tuple(sorted(heads)), "batch")
    assert attention.window == window
    assert attention.label == f"attention-32h8kv128{detail}"


def test_a_label_of_experts_counts_them() -> None:
    experts = Signature(
        OperationKind.MOE,
        "fused_moe",
        (
            ("hidden_states", "bf16", ("num_tokens", 64)),
            ("routed_experts.w13_weight", "bf16", (8, 96, 64)),
            ("routed_experts.w2_weight", "bf16", (8, 64, 48)),
        ),
        (("method", "unquantized"), ("num_local_experts", 8), ("top_k", 2)),
        "num_tokens",
    )
    assert experts.label == "fused_moe-8e2-64x96-bf16"


def test_attention_by_another_backend_is_another_operation_of_another_model() -> None:
    model = served(uses(attention(32, 8, 128)), uses(NORM))
    other = attending_by(model, "FLASHINFER")
    assert dict(other.operations[0].signature.attributes)["backend"] == "FLASHINFER"
    assert other.operations[1] == model.operations[1]
    assert other.key != model.key
    assert attending_by(model, "FLASH_ATTN").key != other.key
