"""Serving engines behind one protocol, the only room that imports one. Imports `core`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_dooly.engine.collection import without_collection
from pytest_dooly.errors import EngineError

if TYPE_CHECKING:
    from pytest_dooly.engine.base import Engine

__all__ = ["ENGINES", "load_engine"]

ENGINES = ("vllm", "fake")
"""Names that `load_engine` knows."""


def load_engine(name: str = "vllm") -> Engine:
    """The adapter of the installed engine.

    Raises:
        EngineError: the engine is not installed, or of no known name.
    """
    if name == "vllm":
        with without_collection():
            from pytest_dooly.engine.vllm.engine import VllmEngine

        return VllmEngine()
    if name == "fake":
        from pytest_dooly.engine.fake import FakeEngine

        return FakeEngine()
    raise EngineError(f"unknown engine {name!r}: name one of {', '.join(ENGINES)}")
