"""What `pytest_dooly.simulate` takes."""

from __future__ import annotations

from pathlib import Path

import pytest

import pytest_dooly
from pytest_dooly.errors import ConfigurationError


@pytest.mark.parametrize("name", ["traffic", "options", "engine", "server"])
def test_what_is_of_another_kind_is_named(name: str, tmp_path: Path) -> None:
    request = pytest_dooly.TrafficRequest(0.0, 8, 2)
    given = {"traffic": pytest_dooly.Traffic([request]), "db": tmp_path / "none.db"} | {name: 5}
    with pytest.raises(ConfigurationError, match=rf"{name} must be a pytest_dooly\.\S+, got 5"):
        pytest_dooly.simulate("small", **given)  # type: ignore[arg-type]
