"""Fixtures of all tests."""

import importlib
import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def _nobodys_worker() -> None:
    """Sessions within a test time their cases though the test is run by one of several workers."""
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"):
        os.environ.pop(name, None)


@pytest.fixture(scope="session")
def imported_once() -> None:
    """What torch refuses to have imported twice, so that pytester does not forget it after the run that imports it."""
    importlib.import_module("torch._inductor.lowering")


@pytest.fixture
def pytester(imported_once: None, pytester: pytest.Pytester) -> pytest.Pytester:
    """Pytest's own, for tests in whatever order."""
    return pytester
