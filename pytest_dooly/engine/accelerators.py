"""Accelerators that a process may use, by the names that CUDA_VISIBLE_DEVICES knows them by."""

from __future__ import annotations

import os
from collections.abc import Callable

__all__ = ["VISIBLE", "visible"]

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""The variable that CUDA reads, once, when a process first uses it."""


def visible(count: Callable[[], int]) -> tuple[str, ...]:
    """The accelerators that the user lets us see: indices, or names that begin with `GPU-` or `MIG-`.

    Source: CUDA programming guide, environment variables: the first invalid entry hides itself and all after it.

    Args:
        count: how many there are, asked where the user has set nothing.
    """
    named = os.environ.get(VISIBLE)
    if named is None:
        return tuple(map(str, range(count())))
    entries = [entry.strip() for entry in named.split(",")]
    valid = [entry.isdecimal() or entry.startswith(("GPU-", "MIG-")) for entry in entries]
    return tuple(entries[: valid.index(False)] if False in valid else entries)
