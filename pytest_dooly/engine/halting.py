"""A forward pass that halts before the calls that are to be timed, so that each is made as the pass leaves it.

What a call finds is then what it finds in a step: its inputs just written, its weights evicted by all that ran since,
memory where the allocator has put it. A greenlet runs the pass, since a thread would compute with other cores' caches.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet

from pytest_dooly.engine.stand_ins import StandIn
from pytest_dooly.errors import EngineError

__all__ = ["Halted", "HaltingPass"]


class HaltingPass:
    """Runs a forward pass over and over, from one halt to the next."""

    def __init__(self, forward: Callable[[], object], what: str) -> None:
        """Prepares the pass.

        Args:
            forward: runs it once.
            what: it halts before, for an error.
        """
        self._forward = forward
        self._what = what
        self._pass = greenlet(self._run)
        self._call: partial[Any] | None = None
        self._result: Any = None

    def proceed(self) -> None:
        """Goes on to the next halt, in another pass where this one has ended.

        Raises:
            EngineError: a whole pass went by without a halt.
        """
        self._call = self._pass.switch()
        if self._call is None:
            self._pass = greenlet(self._run)
            self._call = self._pass.switch()
        if self._call is None:
            raise EngineError(f"cannot isolate {self._what}: the forward pass never calls it")

    @property
    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Of the call that the pass has halted before."""
        assert self._call is not None
        return self._call.args, self._call.keywords

    def call(self) -> Any:
        """Makes the call that the pass has halted before."""
        assert self._call is not None
        self._result = self._call()
        return self._result

    def halt(self, call: partial[Any]) -> Any:
        """Hands a call over, from within the pass; returns what it came to."""
        caller = getcurrent().parent
        assert caller is not None
        caller.switch(call)
        result, self._result = self._result, None
        return result

    def close(self) -> None:
        """Leaves the pass where it is, its context managers closed."""
        self._pass.throw(GreenletExit)

    def _run(self) -> None:
        self._forward()


class Halted(StandIn):
    """A layer before which a pass halts."""

    def __init__(self, layer: Any, halting: HaltingPass) -> None:
        super().__init__(layer)
        self._halting = halting

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Halts the pass; returns what the layer returned to whoever made the call."""
        return self._halting.halt(partial(self._layer, *args, **kwargs))

    forward = __call__
