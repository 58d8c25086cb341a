"""Traffic from files as people have them; formats are recognised by their columns or keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pytest_dooly.core.traffic import Traffic, TrafficRequest
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.simulation.arrivals import MOST_REQUESTS, Arrivals
from pytest_dooly.simulation.lengths import LengthTable
from pytest_dooly.simulation.trace_lines import line_format, llmservingsim_rows, mooncake_rows
from pytest_dooly.simulation.trace_rows import TraceRow, first_line, opened, unreadable
from pytest_dooly.simulation.trace_tables import Table

__all__ = ["TraceFile", "TraceOptions", "read_lengths", "read_trace"]


@dataclass(frozen=True)
class TraceOptions:
    """What of a file is read, and how.

    Attributes:
        limit: most requests; reading ends there.
        max_model_len: most tokens of a request, prompt and output; a longer one is rejected, as vLLM's server does.
        model: the only one whose requests are read, where the file names models (BurstGPT: `GPT-4` or `ChatGPT`;
            `vllm bench serve` reads GPT-4 alone). None for all.
        hash_tokens: that a hash of Mooncake's format stands for (`--timed-trace-chunk-hash-size`).
        time_unit_s: of the file's times in seconds, where it is not the format's own.
    """

    limit: int | None = None
    max_model_len: int | None = None
    model: str | None = None
    hash_tokens: int = 512
    time_unit_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("limit", "max_model_len", "hash_tokens", "time_unit_s"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigurationError(f"{name} must be above 0, got {value}")


@dataclass(frozen=True)
class TraceFile:
    """What a file holds.

    Attributes:
        traffic: its requests, the first row's time is 0.
        rejected: how many requests are not among them, by the reason.
        late: requests whose time lies before that of one above them. They are sent right after it, in the order of the
            file, which is what `vllm bench serve --dataset-name timed_trace` does.
        format: `azure`, `burstgpt`, `vidur`, `plain`, `lengths`, `mooncake` or `llmservingsim`.
    """

    traffic: Traffic
    rejected: Mapping[str, int]
    late: int
    format: str


def read_trace(
    path: Path,
    options: TraceOptions | None = None,
    *,
    arrivals: Arrivals | None = None,
    seed: int = 0,
    untimed: bool = False,
) -> TraceFile:
    """The traffic in a file, which is read piece by piece.

    Args:
        path: of the file; one whose name ends in .gz is unpacked.
        options: what of it is read; everything by default.
        arrivals: in place of the file's times; needed where it has none. The traffic ends with them or with the file.
        seed: of these arrivals.
        untimed: whether a file without times is taken too, its requests all at once, as a closed loop needs them.

    Raises:
        ConfigurationError: it cannot be read, has no known format, a line is wrong, or no request is left. Names path
            and line.
    """
    options = options or TraceOptions()
    with _rows(path, options) as (name, rows):
        kept = _Kept(path, options, timed=arrivals is None and not untimed)
        kept.take(rows)
    requests: Sequence[TrafficRequest] = kept.requests
    if arrivals is not None:
        requests = _arriving(kept.requests, arrivals, np.random.default_rng(seed))
    rates = () if arrivals is None else arrivals.each_rate
    return TraceFile(Traffic(requests, rates=rates), dict(kept.rejected), kept.late, name)


def read_lengths(path: Path, options: TraceOptions | None = None) -> LengthTable:
    """The lengths of a file's requests, to be drawn from; what else it says is not looked at.

    Raises:
        ConfigurationError: as `read_trace`, but that no times are needed.
    """
    options = options or TraceOptions()
    with _rows(path, options) as (_, rows):
        kept = _Kept(path, options, timed=False)
        kept.take(rows)
    return LengthTable(
        tuple(request.prompt_len for request in kept.requests), tuple(request.output_len for request in kept.requests)
    )


@contextmanager
def _rows(path: Path, options: TraceOptions) -> Iterator[tuple[str, Iterator[TraceRow]]]:
    """Name of the file's format, and its rows."""
    with opened(path) as file:
        number, text = first_line(path, file)
        if text.startswith("["):
            raise unreadable(path, number, "a JSON list: write one request in a line, each an object of its own")
        if text.startswith("{"):
            name = line_format(path, number, text)
            rows = _of_lines(path, file, options, name)
        else:
            table = _table(path, number, text, options)
            name, rows = table.format, table.rows(path, file, options.limit)
        with closing(rows):  # before the file that they come from
            yield name, rows


def _of_lines(path: Path, file: BinaryIO, options: TraceOptions, name: str) -> Generator[TraceRow, None, None]:
    if name == "mooncake":
        unit_s = options.time_unit_s or 1e-3
        return mooncake_rows(path, file, hash_tokens=options.hash_tokens, time_unit_s=unit_s)
    return llmservingsim_rows(path, file, time_unit_s=options.time_unit_s or 1e-9)


def _table(path: Path, number: int, header: str, options: TraceOptions) -> Table:
    table = Table.recognise(path, number, header)
    if options.model is not None and table.model is None:
        raise unreadable(path, number, f"no column Model, of which {options.model!r} could be one")
    return table if options.time_unit_s is None else replace(table, time_unit_s=options.time_unit_s)


class _Kept:
    """The requests of a file that can be served, and how many cannot."""

    def __init__(self, path: Path, options: TraceOptions, *, timed: bool) -> None:
        self.requests: list[TrafficRequest] = []
        self.rejected: Counter[str] = Counter()
        self.late = 0
        self._path = path
        self._options = options
        self._timed = timed
        self._first_s: float | None = None
        self._latest_s = 0.0
        self._session_ended = False

    def take(self, rows: Iterator[TraceRow]) -> None:
        """Goes through the rows up to the limit.

        Raises:
            ConfigurationError: no request is left, there are too many, or times are missing.
        """
        for row in rows:
            if len(self.requests) == MOST_REQUESTS:
                raise ConfigurationError(
                    f"{self._path} has more than {MOST_REQUESTS:,} requests: name a limit of at most so many"
                )
            self._add(row)
            if len(self.requests) == self._options.limit:
                return
        if not self.requests:
            reasons = ", ".join(f"{number:,} {reason}" for reason, number in self.rejected.items())
            raise ConfigurationError(f"{self._path} has no request that can be served: {reasons or 'it has none'}")

    def _add(self, row: TraceRow) -> None:
        if row.wait_s is None:
            self._session_ended = False
        if self._first_s is None:
            self._first_s = row.time_s
        reason = self._reason(row)
        if reason is not None:
            self.rejected[reason] += 1
            self._session_ended = True
            return
        arrival_s = self._arrival_s(row) if row.wait_s is None else row.wait_s
        follows = None if row.wait_s is None else len(self.requests) - 1
        self.requests.append(
            TrafficRequest(arrival_s, row.prompt_len, row.output_len, row.segments, row.output, follows=follows)
        )

    def _reason(self, row: TraceRow) -> str | None:
        """Why a request is not served."""
        options = self._options
        if row.wait_s is not None and self._session_ended:
            return "after a rejected call of their session"
        if options.model is not None and row.model != options.model:
            return "of other models"
        if not row.prompt_len:
            return "without a prompt"
        if not row.output_len:
            return "without output"
        if options.max_model_len is not None and row.prompt_len + row.output_len > options.max_model_len:
            return f"longer than {options.max_model_len} tokens"
        return None

    def _arrival_s(self, row: TraceRow) -> float:
        """Seconds after the first row, or after the latest so far where that is later."""
        if row.time_s is None or self._first_s is None:
            if self._timed:
                raise unreadable(self._path, row.line, "no column of times, as arrival_s: name a rate or a concurrency")
            return 0.0
        arrival_s = row.time_s - self._first_s
        if arrival_s < self._latest_s:
            self.late += 1
        self._latest_s = max(self._latest_s, arrival_s)
        return self._latest_s


def _arriving(requests: list[TrafficRequest], arrivals: Arrivals, rng: np.random.Generator) -> list[TrafficRequest]:
    """The requests at other times, sessions by their first, as many as there are times."""
    firsts = sum(request.follows is None for request in requests)
    times, stages = arrivals.draw(rng, num_requests=firsts)
    moments = iter(zip(times.tolist(), stages.tolist(), strict=True))
    arriving: list[TrafficRequest] = []
    for request in requests:
        if request.follows is not None:
            arriving.append(replace(request, stage=arriving[request.follows].stage))
            continue
        moment = next(moments, None)
        if moment is None:
            break
        arriving.append(replace(request, arrival_s=moment[0], stage=moment[1]))
    return arriving
