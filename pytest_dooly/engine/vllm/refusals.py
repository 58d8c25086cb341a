"""Which line of an engine's error says what is wrong."""

from __future__ import annotations

import re

from pytest_dooly.errors import reason_of

__all__ = ["first_line", "reason"]


_INVALID = re.compile(r"\d+ validation errors? for \w+")
"""What pydantic writes above the name of a field and what is wrong with its value."""

_GIVEN = re.compile(r"input_value=(.*), input_type=")


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return next(iter(str(error).strip().splitlines()), "no message")


def reason(error: Exception) -> str:
    """The one line of an engine's error that says why: pydantic wraps it, a colon leaves it for the next line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    wrapped = [line.removeprefix("Value error, ") for line in lines if line.startswith("Value error, ")]
    first, *more = wrapped or lines or [reason_of(error)]
    if _INVALID.fullmatch(first) and len(more) > 1:
        given = _GIVEN.search(more[1])
        return f"{more[0]}: {_told(more[1])}{f', got {given[1]}' if given else ''}"
    why = " ".join([first, *more[:1]]) if first.endswith(":") else first
    # A list of all architectures there are is no reason.
    return _told(why).partition(" Supported architectures: ")[0]


def _told(line: str) -> str:
    """Without what pydantic adds in brackets."""
    return line.partition(" [type=")[0]
