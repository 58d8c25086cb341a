"""Fixtures of all tests."""

import importlib

import pytest


@pytest.fixture(scope="session")
def imported_once() -> None:
    """What torch refuses to have imported twice, so that pytester does not forget it after the run that imports it."""
    importlib.import_module("torch._inductor.lowering")


@pytest.fixture
def pytester(imported_once: None, pytester: pytest.Pytester) -> pytest.Pytester:
    """Pytest's own, for tests in whatever order."""
    return pytester
