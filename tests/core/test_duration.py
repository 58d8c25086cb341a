"""Durations are read with their unit alone."""

from __future__ import annotations

import pytest

from pytest_dooly.core.duration import duration_s


@pytest.mark.parametrize(("text", "seconds"), [("300ms", 0.3), ("1.5s", 1.5), (".5s", 0.5)])
def test_a_number_and_its_unit(text: str, seconds: float) -> None:
    assert duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["300", "", "ms", "0s", "-1ms", "1m", "infs", "1e3ms", "9" * 400 + "s"])
def test_what_is_none(text: str) -> None:
    assert duration_s(text) is None
