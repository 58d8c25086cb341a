"""Origins: arithmetic of the engine's constructors, and the way through torch."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from pytest_dooly.core.operation import evaluate
from pytest_dooly.tracing.origin import Origin, OriginsToSymInts, Symbols

SIZES = st.integers(1, 5000)


@given(hidden=SIZES, heads=SIZES, constant=SIZES)
def test_arithmetic_keeps_value_and_expression(hidden: int, heads: int, constant: int) -> None:
    symbols = Symbols()
    a, b = symbols.plant("hidden_size", hidden), symbols.plant("num_heads", heads)
    for result, value in [
        (a + b, hidden + heads),
        (constant + a, constant + hidden),
        (a * 2 - b, hidden * 2 - heads),
        (a // b, hidden // heads),
        (constant // a, constant // hidden),
        (a % b, hidden % heads),
        ((a + 63) // 64 * 64, (hidden + 63) // 64 * 64),
    ]:
        assert result == value
        assert isinstance(result, Origin)
        assert evaluate(symbols.expression(result), {"hidden_size": hidden, "num_heads": heads}) == value


def test_expression_reads_as_python_writes_it() -> None:
    symbols = Symbols()
    vocabulary = symbols.plant("vocab_size", 32000)
    assert str(symbols.expression((vocabulary + 63) // 64 * 64)) == "64*((vocab_size + 63) // 64)"


def test_equal_values_of_different_names_stay_apart() -> None:
    symbols = Symbols()
    a, b = symbols.plant("hidden_size", 64), symbols.plant("head_dim", 64)
    assert str(symbols.expression(a + b)) == "head_dim + hidden_size"


def test_one_name_with_two_values_is_two_symbols() -> None:
    symbols = Symbols()
    symbols.plant("head_dim", 64)
    assert str(symbols.expression(symbols.plant("head_dim", 128))) == "head_dim_2"
    assert str(symbols.expression(symbols.plant("head_dim", 64))) == "head_dim"
    assert symbols.values == {"head_dim": 64, "head_dim_2": 128}


def test_an_origin_is_an_int_wherever_it_leaves_the_process() -> None:
    origin = Symbols().plant("hidden_size", 64)
    assert json.dumps({"hidden": origin}) == '{"hidden": 64}'
    assert type(pickle.loads(pickle.dumps(origin))) is int  # noqa: S301 - our own object, to see what leaves
    assert copy.deepcopy(origin) is origin
    assert copy.copy(origin) is origin


def test_arithmetic_with_other_numbers_is_plain() -> None:
    origin = Symbols().plant("head_dim", 64)
    assert origin**-0.5 == 64**-0.5
    assert origin * 0.5 == 32.0
    assert not isinstance(origin * 0.5, Origin)
    with pytest.raises(TypeError):
        origin + "x"  # type: ignore[operator]


def test_what_is_rounded_up_or_through_a_float_keeps_its_origin() -> None:
    symbols = Symbols()
    head = symbols.plant("head_dim", 96)
    for result, text, value in [
        (-(-head // 64), "-((-head_dim) // 64)", 2),
        (+head, "head_dim", 96),
        (symbols.integer(head), "head_dim", 96),
        (symbols.integer(head * 1.0), "head_dim", 96),
        (symbols.integer(head * 0.5), "(head_dim // 2)", 48),
        (symbols.integer(head / 2), "(head_dim // 2)", 48),
        (symbols.integer(head * 0.1), "(head_dim // 10)", 9),
    ]:
        assert result == value
        assert str(symbols.expression(result)) == text
        assert evaluate(symbols.expression(result), {"head_dim": 96}) == value


def test_the_stand_in_of_int_is_int_for_everything_else() -> None:
    integer = Symbols().integer
    assert [integer(), integer(2.9), integer("12"), integer("ff", 16)] == [0, 2, 12, 255]
    assert type(integer(True)) is int
    assert isinstance(3, integer)
    assert not isinstance(3.0, integer)


def test_an_origin_compares_as_its_value() -> None:
    symbols = Symbols()
    origin, tokens = symbols.plant("num_heads", 8), symbols.request("num_tokens", 8)
    assert origin == 8
    assert origin == tokens
    assert tokens == origin
    assert origin != 9
    assert 7 < origin <= 8
    assert {origin: "x"}[8] == "x"  # type: ignore[index]


@pytest.mark.parametrize("swap", [False, True])
def test_an_origin_meets_a_symint(swap: bool) -> None:
    symbols = Symbols()
    tokens, hidden = symbols.request("num_tokens", 37), symbols.plant("hidden_size", 64)
    assert str(symbols.expression(hidden * tokens if swap else tokens * hidden)) == "hidden_size*num_tokens"
    assert str(symbols.expression(hidden - tokens if swap else tokens - hidden)).count("num_tokens") == 1


def test_torch_carries_origins_through_operators() -> None:
    symbols = Symbols()
    tokens, hidden, out = symbols.request("num_tokens", 37), *map(symbols.plant, ("hidden", "out"), (64, 96))
    with FakeTensorMode(shape_env=symbols.shape_env), OriginsToSymInts():
        x, weight = torch.empty(tokens, hidden), torch.empty(2 * out, hidden)
        y = torch.nn.functional.linear(x, weight)
        gate = y[:, :out]
        heads = y.view(tokens, -1, out)
    assert [str(symbols.expression(dim)) for dim in y.shape] == ["num_tokens", "2*out"]
    assert [str(symbols.expression(dim)) for dim in gate.shape] == ["num_tokens", "out"]
    assert [str(symbols.expression(dim)) for dim in heads.shape] == ["num_tokens", "2", "out"]


def test_no_branch_replaces_a_symbol_by_its_number() -> None:
    symbols = Symbols()
    tokens, head = symbols.request("num_tokens", 37), symbols.plant("head_dim", 128)
    with FakeTensorMode(shape_env=symbols.shape_env), OriginsToSymInts():
        x = torch.empty(tokens, head)
        assert x.shape[1] == 128
        assert x.shape[0] < 100
        torch._check(x.shape[1] == 128)
        y = x.flatten()
    assert [str(symbols.expression(dim)) for dim in x.shape] == ["num_tokens", "head_dim"]
    assert str(symbols.expression(y.shape[0])) == "head_dim*num_tokens"
