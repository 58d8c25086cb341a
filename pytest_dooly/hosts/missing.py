"""What is said where a simulator that we serve is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pytest_dooly.errors import MissingExtraError

__all__ = ["host"]


@contextmanager
def host(name: str, remedy: str) -> Iterator[None]:
    """Within it a simulator is imported.

    Raises:
        MissingExtraError: it or one of its own packages is missing.
    """
    try:
        yield
    except ImportError as error:
        raise MissingExtraError(f"{name} cannot be imported ({error}): {remedy}") from error
