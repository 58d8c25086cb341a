"""The tracer on the fake engine: formulas, not only that something came out; the oracle on other sizes."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_dooly.core.configuration import resolve
from pytest_dooly.core.operation import OperationKind, Trace, evaluate
from pytest_dooly.engine.fake import FakeEngine
from pytest_dooly.errors import TraceError
from pytest_dooly.tracing.trace import trace
from tests.models import LLAMA, write


def traced(folder: Path, *, num_tokens: int = 37, num_reqs: int = 5, **changes: int) -> Trace:
    configuration = resolve(str(write(folder, LLAMA, **changes)))
    return trace(FakeEngine(), configuration, num_tokens=num_tokens, num_reqs=num_reqs)[0]


def test_every_dimension_has_its_formula(tmp_path: Path) -> None:
    by_layer = {operation.layer: operation for operation in traced(tmp_path).operations}
    qkv = by_layer["layers.1.qkv_proj"]
    assert [str(dim) for dim in qkv.inputs[0].shape] == ["num_tokens", "hidden_size"]
    assert [str(dim) for dim in qkv.parameters[0].shape] == [
        "num_attention_heads*(hidden_size // num_attention_heads)"
        " + 2*num_key_value_heads*(hidden_size // num_attention_heads)",
        "hidden_size",
    ]
    assert [str(dim) for dim in by_layer["layers.0.attn"].inputs[0].shape] == [
        "num_tokens",
        "num_attention_heads*(hidden_size // num_attention_heads)",
    ]
    assert [str(dim) for dim in by_layer["layers.0.down_proj"].inputs[0].shape] == ["num_tokens", "intermediate_size"]
    assert [str(dim) for dim in by_layer["sampler"].inputs[0].shape] == ["num_reqs", "vocab_size"]


def test_every_layer_is_recorded_as_often_as_it_runs(tmp_path: Path) -> None:
    kinds = Counter(operation.kind for operation in traced(tmp_path, num_hidden_layers=3).operations)
    assert kinds == {
        OperationKind.EMBEDDING: 1,
        OperationKind.NORM: 6,
        OperationKind.LINEAR: 13,
        OperationKind.ATTENTION: 3,
        OperationKind.ACTIVATION: 3,
        OperationKind.OTHER: 6,
        OperationKind.SAMPLER: 1,
        OperationKind.OVERHEAD: 1,
    }


def test_work_outside_of_layers_is_an_operation_of_its_own(tmp_path: Path) -> None:
    recorded = traced(tmp_path)
    added = [operation for operation in recorded.operations if operation.kind is OperationKind.OTHER]
    assert [operation.layer for operation in added[:2]] == ["layers.0/aten.add#1", "layers.0/aten.add#2"]
    assert added[0].name == "aten.add"
    assert [str(dim) for dim in added[0].inputs[1].shape] == ["num_tokens", "hidden_size"]
    assert recorded.ops_outside == len(added)
    assert recorded.ops_inside > recorded.ops_outside


@settings(max_examples=8)
@given(
    num_tokens=st.integers(2, 400),
    num_reqs=st.integers(2, 40),
    heads=st.integers(1, 4).map(lambda n: 4 * n),
    intermediate=st.integers(8, 900),
    vocabulary=st.integers(100, 5000),
)
def test_oracle(num_tokens: int, num_reqs: int, heads: int, intermediate: int, vocabulary: int) -> None:
    """At other sizes exactly the dimensions change that are labelled dependent, and by their formula."""
    with tempfile.TemporaryDirectory() as folder:
        base = traced(Path(folder) / "base")
        changes = {"num_attention_heads": heads, "intermediate_size": intermediate, "vocab_size": vocabulary}
        other = traced(Path(folder) / "other", num_tokens=num_tokens, num_reqs=num_reqs, **changes)
    request = {"num_tokens": num_tokens, "num_reqs": num_reqs}
    assert len(base.operations) == len(other.operations)
    for before, after in zip(base.operations, other.operations, strict=True):
        assert before.layer == after.layer
        for old, new in zip(before.inputs + before.parameters, after.inputs + after.parameters, strict=True):
            assert old.shape == new.shape
            sizes = [evaluate(dim, {**other.symbols, **request}) for dim in old.shape]
            assert sizes == [evaluate(dim, {**other.symbols, **request}) for dim in new.shape]


def test_a_failing_layer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pytest_dooly.engine import fake

    def broken(self: object, query: object) -> None:
        raise RuntimeError("no kernel\nat all")

    monkeypatch.setattr(fake._Attention, "forward", broken)
    with pytest.raises(
        TraceError, match=r"FakeForCausalLM .*layer layers\.0\.attn \(attention\).*RuntimeError: no kernel$"
    ):
        traced(tmp_path)
