"""What files of requests have in common: a row of any of them, how they are opened, how an error names its place."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from pytest_dooly.core.traffic import Segment
from pytest_dooly.errors import ConfigurationError

__all__ = ["FORMATS", "LONGEST_LINE_BYTES", "TraceRow", "first_line", "opened", "unreadable"]

LONGEST_LINE_BYTES = 1 << 26
"""Some ten million token ids; beyond, it is no file of lines."""

FORMATS = (
    "CSV with the columns TIMESTAMP,ContextTokens,GeneratedTokens (Azure), Timestamp,Request tokens,Response tokens "
    "(BurstGPT), arrived_at,num_prefill_tokens,num_decode_tokens (Vidur) or arrival_s,prompt_len,output_len; the same "
    "without times, beside a rate; JSON lines with timestamp,input_length,output_length[,hash_ids] (Mooncake) or "
    "arrival_time_ns,input_toks,output_toks or arrival_time_ns,sub_requests (LLMServingSim)"
)
"""For people: which files can be read."""


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One request as a file has it; nothing is refused yet.

    Attributes:
        line: that it stands in, from 1.
        time_s: of its arrival in seconds, from any zero; None where the file has no times, and for later turns.
        prompt_len: tokens of the prompt, 0 or more.
        output_len: tokens generated, 0 or more.
        model: that served it, where the file says so.
        segments: of the prompt, as in traffic.
        output: identity of the generated tokens, as in traffic.
        wait_s: for a later turn, seconds after the end of the row before it; None for all others.
    """

    line: int
    time_s: float | None
    prompt_len: int
    output_len: int
    model: str | None = None
    segments: tuple[Segment, ...] = ()
    output: int | None = None
    wait_s: float | None = None


def unreadable(path: Path, line: int, what: str) -> ConfigurationError:
    """The error that says what is wrong with a line of a file."""
    return ConfigurationError(f"{path}, line {line}: {what}")


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked where its name ends in .gz.

    Raises:
        ConfigurationError: it is missing, a directory, not readable or not packed as its name says.
    """
    try:
        with path.open("rb") as file:
            yield cast("BinaryIO", gzip.GzipFile(fileobj=file)) if path.suffix == ".gz" else file
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigurationError(f"cannot read {path}: {reason}: name a file of requests") from error


def first_line(path: Path, file: BinaryIO) -> tuple[int, str]:
    """Number, from 1, and text of the first line that is not blank; the file is at its beginning again afterwards.

    Raises:
        ConfigurationError: there is none.
    """
    for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE_BYTES), b""), 1):
        text = line.decode("utf-8-sig", errors="replace").strip()
        if text:
            file.seek(0)
            return number, text
    raise ConfigurationError(f"{path} is empty: name {FORMATS}")
