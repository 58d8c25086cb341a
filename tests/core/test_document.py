"""Dataclasses that are kept as JSON: the same again, or one message on what is wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dooly.core.document import Document
from pytest_dooly.errors import DocumentError, DoolyError


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True)
class Inner:
    size_bytes: float
    label: str | None = None


@dataclass(frozen=True)
class Outer(Document):
    colour: Colour
    pairs: tuple[tuple[str, str | int | float | bool], ...]
    inner: tuple[Inner, ...] = ()
    by_name: Mapping[str, int] = field(default_factory=dict)


values = st.text() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | st.booleans()
documents = st.builds(
    Outer,
    colour=st.just(Colour.RED),
    pairs=st.lists(st.tuples(st.text(), values)).map(tuple),
    inner=st.lists(st.builds(Inner, st.floats(allow_nan=False), st.none() | st.text())).map(tuple),
    by_name=st.dictionaries(st.text(), st.integers(0, 9)),
)


@given(documents)
def test_what_is_kept_comes_back_the_same(document: Outer) -> None:
    back = Outer.from_json(json.loads(json.dumps(document.to_json())))
    assert back == document
    assert [type(value) for _, value in back.pairs] == [type(value) for _, value in document.pairs]


def test_what_is_missing_takes_its_default_and_what_is_unknown_is_passed_over() -> None:
    assert Outer.from_json({"colour": "red", "pairs": [], "later": 1}) == Outer(Colour.RED, ())


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"colour": "red"}, "missing required field `pairs`"),
        ({"colour": "blue", "pairs": []}, "Invalid enum value 'blue'"),
        ({"colour": "red", "pairs": [["a", None]]}, r"Expected .* - at `\$\.pairs\[0\]\[1\]`"),
        ({"colour": "red", "pairs": [], "inner": [{"size_bytes": "3"}]}, r"\$\.inner\[0\]\.size_bytes"),
        ([], "Expected `object`, got `array`"),
    ],
)
def test_what_cannot_be_read_says_where_and_what_to_do(document: object, said: str) -> None:
    with pytest.raises(DocumentError, match=f"a kept Outer cannot be read .*{said}.*run what made it again") as caught:
        Outer.from_json(document)  # type: ignore[arg-type]
    assert isinstance(caught.value, DoolyError)


class Planted(int):
    """An integer that carries its origin."""


def test_numbers_that_are_no_built_in_ones_are_kept_as_such() -> None:
    document = Outer(Colour.RED, (("a", Planted(3)), ("b", np.float64(0.5))), by_name={"c": np.int64(2)})  # type: ignore[dict-item]
    assert Outer.from_json(json.loads(json.dumps(document.to_json()))) == document
    with pytest.raises(TypeError, match="of type complex cannot be kept as JSON"):
        Outer(Colour.RED, (("a", 1j),)).to_json()  # type: ignore[arg-type]
