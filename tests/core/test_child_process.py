"""A process ends with the one that has begun it."""

from __future__ import annotations

import multiprocessing
import os
import threading
from types import SimpleNamespace

import pytest

from pytest_dooly.core.child_process import end_with_parent


def test_it_goes_on_until_its_parent_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    ended, statuses = threading.Event(), list[int]()

    def end(status: int) -> None:
        statuses.append(status)
        ended.set()

    sentinel, held_by_parent = os.pipe()
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: SimpleNamespace(sentinel=sentinel))
    monkeypatch.setattr(os, "_exit", end)
    end_with_parent()
    assert not ended.wait(0.05)
    os.close(held_by_parent)
    assert ended.wait(60)
    assert statuses == [1]
    os.close(sentinel)
