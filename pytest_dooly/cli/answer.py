"""What a command has come to, and what it says on standard error meanwhile."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pytest_dooly.errors import OutOfRangeWarning

__all__ = ["FAILED", "OK", "UNDECIDED", "UNMET", "WRONG_USAGE", "Answer", "complain", "progress", "warn"]

OK, FAILED, WRONG_USAGE, UNMET, UNDECIDED = 0, 1, 2, 3, 4
"""UNMET where a search has ended and nothing meets the SLO, UNDECIDED where a validation's noise lets nobody tell."""


@dataclass(frozen=True)
class Answer:
    """What a command prints.

    Attributes:
        document: for --json.
        lines: for people.
        status: that the program exits with.
        complaint: for standard error, once that is printed; empty for none.
    """

    document: Any
    lines: Sequence[str]
    status: int = OK
    complaint: str = ""


def progress(line: str) -> None:
    """One line before anything that takes seconds."""
    sys.stderr.write(f"dooly: {line}\n")


def warn(out_of_range: Sequence[str]) -> None:
    """One line for each operation that was asked outside of its measured range."""
    for line in out_of_range:
        sys.stderr.write(f"{OutOfRangeWarning.__name__}: {line}\n")


def complain(error: object, status: int) -> int:
    """The error for people; returns the status."""
    sys.stderr.write(f"dooly: {error}\n")
    return status
