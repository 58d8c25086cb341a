"""The command line `dooly`: parses, wires and prints; decides nothing. Imports any room.

Exits 0 when it did what was asked, 2 for wrong usage, 3 where nothing meets the SLO of a search, 1 for the rest. With
--json, standard output holds one document.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TextIO

from pytest_dooly.cli.answer import FAILED, WRONG_USAGE, Answer, complain
from pytest_dooly.cli.arguments import parser
from pytest_dooly.errors import ConfigurationError, DoolyError, UnknownModelError

__all__ = ["main"]

_COMMANDS = {
    "browse": ("files", "browse"),
    "compare": ("devices", "compare"),
    "export": ("files", "export"),
    "history": ("history", "history"),
    "import": ("files", "import_tables"),
    "merge": ("files", "merge"),
    "models": ("report", "models"),
    "plan": ("devices", "plan"),
    "predict": ("predict", "predict"),
    "report": ("report", "report"),
    "search": ("search", "search"),
    "simulate": ("simulate", "simulate"),
    "trace": ("trace", "trace"),
    "validate": ("validate", "validate"),
}
"""Module and function of each command, imported when it runs: `dooly --help` needs neither numpy nor SQLite."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status."""
    arguments = parser().parse_args(argv)
    with _clean_stdout() as out:
        try:
            module, function = _COMMANDS[arguments.command]
            run = getattr(importlib.import_module(f"{__name__}.{module}"), function)
            answer: Answer = run(arguments)
        except (UnknownModelError, ConfigurationError) as error:
            return complain(error, WRONG_USAGE)
        except DoolyError as error:
            return complain(error, FAILED)
        except KeyboardInterrupt:
            return complain("interrupted", FAILED)
        text = json.dumps(answer.document, indent=2) if arguments.json else "\n".join(answer.lines)
        out.write(text + "\n")
    return complain(answer.complaint, answer.status) if answer.complaint else answer.status


@contextlib.contextmanager
def _clean_stdout() -> Iterator[TextIO]:
    """Standard output for our own lines; what an engine writes there goes to standard error."""
    try:
        kept = os.dup(sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):  # captured: there is no file to redirect
        yield sys.stdout
        return
    sys.stdout.flush()
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        with os.fdopen(os.dup(kept), "w") as out:
            yield out
    finally:
        sys.stdout.flush()
        os.dup2(kept, sys.stdout.fileno())
        os.close(kept)
