"""Which line of an engine's error says what is wrong."""

from __future__ import annotations

__all__ = ["first_line", "reason"]


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return next(iter(str(error).strip().splitlines()), "no message")


def reason(error: Exception) -> str:
    """The one line of an engine's error that says why: pydantic wraps it, a colon leaves it for the next line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    wrapped = [line.removeprefix("Value error, ") for line in lines if line.startswith("Value error, ")]
    first, *more = wrapped or lines or [type(error).__name__]
    why = " ".join([first, *more[:1]]) if first.endswith(":") else first
    # A list of all architectures there are is no reason.
    return why.partition(" [type=")[0].partition(" Supported architectures: ")[0]
