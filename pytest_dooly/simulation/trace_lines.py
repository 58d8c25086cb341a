"""Requests from JSON lines: Mooncake's traces with hashes of blocks, LLMServingSim's with token ids and sessions."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, BinaryIO, TypeVar

import msgspec
import numpy as np

from pytest_dooly.core.traffic import Segment
from pytest_dooly.simulation.lengths import MOST_TOKENS
from pytest_dooly.simulation.trace_rows import FORMATS, LONGEST_LINE_BYTES, TraceRow, unreadable

__all__ = ["line_format", "llmservingsim_rows", "mooncake_rows"]

_SHARED_TOKENS = 16
"""Tokens of a prompt that are compared as one: a block of vLLM's, or an even part of one."""

_Time = Annotated[float, msgspec.Meta(ge=0)]
_Tokens = Annotated[int, msgspec.Meta(ge=0, le=MOST_TOKENS)]
_Ids = list[Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]]
_Hashes = list[Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]]
_T = TypeVar("_T")


class _Mooncake(msgspec.Struct):
    timestamp: _Time
    input_length: _Tokens
    output_length: _Tokens
    hash_ids: _Hashes | None = None


class _Call(msgspec.Struct):
    input_toks: _Tokens
    output_toks: _Tokens
    input_tok_ids: _Ids | None = None
    output_tok_ids: _Ids | None = None
    tool_duration_ns: _Time = 0


class _Flat(_Call, kw_only=True):
    arrival_time_ns: _Time


class _Session(msgspec.Struct):
    arrival_time_ns: _Time
    sub_requests: Annotated[list[_Call], msgspec.Meta(min_length=1)]


def line_format(path: Path, number: int, first: str) -> str:
    """Name of the format that a first line is of: `mooncake` or `llmservingsim`.

    Raises:
        ConfigurationError: none is known that has such keys, or the line is no JSON object.
    """
    found = _decode(path, number, first.encode(), dict[str, msgspec.Raw])
    if {"timestamp", "input_length", "output_length"} <= set(found):
        return "mooncake"
    if "arrival_time_ns" in found and {"input_toks", "sub_requests"} & set(found):
        return "llmservingsim"
    shown = ", ".join(repr(name[:40]) for name in list(found)[:12])
    raise unreadable(path, number, f"no known format has the keys {shown}: name {FORMATS}")


def mooncake_rows(
    path: Path, file: BinaryIO, *, hash_tokens: int, time_unit_s: float
) -> Generator[TraceRow, None, None]:
    """Rows of Mooncake's format, which vLLM calls `timed_trace`; prompts with equal hashes begin with equal tokens.

    Args:
        path: for messages.
        file: at its beginning.
        hash_tokens: that each hash stands for; the last of a prompt stands for the rest.
        time_unit_s: of the timestamps.

    Raises:
        ConfigurationError: a line is not of that form, or has more or fewer hashes than its tokens need.
    """
    for number, text in _lines(path, file):
        found = _decode(path, number, text, _Mooncake)
        hashes = found.hash_ids or []
        needed = -(-found.input_length // hash_tokens)
        if hashes and len(hashes) != needed:
            raise unreadable(
                path,
                number,
                f"{len(hashes)} hash_ids for {found.input_length} tokens, where one for {hash_tokens} tokens makes "
                f"{needed}: name the tokens of a hash (512 in Mooncake's traces, 16 in Qwen's)",
            )
        # All but the last are full.
        segments = [(identity, hash_tokens) for identity in hashes]
        if segments:
            segments[-1] = (hashes[-1], found.input_length - hash_tokens * (needed - 1))
        time_s = found.timestamp * time_unit_s
        yield TraceRow(number, time_s, found.input_length, found.output_length, segments=tuple(segments))


def llmservingsim_rows(path: Path, file: BinaryIO, *, time_unit_s: float) -> Generator[TraceRow, None, None]:
    """Rows of LLMServingSim's format: single requests, and sessions whose calls wait for each other and for tools.

    Prompts share what their token ids share, 16 at a time. Generated tokens are found again in later calls of the same
    session, where the ids of both are given.

    Args:
        path: for messages.
        file: at its beginning.
        time_unit_s: of arrivals and of tools.

    Raises:
        ConfigurationError: a line is not of that form, or has more or fewer ids than tokens.
    """
    for number, text in _lines(path, file):
        found: _Flat | _Session
        if b'"sub_requests"' in text:
            found = _decode(path, number, text, _Session)
            calls = found.sub_requests
        else:
            found = _decode(path, number, text, _Flat)
            calls = [found]
        time_s: float | None = found.arrival_time_ns * time_unit_s
        wait_s = None
        for call, (segments, output) in zip(calls, _shared(path, number, calls), strict=True):
            yield TraceRow(
                number, time_s, call.input_toks, call.output_toks, segments=segments, output=output, wait_s=wait_s
            )
            time_s, wait_s = None, call.tool_duration_ns * time_unit_s


def _shared(path: Path, number: int, calls: list[_Call]) -> Iterator[tuple[tuple[Segment, ...], int | None]]:
    """Segments of each call's prompt, and the identity of its output; none where ids are not given."""
    said: list[int] = []
    said_in: tuple[Segment, ...] = ()
    for call in calls:
        prompt, generated = call.input_tok_ids, call.output_tok_ids
        for ids, tokens in ((prompt, call.input_toks), (generated, call.output_toks)):
            if ids is not None and len(ids) != tokens:
                raise unreadable(path, number, f"{len(ids)} token ids for {tokens} tokens: correct either")
        if not prompt:
            yield (), None
            said = []
            continue
        # What goes on after an earlier call is cut where that was cut, or else equal tokens are of unequal segments.
        goes_on = bool(said) and prompt[: len(said)] == said
        segments = (*said_in, *_cut(prompt[len(said) :])) if goes_on else _cut(prompt)
        output = _identity(generated) if generated else None
        yield segments, output
        said = [] if not generated else prompt + generated
        said_in = () if output is None else (*segments, (output, call.output_toks))


def _cut(ids: list[int]) -> tuple[Segment, ...]:
    parts = (ids[start : start + _SHARED_TOKENS] for start in range(0, len(ids), _SHARED_TOKENS))
    return tuple((_identity(part), len(part)) for part in parts)


def _identity(ids: list[int]) -> int:
    """A number that other ids have in one of 2 ** 63 cases; the same in every process."""
    return int.from_bytes(blake2b(np.array(ids, np.int32).tobytes(), digest_size=8).digest()) >> 1


def _lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Number, from 1, and text of each line that is not blank."""
    for number, text in enumerate(iter(lambda: file.readline(LONGEST_LINE_BYTES), b""), 1):
        if len(text) == LONGEST_LINE_BYTES:
            raise unreadable(path, number, f"longer than {LONGEST_LINE_BYTES >> 20} MiB: write one request in a line")
        if text.strip():
            yield number, text


def _decode(path: Path, number: int, text: bytes, form: type[_T]) -> _T:
    try:
        return msgspec.json.decode(text, type=form)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise unreadable(path, number, f"{error}: correct it, or leave the line out") from error
