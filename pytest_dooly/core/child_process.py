"""A process that another one has begun."""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing.connection import wait

__all__ = ["end_with_parent"]


def end_with_parent() -> None:
    """Sees to it that this process, begun by `multiprocessing`, ends when the one that has begun it is gone.

    One of a pool waits for its next call for ever where its parent was killed, which could not tell it to end.
    """
    threading.Thread(target=_wait_for_parent, name="end with parent", daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
