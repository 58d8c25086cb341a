import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from pytest_dooly.core.operation import (
    FloorDiv,
    Operation,
    OperationKind,
    TensorSpec,
    Trace,
    check_trace,
    evaluate,
    is_request_dependent,
)
from pytest_dooly.errors import TraceError

hidden_size, vocab_size, num_tokens = sympy.symbols("hidden_size vocab_size num_tokens", integer=True, positive=True)


def trace_of(*shape: sympy.Expr, parameter: bool = False) -> Trace:
    tensor = (TensorSpec("weight" if parameter else "input", shape, "bf16"),)
    inputs, parameters = ((), tensor) if parameter else (tensor, ())
    operation = Operation(OperationKind.LINEAR, "linear", inputs, parameters, (), "model.layers.0.mlp")
    return Trace("LlamaForCausalLM", {"hidden_size": 8, "vocab_size": 100}, (operation,))


@given(st.integers(-1_000, 1_000_000), st.integers(1, 1_000))
def test_floor_division_is_python_s(numerator: int, denominator: int) -> None:
    assert FloorDiv(sympy.Integer(numerator), sympy.Integer(denominator)) == numerator // denominator
    later = evaluate(FloorDiv(hidden_size, vocab_size), {"hidden_size": numerator, "vocab_size": denominator})
    assert later == numerator // denominator


@given(st.integers(1, 300_000))
def test_an_expression_prints_as_python_would_compute_it(value: int) -> None:
    padded = 64 * FloorDiv(vocab_size + 63, 64) + FloorDiv(vocab_size, hidden_size)
    assert str(FloorDiv(vocab_size + 63, 64)) == "((vocab_size + 63) // 64)"
    printed = eval(str(padded), {"vocab_size": value, "hidden_size": 7})  # noqa: S307 - what is printed is Python
    assert printed == evaluate(padded, {"vocab_size": value, "hidden_size": 7})


def test_division_by_one_is_no_division() -> None:
    assert FloorDiv(hidden_size, 1) == hidden_size


def test_a_symbol_without_value_stays() -> None:
    assert evaluate(2 * hidden_size * num_tokens, {"hidden_size": 8}) == 16 * num_tokens
    assert evaluate(sympy.Integer(3), {"hidden_size": 8}) == 3


def test_symbols_are_known_by_name_whatever_their_assumptions() -> None:
    assert evaluate(sympy.Symbol("hidden_size") * hidden_size, {"hidden_size": 8}) == 64


def test_request_symbols_make_a_dimension_request_dependent() -> None:
    assert is_request_dependent(num_tokens * hidden_size)
    assert not is_request_dependent(hidden_size + vocab_size)


@pytest.mark.parametrize("parameter", [False, True])
def test_a_sound_trace_passes(parameter: bool) -> None:
    check_trace(trace_of(num_tokens, 3 * hidden_size, sympy.Integer(4), parameter=parameter))


@pytest.mark.parametrize("parameter", [False, True])
@pytest.mark.parametrize(
    "dimension", [sympy.Symbol("unheard_of"), hidden_size - 8, hidden_size - 9, hidden_size / 3, sympy.Integer(0)]
)
def test_a_dimension_without_size_is_named(dimension: sympy.Expr, parameter: bool) -> None:
    with pytest.raises(TraceError) as raised:
        check_trace(trace_of(num_tokens, dimension, parameter=parameter))
    role = "weight" if parameter else "input"
    assert f"model.layers.0.mlp (linear): dimension {dimension} of '{role}' has no size" in str(raised.value)
