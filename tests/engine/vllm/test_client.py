"""Traffic as vLLM's own client reads it from our file: the same requests as are simulated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pytest_dooly.core.traffic import Traffic, TrafficRequest
from pytest_dooly.engine.vllm.client import client_arguments, read_result, trace_lines
from pytest_dooly.engine.vllm.tokenizer import write_tokenizer
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.scheduling.prefixes import PrefixKeys
from pytest_dooly.simulation.arrivals import Arrivals
from pytest_dooly.simulation.lengths import Lengths, PromptAndOutput
from pytest_dooly.simulation.loads import without_sharing
from pytest_dooly.simulation.synthetic import SharedPrefix, SyntheticTraffic
from tests.scheduling.schedulers import block_keys

VOCABULARY = 512
LAW = SyntheticTraffic(
    Arrivals.parse("8"),
    PromptAndOutput(Lengths.parse("uniform:3,40"), Lengths.parse("uniform:1,9")),
    SharedPrefix(2, 3, 37),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, VOCABULARY)
    return folder


def as_sent(traffic: Traffic, folder: Path, replay: int = 1) -> list[Any]:
    """The requests that vLLM's client makes of the file that we write, by its own options."""
    from vllm.benchmarks.datasets import get_samples
    from vllm.benchmarks.serve import add_cli_args
    from vllm.tokenizers import get_tokenizer
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    trace = folder / "trace.jsonl"
    trace.write_text("\n".join(trace_lines(traffic, replay)))
    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    names = {"base_url": "http://127.0.0.1:1", "model": "m", "tokenizer": str(folder), "trace": str(trace)}
    arguments = parser.parse_args(client_arguments(traffic, **names, result=(str(folder), "result.json")))
    assert arguments.max_concurrency == traffic.concurrency
    return list(get_samples(arguments, get_tokenizer(str(folder))))


def in_common(first: list[int], second: list[int]) -> int:
    """Tokens that two prompts begin with alike."""
    return next((i for i, (one, other) in enumerate(zip(first, second, strict=False)) if one != other), len(first))


@pytest.mark.parametrize("shared", [True, False])
def test_the_client_sends_what_is_simulated(folder: Path, shared: bool) -> None:
    drawn = LAW.draw(3, num_requests=12)
    traffic = drawn if shared else without_sharing(drawn)
    samples = as_sent(traffic, folder)
    assert [sample.timestamp for sample in samples] == [request.arrival_s for request in traffic.requests]
    assert [len(sample.prompt) for sample in samples] == [request.prompt_len for request in traffic.requests]
    assert [sample.expected_output_len for sample in samples] == [request.output_len for request in traffic.requests]
    # Blocks that the simulation takes for equal hold equal tokens, and no others do.
    block, keys = 4, PrefixKeys(4)
    tokens: dict[tuple[int, int], set[tuple[int, ...]]] = {}
    for place, (sample, request) in enumerate(zip(samples, traffic.requests, strict=True)):
        for index, key in enumerate(block_keys(keys.of(place, request))[: request.prompt_len // block]):
            tokens.setdefault(key, set()).add(tuple(sample.prompt[: (index + 1) * block]))
    assert all(len(prefixes) == 1 for prefixes in tokens.values())
    assert len({prefix for prefixes in tokens.values() for prefix in prefixes}) == len(tokens)
    assert (in_common(samples[0].prompt, samples[6].prompt) == samples[0].prompt_len) is shared  # asked again


def test_no_two_replays_have_a_block_in_common(folder: Path) -> None:
    traffic = LAW.draw(3, num_requests=4)
    first, second = (as_sent(traffic, folder, replay) for replay in (1, 2))
    assert all(in_common(one.prompt, other.prompt) < 4 for one in first for other in second)


def test_a_prompt_is_as_long_for_the_server_and_words_are_tokens(folder: Path) -> None:
    from vllm.tokenizers import get_tokenizer

    tokenizer = get_tokenizer(str(folder))
    assert tokenizer.encode("t5 t511 t0") == [5, 511, 0]
    assert tokenizer.decode([5, 511]) == "t5 t511"
    assert len(tokenizer.get_vocab()) == VOCABULARY


def test_sessions_are_refused() -> None:
    turns = Traffic([TrafficRequest(0.0, 8, 4), TrafficRequest(1.0, 8, 4, follows=0)])
    with pytest.raises(ConfigurationError, match="request 1 follows number 0"):
        list(trace_lines(turns, 1))


def test_a_result_is_read_by_its_place_and_failures_have_no_latency() -> None:
    traffic = Traffic([TrafficRequest(0.0, 8, 3), TrafficRequest(0.5, 8, 3)])
    document = {
        "errors": ["", "Traceback:\n  line\nConnectionError: gone\n"],
        "start_times": [10.0, 10.5],
        "ttfts": [0.25, 0.0],
        "itls": [[0.5, 0.25], []],
        "input_lens": [8, 8],
        "output_lens": [3, 0],
    }
    replay = read_result(traffic, document, cached_tokens=16, engine_ttft_s=0.2)
    assert replay.sent_s.tolist() == [0.0, 0.5]
    assert (replay.ttft_s[0], replay.latency_s[0]) == (0.25, 1.0)
    assert np.isnan([replay.ttft_s[1], replay.latency_s[1], replay.tpot_s[1]]).all()
    assert replay.errors == ("ConnectionError: gone",)
    assert (replay.cached_tokens, replay.engine_ttft_s) == (16, 0.2)
