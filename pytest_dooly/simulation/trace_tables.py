"""Requests from tables: CSV with two columns of tokens and, mostly, one of times."""

from __future__ import annotations

import csv
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import numpy.typing as npt

from pytest_dooly.errors import ConfigurationError
from pytest_dooly.simulation.lengths import MOST_TOKENS
from pytest_dooly.simulation.trace_rows import FORMATS, TraceRow, unreadable

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Table"]

_ROWS_AT_ONCE = 65_536
"""Some tens of MB at most, whatever the length of the file."""

_TABLES: tuple[tuple[str, dict[str, float], str, str], ...] = (
    ("azure", {"timestamp": 1.0}, "contexttokens", "generatedtokens"),
    ("burstgpt", {"timestamp": 1.0}, "request tokens", "response tokens"),
    ("vidur", {"arrived_at": 1.0}, "num_prefill_tokens", "num_decode_tokens"),
    ("plain", {"arrival_s": 1.0, "arrival_ms": 1e-3, "arrival_ns": 1e-9}, "prompt_len", "output_len"),
)
"""Name, columns of times with their unit in seconds, columns of prompt and output tokens."""

_WIDTH = re.compile(r"Expected (\d+) fields in line (\d+), saw (\d+)")


@dataclass(frozen=True)
class Table:
    """Which columns of a CSV file hold what.

    Attributes:
        format: name of the format; `lengths` where there are no times.
        header_line: that the names of the columns stand in, from 1.
        prompt: place of the column of prompt tokens.
        output: of the column of generated tokens.
        time: of the column of times; None where there is none.
        time_unit_s: of times that are numbers; others are dates.
        model: of the column of models; None where there is none.
    """

    format: str
    header_line: int
    prompt: int
    output: int
    time: int | None
    time_unit_s: float
    model: int | None

    @classmethod
    def recognise(cls, path: Path, header_line: int, header: str) -> Table:
        """The table whose names of columns these are, in any order and case, among others.

        Raises:
            ConfigurationError: none is known that has such columns.
        """
        try:
            found = [name.strip() for name in next(csv.reader([header]))]
        except csv.Error:  # of a file that is none
            found = [header]
        place = {name.lower(): i for i, name in reversed(list(enumerate(found)))}
        for name, times, prompt, output in _TABLES:
            if prompt in place and output in place:
                time, unit_s = next(((place[t], unit_s) for t, unit_s in times.items() if t in place), (None, 1.0))
                name = "lengths" if time is None else name
                return cls(name, header_line, place[prompt], place[output], time, unit_s, place.get("model"))
        shown = ", ".join(repr(name[:40]) for name in found[:12]) + (", …" if len(found) > 12 else "")
        raise unreadable(path, header_line, f"no known format has the columns {shown}: name {FORMATS}")

    def rows(self, path: Path, file: BinaryIO, limit: int | None) -> Generator[TraceRow, None, None]:
        """The table's rows, read piece by piece; times count from the first row where they are dates.

        Args:
            path: for messages.
            file: at its beginning.
            limit: rows that are wanted, so that no more are read at once.

        Raises:
            ConfigurationError: a row has too many values, or one that is no number, is negative or missing.
        """
        import pandas as pd

        clock = _Clock(self.time_unit_s)
        try:
            with pd.read_csv(
                file,
                header=self.header_line - 1,
                skip_blank_lines=False,  # they count as lines
                dtype=str,
                encoding="utf-8-sig",
                encoding_errors="replace",
                chunksize=min(_ROWS_AT_ONCE, limit or _ROWS_AT_ONCE),
            ) as pieces:
                for piece in pieces:
                    if not isinstance(piece.index, pd.RangeIndex):  # pandas takes surplus values for names of rows
                        raise unreadable(path, self.header_line + 1, "more values than the header has names")
                    yield from self._piece(path, piece.dropna(how="all"), clock)
        except pd.errors.ParserError as error:
            raise _malformed(path, str(error)) from error

    def _piece(self, path: Path, piece: pd.DataFrame, clock: _Clock) -> Iterator[TraceRow]:
        lines = piece.index.to_numpy() + self.header_line + 1
        prompts = _tokens(path, lines, piece.iloc[:, self.prompt])
        outputs = _tokens(path, lines, piece.iloc[:, self.output])
        absent = [None] * len(lines)
        times_s = absent if self.time is None else clock.seconds(path, lines, piece.iloc[:, self.time]).tolist()
        models = absent if self.model is None else piece.iloc[:, self.model].tolist()
        yield from map(TraceRow, lines.tolist(), times_s, prompts.tolist(), outputs.tolist(), models)


class _Clock:
    """Times of one column as seconds: numbers or dates, as the first of them is."""

    def __init__(self, unit_s: float) -> None:
        self._unit_s = unit_s
        self._dates: bool | None = None
        self._first: pd.Timestamp | None = None

    def seconds(self, path: Path, lines: npt.NDArray[np.int64], column: pd.Series) -> npt.NDArray[np.float64]:
        """Seconds, of dates those since the first."""
        import pandas as pd

        if self._dates is None and len(column):
            self._dates = bool(np.isnan(pd.to_numeric(column.iloc[:1], errors="coerce").iloc[0]))
        if not self._dates:
            return _numbers(path, lines, column, "a time that is not negative") * self._unit_s
        dates = pd.to_datetime(column, format="ISO8601", errors="coerce", utc=True)
        _refuse(path, lines, column, dates.isna().to_numpy(), "a time, as in 2023-11-16 18:15:46.68 or in seconds")
        self._first = dates.iloc[0] if self._first is None else self._first
        return (dates - self._first).dt.total_seconds().to_numpy(np.float64)


def _tokens(path: Path, lines: npt.NDArray[np.int64], column: pd.Series) -> npt.NDArray[np.int64]:
    what = f"a whole number of tokens up to {MOST_TOKENS:,}"
    values = _numbers(path, lines, column, what)
    _refuse(path, lines, column, (values % 1 != 0) | (values > MOST_TOKENS), what)
    return values.astype(np.int64)


def _numbers(path: Path, lines: npt.NDArray[np.int64], column: pd.Series, what: str) -> npt.NDArray[np.float64]:
    import pandas as pd

    values = np.asarray(pd.to_numeric(column, errors="coerce"), dtype=np.float64)
    _refuse(path, lines, column, ~(np.isfinite(values) & (values >= 0)), what)
    return values


def _refuse(
    path: Path, lines: npt.NDArray[np.int64], column: pd.Series, wrong: npt.NDArray[np.bool_], what: str
) -> None:
    """Raises for the first value that is wrong."""
    if wrong.any():
        place = int(wrong.argmax())
        value = column.iloc[place]
        has = f"is {value[:40]!r}" if isinstance(value, str) else "has no value"
        raise unreadable(path, int(lines[place]), f"{column.name} {has}: write {what}, or leave the line out")


def _malformed(path: Path, message: str) -> ConfigurationError:
    width = _WIDTH.search(message)
    if width is None:
        return ConfigurationError(f"{path} is no CSV: {message.strip()}")
    expected, line, saw = width.groups()
    return unreadable(path, int(line), f"{saw} values for {expected} columns: correct it, or leave the line out")
