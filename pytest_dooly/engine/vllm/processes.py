"""Processes of vLLM's own commands, each with what it starts in a group of its own that ends as a whole."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from pytest_dooly.errors import ConfigurationError

__all__ = ["LOOPBACK", "OwnProcess", "free_port"]

LOOPBACK = "127.0.0.1"

_PATIENCE_S = 15.0
"""Seconds that a process has to end by itself."""

_LAST_LINES = 12
"""Of a log, that an error shows."""


class OwnProcess:
    """A command with what it writes in a log."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        """Starts it.

        Args:
            command: program and arguments.
            log: file for what it writes, but for answers on standard output.
            environment: variables beside those of this process.
        """
        self._log = log
        with log.open("w") as out:
            self._process = subprocess.Popen(  # noqa: S603 - of our own making
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=out,
                env={**os.environ, **environment},
                text=True,
                start_new_session=True,  # its children die with it; a Ctrl-C reaches this process alone, which ends it
            )

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def ask(self, line: str) -> str:
        """Writes a line to it, waits for its answer; an empty one where it has died."""
        self.tell(line)
        return self.answer()

    def tell(self, line: str) -> None:
        """Writes a line to it; where it has died nobody reads it."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()

    def answer(self) -> str:
        """Waits for its answer to the oldest line that has none yet; an empty one where it has died."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def ending(self) -> str:
        """How it has ended: waits for that, where it has closed its answers and not ended yet."""
        try:
            status = self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            return "answers no more"
        if status >= 0:
            return f"has ended with exit status {status}"
        return f"was killed by {signal.Signals(-status).name}" + ", by the system for want of memory perhaps" * (
            -status == signal.SIGKILL
        )

    def last_lines(self) -> str:
        """The end of its log."""
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return "\n".join(lines[-_LAST_LINES:]) or "its log is empty"

    def end(self) -> None:
        """Ends it and all that it has started."""
        self._signal(signal.SIGTERM)
        try:
            self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self._signal(signal.SIGKILL)  # what it started and left behind
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                assert stream is not None
                with contextlib.suppress(BrokenPipeError):  # what it was last told and never read
                    stream.close()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def free_port(port: int = 0) -> int:
    """The port on loopback, where nothing listens at it; for 0 any such.

    Raises:
        ConfigurationError: it is taken.
    """
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            listener.bind((LOOPBACK, port))
        except OSError as error:
            raise ConfigurationError(
                f"port {port} of {LOOPBACK} cannot be had ({error.strerror}): name another, or none for any free one"
            ) from error
        return int(listener.getsockname()[1])
