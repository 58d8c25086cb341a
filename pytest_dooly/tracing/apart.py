"""A call in a process of its own, where no engine has settled on a device yet."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from pytest_dooly.core.child_process import end_with_parent
from pytest_dooly.errors import WorkerError

__all__ = ["in_own_process"]

Result = TypeVar("Result")


def in_own_process(call: Callable[..., Result], *arguments: object) -> Result:
    """What the call returns or raises there.

    Args:
        call: a function of a module.
        arguments: of the call, as plain data.

    Raises:
        WorkerError: the process was ended before it was done.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=end_with_parent) as own:
        try:
            return own.submit(call, *arguments).result()
        except BrokenProcessPool as error:
            raise WorkerError(
                "a process of its own that traces was ended, for want of memory perhaps: run it again with more"
            ) from error
