"""Lengths keep to their laws and bounds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dooly.errors import ConfigurationError
from pytest_dooly.simulation.lengths import Lengths, LengthTable, PromptAndOutput, Tokens


def drawn(lengths: Lengths, number: int = 20_000) -> Tokens:
    return lengths.draw(np.random.default_rng(7), number)


def test_a_fixed_length_is_always_the_same() -> None:
    assert set(drawn(Lengths.parse("512"), 100).tolist()) == {512}
    assert Lengths.parse("512").only == 512
    assert Lengths.parse("uniform:1,2").only is None


@given(st.integers(1, 5000), st.floats(0, 0.99))
def test_vllms_ratio_goes_both_ways(tokens: int, ratio: float) -> None:
    lengths = Lengths.around(tokens, ratio)
    assert lengths.low == max(1, math.floor(tokens * (1 - ratio)))
    assert lengths.high == math.ceil(tokens * (1 + ratio))
    values = drawn(lengths, 200)
    assert lengths.low <= values.min() <= values.max() <= lengths.high


@given(st.integers(1, 5000), st.floats(0, 1))
def test_inferencexs_ratio_goes_down_alone(tokens: int, ratio: float) -> None:
    lengths = Lengths.below(tokens, ratio)
    assert (lengths.low, lengths.high) == (max(1, int(tokens * ratio)), tokens)
    values = drawn(lengths, 200)
    assert lengths.low <= values.min() <= values.max() <= lengths.high


def test_both_ends_of_a_range_are_drawn_and_all_alike() -> None:
    assert (Lengths.around(10, 0.2), Lengths.below(10, 0.8)) == (Lengths(low=8, high=12), Lengths(low=8, high=10))
    counts = np.bincount(drawn(Lengths.around(10, 0.2)))
    assert counts[:8].sum() == 0
    # Five values at 4,000 each, with a standard deviation of 57.
    assert counts[8:] == pytest.approx([4000] * 5, abs=5 * 57)


def test_no_spread_is_no_spread() -> None:
    assert Lengths.around(100, 0) == Lengths.below(100, 1) == Lengths.fixed(100)


@pytest.mark.parametrize("law", ["normal", "lognormal"])
def test_mean_and_deviation_are_those_of_the_lengths(law: str) -> None:
    values = drawn(Lengths.parse(f"{law}:1000,200"))
    # Standard errors are 1.4 and, with the lognormal law's heavier tail, 1.3.
    assert values.mean() == pytest.approx(1000, abs=8)
    assert values.std() == pytest.approx(200, abs=10)


def test_lognormal_lengths_lean_to_the_left() -> None:
    values = drawn(Lengths.parse("lognormal:1000,1000"))
    assert np.median(values) == pytest.approx(1000 / math.sqrt(2), rel=0.05)
    assert values.mean() == pytest.approx(1000, rel=0.05)


@given(
    st.sampled_from(["normal", "lognormal"]),
    st.floats(1, 5000),
    st.floats(0, 5000),
    st.integers(1, 3000),
    st.integers(0, 3000),
)
def test_bounds_hold(law: str, mean: float, sd: float, low: int, more: int) -> None:
    values = drawn(Lengths(law, mean, sd, low, low + more), 300)
    assert low <= values.min() <= values.max() <= low + more


def test_what_lies_outside_counts_as_the_bound() -> None:
    values = drawn(Lengths.parse("normal:100,50,100,120"))
    assert (values == 100).mean() == pytest.approx(0.5, abs=0.03)
    assert (values == 120).mean() == pytest.approx(0.35, abs=0.03)


def test_a_length_is_at_least_one_token() -> None:
    assert drawn(Lengths.parse("normal:1,100")).min() == 1


@pytest.mark.parametrize(
    "text", ["512", "uniform:8,16", "normal:512,128", "normal:512.5,0,1,100", "lognormal:1000,2e3,4,10000"]
)
def test_the_text_is_read_back(text: str) -> None:
    assert Lengths.parse(str(Lengths.parse(text))) == Lengths.parse(text)


def test_the_law_is_written_as_it_is_read() -> None:
    assert str(Lengths.parse("lognormal:512,128,1,2048")) == "lognormal:512,128,1,2048"
    assert str(Lengths.parse("normal:512,128")) == "normal:512,128"


@pytest.mark.parametrize(
    "text",
    ["", "many", "5.5", "normal", "normal:", "normal:1", "normal:1,2,3", "normal:1,2,3,x", "uniform:5", "zipf:1,2"],
)
def test_text_of_no_form_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=f"cannot read {text!r} as lengths: write TOKENS, uniform"):
        Lengths.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0", "got 0 and 0"),
        ("-5", "got -5 and -5"),
        ("uniform:9,8", "got 9 and 8"),
        ("999999999", "1 to 100,000,000"),
        ("normal:0,5", "got 0 and 5"),
        ("normal:5,-1", "got 5 and -1"),
        ("lognormal:nan,1", "got nan and 1"),
        ("lognormal:1,inf", "got 1 and inf"),
        ("normal:5,1,20,10", "got 20 and 10"),
    ],
)
def test_laws_that_cannot_be_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Lengths.parse(text)


def test_ratios_that_cannot_be_are_refused() -> None:
    for ratio in (-0.1, 1.0, math.nan):
        with pytest.raises(ConfigurationError, match="vLLM's range ratio must be at least 0 and below 1"):
            Lengths.around(10, ratio)
    for ratio in (-0.1, 1.1, math.nan):
        with pytest.raises(ConfigurationError, match="a range ratio must be from 0 to 1"):
            Lengths.below(10, ratio)
    with pytest.raises(ConfigurationError, match="no law 'zipf'"):
        Lengths("zipf")


def test_prompts_and_outputs_have_laws_of_their_own() -> None:
    prompts, outputs = PromptAndOutput(Lengths.fixed(9), Lengths.parse("uniform:2,4")).draw(
        np.random.default_rng(0), 50
    )
    assert set(prompts.tolist()) == {9}
    assert set(outputs.tolist()) == {2, 3, 4}


def test_a_row_of_a_table_stays_together() -> None:
    table = LengthTable((10, 20, 30), (1, 2, 3))
    prompts, outputs = table.draw(np.random.default_rng(0), 300)
    assert (prompts == 10 * outputs).all()
    assert np.bincount(outputs)[1:] == pytest.approx([100] * 3, abs=5 * 8.2)


@pytest.mark.parametrize(
    ("prompts", "outputs", "message"),
    [((), (), "got 0 prompts"), ((1,), (1, 2), "got 1 prompts and 2 outputs"), ((1, 0), (1, 1), "below 1")],
)
def test_a_table_that_is_none_is_refused(prompts: tuple[int, ...], outputs: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        LengthTable(prompts, outputs)
