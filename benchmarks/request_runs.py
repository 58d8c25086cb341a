"""Published runs of vLLM, request by request: what arrived, and when the engine scheduled, began and ended it.

Run as `python -m benchmarks.request_runs CLONE` to make `benchmarks/request_runs.csv` again from a clone of its
source: github casys-kaist/LLMServingSim at 5daddb2 (MIT, see `benchmarks/llmservingsim/LICENSE`), the files
`bench/examples/<gpu>/<model>/vllm/requests.jsonl`, and for what prompts share, `workloads/*.jsonl`, of whose token ids
only the lengths of common beginnings are kept. vLLM is 0.19.0; the client calls the engine (`AsyncLLM.generate`)
without a server between.

What the times are (`vllm/v1/metrics/stats.py`): `arrival` is when the client's process hands a request over, by its
wall clock; all others are of the engine core, by the monotonic one: `queued` when it takes the request in, between two
steps; `scheduled` when it first makes a step with it; `first_token` and `last_token` when it has a step's results. How
far the two clocks lie apart is known up to the shortest time from arrival to queue, of one of 300 requests, which is
taken for none. So an engine that waits for no step's end has arrival equal to queued, and no time of a server is in
any figure. Seconds since the first arrival.
"""

from __future__ import annotations

import csv
import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pytest_dooly.core.traffic import Segment, Traffic, TrafficRequest

FILE = Path(__file__).with_name("request_runs.csv")

BLOCK_SIZE = 16
"""Tokens that are compared at once, as vLLM compares them."""

_TIMES = ("arrival_s", "queued_s", "scheduled_s", "first_token_s", "last_token_s")
_COLUMNS = ("run", "prompt_len", "output_len", *_TIMES, "segments")
_WORKLOADS = {
    "Llama-3.1-8B": "llama-3.1-8b",
    "Qwen3-30B-A3B-Instruct-2507": "qwen3-30b-a3b",
    "Qwen3-32B": "qwen3-32b",
}

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """One run's requests in the order of arrival; times in seconds, shape (requests,).

    Attributes:
        traffic: as it arrived.
        queued_s: when the engine took each in.
        scheduled_s: when it first made a step with it.
        first_s: when it had the first token.
        last_s: when it had the last one.
    """

    traffic: Traffic
    queued_s: Array
    scheduled_s: Array
    first_s: Array
    last_s: Array

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, str]]) -> Measured:
        """The rows of one run."""
        requests = tuple(
            TrafficRequest(
                float(row["arrival_s"]), int(row["prompt_len"]), int(row["output_len"]), _segments(row["segments"])
            )
            for row in rows
        )
        return cls(Traffic(requests), *(np.array([float(row[name]) for row in rows]) for name in _TIMES[1:]))


def read_runs() -> dict[str, Measured]:
    """All that were published and are kept, by `<gpu>/<model>`."""
    with FILE.open(newline="") as file:
        by_run = itertools.groupby(csv.DictReader(file), lambda row: row["run"])
        return {name: Measured.of(list(rows)) for name, rows in by_run}


def main() -> None:
    """Writes the file."""
    clone = Path(sys.argv[1])
    with FILE.open("w", newline="") as file:
        rows = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
        rows.writeheader()
        for path in sorted((clone / "bench" / "examples").glob("*/*/vllm/requests.jsonl")):
            if path.parent.parent.name in _WORKLOADS:
                rows.writerows(extracted(clone, path))


def extracted(clone: Path, path: Path) -> Iterator[dict[str, str | int]]:
    """The rows of one run."""
    gpu, model = path.parts[-4:-2]
    measured = [json.loads(line) for line in path.read_text().splitlines()]
    workload = clone / "workloads" / f"sharegpt-{_WORKLOADS[model]}-300-sps10.jsonl"
    sent = [json.loads(line) for line in workload.read_text().splitlines()]
    apart_s = min(request["queued_ts"] - request["arrival_time"] for request in measured)
    begin_s = measured[0]["arrival_time"]
    for request, segments in zip(measured, common([each["input_tok_ids"] for each in sent]), strict=True):
        stamps = (request[name] - apart_s for name in ("queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts"))
        times_s = [stamp_s - begin_s for stamp_s in (request["arrival_time"], *stamps)]
        yield {
            "run": f"{gpu}/{model}",
            "prompt_len": request["input_toks"],
            "output_len": request["output_toks"],
            **{name: f"{time_s:.6f}" for name, time_s in zip(_TIMES, times_s, strict=True)},
            "segments": " ".join(f"{identity}:{length}" for identity, length in segments),
        }


def common(prompts: Sequence[Sequence[int]]) -> list[list[Segment]]:
    """Prompts as segments that are equal where whole blocks of tokens are; none for one that shares nothing."""
    beginnings = [list(itertools.accumulate(_blocks(prompt), lambda a, b: hash((a, b)))) for prompt in prompts]
    users = Counter(itertools.chain.from_iterable(beginnings))
    identities: dict[int, int] = {}
    found: list[list[Segment]] = []
    for prompt, blocks in zip(prompts, beginnings, strict=True):
        segments: list[Segment] = []
        for number, same in itertools.groupby(blocks, users.__getitem__):
            if number > 1:
                together = list(same)
                identity = identities.setdefault(together[-1], len(identities) + 1)
                segments.append((identity, BLOCK_SIZE * len(together)))
        rest = len(prompt) - sum(length for _, length in segments)
        own = -len(found) - 1
        found.append([*segments, *([(own, rest)] if rest else [])] if segments else [])
    return found


def _blocks(prompt: Sequence[int]) -> Iterator[tuple[int, ...]]:
    full = len(prompt) // BLOCK_SIZE
    return (tuple(prompt[BLOCK_SIZE * i : BLOCK_SIZE * (i + 1)]) for i in range(full))


def _segments(text: str) -> tuple[Segment, ...]:
    return tuple((int(identity), int(length)) for identity, _, length in (s.partition(":") for s in text.split()))


if __name__ == "__main__":
    main()
