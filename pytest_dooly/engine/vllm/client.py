"""Traffic as `vllm bench serve` replays it, and what it has measured.

Its dataset `timed_trace` takes arrival times, lengths and the identities of stretches of tokens from a file, makes
tokens of each identity, and sends them as they are at their time. Here every token has an identity of its own, so that
prompts share exactly what their segments share.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pytest_dooly.core.replay import Replay
from pytest_dooly.core.traffic import Segment, Traffic, TrafficRequest
from pytest_dooly.engine.vllm.processes import LOOPBACK
from pytest_dooly.errors import ConfigurationError

__all__ = ["CLIENT_ENVIRONMENT", "client_arguments", "read_result", "trace_lines"]

CLIENT_ENVIRONMENT = {"PYTHONHASHSEED": "0", "no_proxy": LOOPBACK}
"""The client draws a token by Python's hash of its identity; no proxy is asked for what is here."""

_REPLAY_STRIDE = 1 << 40
"""Identities of one replay."""


def trace_lines(traffic: Traffic, replay: int) -> Iterator[str]:
    """A JSON line for each request.

    Args:
        traffic: whose requests do not follow each other.
        replay: its number; what two of them send has no token in common but by chance.

    Raises:
        ConfigurationError: there are sessions, whose turns no file of arrival times tells.
    """
    stretches = [_stretches(place, request) for place, request in enumerate(traffic.requests)]
    lengths: dict[int, int] = {}
    for identity, tokens in itertools.chain.from_iterable(stretches):
        lengths[identity] = max(tokens, lengths.get(identity, 0))
    ends = itertools.accumulate(lengths.values(), initial=replay * _REPLAY_STRIDE)
    starts = dict(zip(lengths, ends, strict=False))
    for request, parts in zip(traffic.requests, stretches, strict=True):
        identities = [starts[identity] + place for identity, tokens in parts for place in range(tokens)]
        lengths_of = {"input_length": request.prompt_len, "output_length": request.output_len}
        yield json.dumps({"timestamp": request.arrival_s, **lengths_of, "hash_ids": identities})


def _stretches(place: int, request: TrafficRequest) -> Sequence[Segment]:
    """What the prompt is made of.

    Raises:
        ConfigurationError: the request is a later turn of a session.
    """
    if request.follows is not None:
        raise ConfigurationError(f"request {place} follows number {request.follows}: vLLM's client sends no sessions")
    # An identity of its own is negative, so that no other request has it.
    return request.segments or ((-1 - place, request.prompt_len),)


def client_arguments(
    traffic: Traffic, *, base_url: str, model: str, tokenizer: str, trace: str, result: tuple[str, str]
) -> list[str]:
    """Arguments of `vllm bench serve`.

    Args:
        traffic: that the file holds.
        base_url: of the server.
        model: as the server calls it.
        tokenizer: folder that holds it.
        trace: file of requests.
        result: folder and name of the file that it writes.
    """
    arguments = {
        "backend": "vllm",
        "base-url": base_url,
        "endpoint": "/v1/completions",
        "model": model,
        "tokenizer": tokenizer,
        "dataset-name": "timed_trace",
        "dataset-path": trace,
        "timed-trace-chunk-hash-size": 1,
        "num-prompts": len(traffic.requests),
        "temperature": 0,
        "ready-check-timeout-sec": 0,  # its test request would leave the first prompt in the prefix cache
        "max-concurrency": traffic.concurrency,
        "result-dir": result[0],
        "result-filename": result[1],
    }
    given = [text for name, value in arguments.items() if value is not None for text in (f"--{name}", str(value))]
    return [*given, "--save-result", "--save-detailed", "--disable-tqdm"]


def read_result(
    traffic: Traffic,
    document: Mapping[str, Any],
    *,
    cached_tokens: int | None = None,
    engine_ttft_s: float | None = None,
) -> Replay:
    """What the client's `--save-detailed` says of each request.

    Args:
        traffic: that was sent.
        document: as it was saved.
        cached_tokens: as of a Replay.
        engine_ttft_s: as of a Replay.
    """
    failed = np.array([bool(error) for error in document["errors"]])
    sent_s = np.array(document["start_times"], dtype=np.float64)
    ttft_s, itls = np.array(document["ttfts"], dtype=np.float64), document["itls"]
    # Tokens that arrive together are one interval, so their sum is the time from the first to the last all the same.
    latency_s = ttft_s + np.array([sum(intervals) for intervals in itls])
    errors = tuple(str(error).strip().splitlines()[-1] for error in document["errors"] if error)
    return Replay(
        traffic=traffic,
        sent_s=sent_s - sent_s.min(),
        ttft_s=np.where(failed, np.nan, ttft_s),
        latency_s=np.where(failed, np.nan, latency_s),
        prompt_lens=np.array(document["input_lens"], dtype=np.int64),
        output_lens=np.array(document["output_lens"], dtype=np.int64),
        cached_tokens=cached_tokens,
        engine_ttft_s=engine_ttft_s,
        errors=errors,
    )
