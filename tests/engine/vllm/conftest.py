"""The adapter that the tests of its parts share."""

from __future__ import annotations

import pytest

from pytest_dooly.engine import load_engine
from pytest_dooly.engine.base import Engine


@pytest.fixture(scope="module")
def engine() -> Engine:
    return load_engine("vllm")
