"""A call in a process of its own."""

from __future__ import annotations

import os

import pytest

from pytest_dooly.core.configuration import resolve
from pytest_dooly.errors import UnknownModelError, WorkerError
from pytest_dooly.tracing.apart import in_own_process


def test_what_a_call_returns_or_raises_comes_back() -> None:
    assert in_own_process(os.getpid) != os.getpid()
    with pytest.raises(UnknownModelError, match="unknown model 'nobody'"):
        in_own_process(resolve, "nobody")


def test_a_process_that_ends_itself_is_said_to_be_ended() -> None:
    with pytest.raises(WorkerError, match="a process of its own that traces was ended"):
        in_own_process(os._exit, 1)
