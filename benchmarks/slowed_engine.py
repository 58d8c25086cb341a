"""An engine that the gate starts, with some of its layers slowed down, for `make bench-gate`.

Run in place of an interpreter, as `python -P slowed_engine.py SLOWER PATH…`: beside this file lie modules that have the
names of libraries, which `-P` keeps off the path.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection
from typing import Any
from unittest import mock

from pytest_dooly import engine_process
from pytest_dooly.timing import turns


def slow_down(session: Any, paths: Collection[str], slower: float) -> None:
    """Slows layers of a session down.

    Args:
        session: of an engine.
        paths: of the layers.
        slower: relative slowdown, 0.05 for 5 %.
    """
    layers = {id(module): module for path, module in session.modules() if path in paths}
    for layer in layers.values():
        layer.forward = slowed(layer.forward, slower)


def slowed(forward: Callable[..., Any], slower: float) -> Callable[..., Any]:
    """The same, and then the processor is kept busy for a share of the time that it took."""

    def run(*args: Any, **kwargs: Any) -> Any:
        begin_s = time.perf_counter()
        output = forward(*args, **kwargs)
        until_s = time.perf_counter() + slower * (time.perf_counter() - begin_s)
        while time.perf_counter() < until_s:
            pass
        return output

    return run


def main() -> None:
    """Answers as `engine_process` does."""
    slower, *paths = sys.argv[1:]

    class Slowed(turns.Turns):
        def __init__(self, session: Any, *rest: Any) -> None:
            super().__init__(session, *rest)
            slow_down(session, paths, float(slower))

    with mock.patch.object(turns, "Turns", Slowed):
        engine_process.main()


if __name__ == "__main__":
    main()
