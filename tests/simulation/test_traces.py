"""Files of requests: every format that people have, and what is said about a file that is none."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dooly.core.traffic import TrafficRequest
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.scheduling.prefixes import PrefixKeys
from pytest_dooly.simulation import trace_rows, trace_tables, traces
from pytest_dooly.simulation.arrivals import Arrivals
from pytest_dooly.simulation.traces import TraceFile, TraceOptions, read_lengths, read_trace
from tests.scheduling.schedulers import block_keys

AZURE_2023 = """TIMESTAMP,ContextTokens,GeneratedTokens\r
2023-11-16 18:17:03.9799600,4808,10\r
2023-11-16 18:17:04.0319600,3180,8\r
2023-11-16 18:17:06.9799600,110,27\r
"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 23:59:59.930000+00:00,2162,5
2024-05-11 00:00:00+00:00,2399,6
"""
BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,230,1317,Conversation log
118,GPT-4,417,276,693,API log
150,GPT-4,417,0,417,API log
"""
BURSTGPT_1_2 = """Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
19440110.0,1722ac82,43,GPT-4,906,446,1352,Conversation log
19440161.5,d5983bf9,2,ChatGPT,36,29,65,Conversation log
"""
VIDUR = """,arrived_at,num_prefill_tokens,num_decode_tokens
0,0.5,374,44
1,2.25,396,109
"""
PLAIN = "arrival_s,prompt_len,output_len\n"
LENGTHS = "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n10,1,11,10\n20,2,22,10\n30,3,33,10\n"
MOONCAKE = """{"timestamp": 27482, "input_length": 1124, "output_length": 52, "hash_ids": [46, 47, 2353]}
{"timestamp": 30535, "input_length": 512, "output_length": 26, "hash_ids": [46]}
{"timestamp": 30535, "input_length": 77, "output_length": 3}
"""

Write = Callable[[str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str | bytes) -> Path:
        path = tmp_path / "trace"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def shape(trace: TraceFile) -> list[tuple[float, int, int]]:
    return [(round(r.arrival_s, 9), r.prompt_len, r.output_len) for r in trace.traffic.requests]


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        (AZURE_2023, "azure", [(0, 4808, 10), (0.052, 3180, 8), (3, 110, 27)]),
        (AZURE_2024, "azure", [(0, 2162, 5), (0.07, 2399, 6)]),
        (BURSTGPT, "burstgpt", [(0, 472, 18), (40, 1087, 230), (113, 417, 276)]),
        (BURSTGPT_1_2, "burstgpt", [(0, 906, 446), (51.5, 36, 29)]),
        (VIDUR, "vidur", [(0, 374, 44), (1.75, 396, 109)]),
        (PLAIN + "7,3,4\n7,5,6.0\n\n8.5,1,1\n\n", "plain", [(0, 3, 4), (0, 5, 6), (1.5, 1, 1)]),
        ("\ufeff Output_Len ,PROMPT_LEN,arrival_ms\n4,3,1000\n6,5,1250\n", "plain", [(0, 3, 4), (0.25, 5, 6)]),
        ("\n\narrival_ns,prompt_len,output_len\n5000000000,3,4\n7000000000,5,6\n", "plain", [(0, 3, 4), (2, 5, 6)]),
        (MOONCAKE, "mooncake", [(0, 1124, 52), (3.053, 512, 26), (3.053, 77, 3)]),
    ],
    ids=["azure 2023", "azure 2024", "burstgpt", "burstgpt 1.2", "vidur", "plain", "plain ms", "plain ns", "mooncake"],
)
def test_every_format_is_recognised(write: Write, text: str, name: str, expected: list[tuple[float, int, int]]) -> None:
    trace = read_trace(write(text))
    assert (trace.format, trace.late) == (name, 0)
    assert shape(trace) == expected


def test_a_packed_file_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(gzip.compress(AZURE_2023.encode()))
    assert len(read_trace(path).traffic.requests) == 3
    path.write_bytes(gzip.compress(AZURE_2023.encode())[:-12])
    with pytest.raises(ConfigurationError, match=r"cannot read .*trace\.csv\.gz"):
        read_trace(path)


# What is rejected


def test_failures_are_counted_not_served(write: Write) -> None:
    assert read_trace(write(BURSTGPT)).rejected == {"without output": 1}
    trace = read_trace(write(PLAIN + "3,0,5\n4,5,5\n"))
    assert trace.rejected == {"without a prompt": 1}
    assert shape(trace) == [(1, 5, 5)]


def test_requests_longer_than_the_model_allows_are_counted(write: Write) -> None:
    trace = read_trace(write(PLAIN + "0,60,40\n1,60,41\n2,101,1\n"), TraceOptions(max_model_len=100))
    assert trace.rejected == {"longer than 100 tokens": 2}
    assert shape(trace) == [(0, 60, 40)]


def test_one_model_of_several_is_read(write: Write) -> None:
    trace = read_trace(write(BURSTGPT), TraceOptions(model="GPT-4"))
    assert trace.rejected == {"of other models": 2, "without output": 1}
    assert shape(trace) == [(113, 417, 276)]
    with pytest.raises(ConfigurationError, match="no column Model, of which 'GPT-4' could be one"):
        read_trace(write(AZURE_2023), TraceOptions(model="GPT-4"))


def test_a_late_request_is_sent_right_after_the_one_above_it(write: Write) -> None:
    trace = read_trace(write(PLAIN + "10,1,1\n14,2,2\n12,3,3\n9,4,4\n15,5,5\n"))
    assert trace.late == 2
    assert shape(trace) == [(0, 1, 1), (4, 2, 2), (4, 3, 3), (4, 4, 4), (5, 5, 5)]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30))
def test_requests_stay_in_the_order_of_the_file(times: list[int]) -> None:
    rows = [trace_rows.TraceRow(line, float(time_s), line, 1) for line, time_s in enumerate(times, 1)]
    kept = traces._Kept(Path("trace"), TraceOptions(), timed=True)
    kept.take(iter(rows))
    assert [r.prompt_len for r in kept.requests] == list(range(1, len(times) + 1))
    so_far = [max(times[: i + 1]) for i in range(len(times))]
    assert [r.arrival_s for r in kept.requests] == [max(0, latest - times[0]) for latest in so_far]
    assert kept.late == sum(time_s < latest for time_s, latest in zip(times, so_far, strict=True))


# How much is read


def test_reading_ends_at_the_limit(write: Write) -> None:
    path = write(PLAIN + "0,1,1\n1,2,2\n" + "junk,3,3\n" * 5)
    assert shape(read_trace(path, TraceOptions(limit=2))) == [(0, 1, 1), (1, 2, 2)]
    with pytest.raises(ConfigurationError, match=r"trace, line 4: arrival_s is 'junk'"):
        read_trace(path, TraceOptions(limit=3))


def test_rejected_requests_do_not_count_for_the_limit(write: Write) -> None:
    trace = read_trace(write(PLAIN + "0,1,0\n1,2,2\n2,3,0\n3,4,4\n4,5,5\n"), TraceOptions(limit=2))
    assert shape(trace) == [(1, 2, 2), (3, 4, 4)]


def test_pieces_of_a_table_are_one_table(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    text = PLAIN.replace("_s", "_ms") + "".join(f"{1000 * i},{i + 1},1\n" for i in range(10)) + "\n\n"
    dates = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
        f"2024-05-10 00:00:0{i},{i + 1},1\n" for i in range(9)
    )
    for size in (1, 3, 100):
        monkeypatch.setattr(trace_tables, "_ROWS_AT_ONCE", size)
        assert shape(read_trace(write(text))) == [(i, i + 1, 1) for i in range(10)]
        assert shape(read_trace(write(dates))) == [(i, i + 1, 1) for i in range(9)]
        with pytest.raises(ConfigurationError, match=r"trace, line 14: prompt_len is '-4'"):
            read_trace(write(text + "9,-4,1\n"))


def test_too_many_requests_ask_for_a_limit(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "MOST_REQUESTS", 2)
    with pytest.raises(ConfigurationError, match="has more than 2 requests: name a limit"):
        read_trace(write(VIDUR + "2,3,4,5\n"))
    assert len(read_trace(write(VIDUR)).traffic.requests) == 2


def test_times_may_be_of_another_unit(write: Write) -> None:
    options = TraceOptions(time_unit_s=60)
    assert shape(read_trace(write(VIDUR), options))[1][0] == 105
    assert shape(read_trace(write(MOONCAKE), options))[1][0] == 60 * 3053
    assert shape(read_trace(write(flat(0) + flat(2)), options))[1][0] == 120


@pytest.mark.parametrize("name", ["limit", "max_model_len", "hash_tokens", "time_unit_s"])
def test_options_that_cannot_be_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} must be above 0, got 0"):
        TraceOptions(**{name: 0})  # type: ignore[arg-type]


# Arrivals in place of the file's


def test_a_table_of_lengths_needs_a_rate(write: Write) -> None:
    path = write(LENGTHS)
    with pytest.raises(ConfigurationError, match=r"trace, line 2: no column of times, as arrival_s: name a rate"):
        read_trace(path)
    trace = read_trace(path, arrivals=Arrivals.parse("2", "constant"))
    assert trace.format == "lengths"
    assert shape(trace) == [(0.5, 10, 1), (1, 20, 2), (1.5, 30, 3)]


def test_a_rate_takes_the_place_of_the_times(write: Write) -> None:
    trace = read_trace(write(AZURE_2023), arrivals=Arrivals.parse("1@1,2@0.5,1@1", "constant"))
    assert shape(trace) == [(1, 4808, 10), (1.5, 3180, 8), (2.5, 110, 27)]
    assert [r.stage for r in trace.traffic.requests] == [0, 1, 2]
    shorter = read_trace(write(AZURE_2023), arrivals=Arrivals.parse("2@1", "constant"))
    assert shape(shorter) == [(0.5, 4808, 10), (1, 3180, 8)]


def test_a_seed_decides_the_arrivals(write: Write) -> None:
    path, arrivals = write(AZURE_2023), Arrivals.parse("1")
    first, second = (shape(read_trace(path, arrivals=arrivals, seed=seed)) for seed in (1, 2))
    assert first == shape(read_trace(path, arrivals=arrivals, seed=1)) != second


def test_sessions_arrive_whole(write: Write) -> None:
    path = write(session(0, (10, 1, 5), (20, 2, 0)) + flat(3) + session(4, (30, 3, 1), (40, 4, 0)))
    requests = read_trace(path, arrivals=Arrivals.parse("1@1,1@1", "constant")).traffic.requests
    assert [(r.arrival_s, r.follows, r.stage) for r in requests] == [(1, None, 0), (5, 0, 0), (2, None, 1)]
    requests = read_trace(path, arrivals=Arrivals.parse("1@2,1", "constant")).traffic.requests
    assert [(r.arrival_s, r.follows, r.stage) for r in requests][2:] == [(2, None, 0), (3, None, 1), (1, 3, 1)]


def test_lengths_are_drawn_from_any_file(write: Write) -> None:
    assert read_lengths(write(LENGTHS)).prompts == (10, 20, 30)
    table = read_lengths(write(BURSTGPT), TraceOptions(max_model_len=700))
    assert (table.prompts, table.outputs) == ((472, 417), (18, 276))


# Prefixes


def test_hashes_decide_what_prompts_share(write: Write) -> None:
    first, second, third = read_trace(write(MOONCAKE)).traffic.requests
    assert first.segments == ((46, 512), (47, 512), (2353, 100))
    assert second.segments == ((46, 512),)
    assert third.segments == ()


def test_a_hash_may_stand_for_fewer_tokens(write: Write) -> None:
    path = write('{"timestamp": 0, "input_length": 40, "output_length": 1, "hash_ids": [1, 2, 3], "chat_id": 7}')
    request = read_trace(path, TraceOptions(hash_tokens=16)).traffic.requests[0]
    assert request.segments == ((1, 16), (2, 16), (3, 8))
    with pytest.raises(ConfigurationError, match="3 hash_ids for 40 tokens, where one for 512 tokens makes 1: name"):
        read_trace(path)


def flat(arrival_ns: float, prompt: list[int] | None = None, generated: list[int] | None = None) -> str:
    line: dict[str, object] = {"input_toks": 5, "output_toks": 2, "arrival_time_ns": arrival_ns}
    if prompt is not None:
        line |= {"input_toks": len(prompt), "input_tok_ids": prompt}
    if generated is not None:
        line |= {"output_toks": len(generated), "output_tok_ids": generated}
    return json.dumps(line) + "\n"


def session(arrival_ns: float, *calls: tuple[int, int, float]) -> str:
    """Calls of prompt, output and seconds of a tool."""
    requests = [{"input_toks": p, "output_toks": o, "tool_duration_ns": s * 1e9} for p, o, s in calls]
    return json.dumps({"session_id": "a", "arrival_time_ns": arrival_ns, "sub_requests": requests}) + "\n"


def spoken(*calls: tuple[list[int], list[int]]) -> str:
    """A session with the ids of its calls."""
    requests = [
        {"input_toks": len(p), "output_toks": len(o), "input_tok_ids": p, "output_tok_ids": o} for p, o in calls
    ]
    return json.dumps({"session_id": "a", "arrival_time_ns": 0, "sub_requests": requests}) + "\n"


def found_again(requests: list[TrafficRequest], first: int, second: int, block_size: int = 16) -> int:
    """Blocks at the beginning of the second prompt that hold what those of the first request hold."""
    keys = PrefixKeys(block_size)
    ones = [block_keys(keys.of(place, requests[place])) for place in (first, second)]
    held = ones[0][: (requests[first].prompt_len + requests[first].output_len) // block_size]
    asked = ones[1][: requests[second].prompt_len // block_size]
    return next((i for i, (a, b) in enumerate(zip(held, asked, strict=False)) if a != b), min(len(held), len(asked)))


def test_single_requests_and_sessions_stand_in_one_file(write: Write) -> None:
    trace = read_trace(write(flat(2e9) + session(3e9, (10, 1, 0.5), (20, 2, 4), (30, 3, 0)) + flat(5e9)))
    assert trace.format == "llmservingsim"
    assert [(r.arrival_s, r.prompt_len, r.output_len, r.follows) for r in trace.traffic.requests] == [
        (0, 5, 2, None),
        (1, 10, 1, None),
        (0.5, 20, 2, 1),
        (4, 30, 3, 2),
        (3, 5, 2, None),
    ]


def test_a_session_ends_with_a_call_that_is_rejected(write: Write) -> None:
    path = write(session(0, (10, 1, 1), (200, 2, 1), (30, 3, 0)) + session(1e9, (5, 2, 3), (9, 2, 0)))
    trace = read_trace(path, TraceOptions(max_model_len=100))
    assert shape(trace) == [(0, 10, 1), (1, 5, 2), (3, 9, 2)]
    assert trace.rejected == {"longer than 100 tokens": 1, "after a rejected call of their session": 1}


@given(st.integers(0, 80), st.integers(0, 40), st.integers(0, 40))
def test_prompts_share_the_full_blocks_of_equal_tokens(common: int, one: int, other: int) -> None:
    prompts = [list(range(common)) + [1000] * (one + 1), list(range(common)) + [2000] * (other + 1)]
    rows = [row for prompt in prompts for row in _llmservingsim(flat(0, prompt))]
    requests = [TrafficRequest(0, row.prompt_len, row.output_len, row.segments, row.output) for row in rows]
    assert sum(tokens for _, tokens in requests[0].segments) == len(prompts[0])
    assert found_again(requests, 0, 1) == common // 16


def _llmservingsim(text: str) -> list[trace_rows.TraceRow]:
    import io

    from pytest_dooly.simulation.trace_lines import llmservingsim_rows

    return list(llmservingsim_rows(Path("trace"), io.BytesIO(text.encode()), time_unit_s=1e-9))


def test_generated_tokens_are_found_again_in_the_same_session(write: Write) -> None:
    prompt, answer = list(range(40)), list(range(100, 130))
    text = spoken(
        (prompt, answer), (prompt + answer + [7] * 30, answer), (prompt + answer + [7] * 30 + answer + [8], [9])
    )
    requests = list(read_trace(write(text + text)).traffic.requests)
    # 70 tokens were said when the second call comes, 130 when the third does: of both, the full blocks.
    assert (found_again(requests, 0, 1), found_again(requests, 1, 2)) == (4, 8)
    # Another session that says the same finds all of it, one call's prompt at a time.
    assert [found_again(requests, place, place + 3) for place in range(3)] == [2, 6, 8]


def test_a_call_that_does_not_go_on_begins_anew(write: Write) -> None:
    prompt, answer = list(range(40)), list(range(100, 130))
    requests = list(
        read_trace(write(spoken((prompt, answer), (prompt + [7] * 60, [1]), (prompt, [2])))).traffic.requests
    )
    assert (found_again(requests, 0, 1), found_again(requests, 0, 2)) == (2, 2)
    without = spoken((prompt, []), (prompt + [7] * 60, [1])).replace('"output_toks": 0, ', '"output_toks": 4, ')
    without = without.replace(', "output_tok_ids": []', "")
    first, second = read_trace(write(without)).traffic.requests
    assert first.output is None
    assert second.segments[:2] == first.segments[:2]


def test_prompts_without_ids_share_nothing(write: Write) -> None:
    text = json.dumps({"input_toks": 3, "output_toks": 1, "arrival_time_ns": 0, "output_tok_ids": [5]})
    request = read_trace(write(text)).traffic.requests[0]
    assert (request.segments, request.output) == ((), None)


# What is no file of requests


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"trace is empty: name CSV with the columns TIMESTAMP"),
        ("\n \n", "trace is empty"),
        (PLAIN, "trace has no request that can be served: it has none"),
        (PLAIN + "0,5,0\n0,6,0\n0,0,1\n", "can be served: 2 without output, 1 without a prompt"),
        ("time,tokens\n0,1\n", "trace, line 1: no known format has the columns 'time', 'tokens': name CSV"),
        ("\n\narrival_s,prompt_len\n0,1\n", "trace, line 3: no known format has the columns 'arrival_s', 'prompt_len'"),
        (",".join("abcdefghijklmnopq"), "'l', …: name"),
        ("a\rb,c", "trace, line 1: no known format has the columns"),
        (PLAIN + "0,1,1\n1,nan,1\n", "trace, line 3: prompt_len has no value: write a whole number of tokens"),
        (PLAIN + "0,1,1\n\n1,,1\n", "trace, line 4: prompt_len has no value"),
        (PLAIN + "0,1,1\n1,2\n", "trace, line 3: output_len has no value"),
        (PLAIN + "0,1,1\n-1,1,1\n", "trace, line 3: arrival_s is '-1': write a time that is not negative"),
        (PLAIN + "inf,1,1\n", "trace, line 2: arrival_s is 'inf'"),
        (PLAIN + ",1,1\n", "trace, line 2: arrival_s has no value: write a time, as in 2023"),
        (PLAIN + "0,1,1\n0,1,-3\n", "trace, line 3: output_len is '-3'"),
        (PLAIN + "0,1.5,3\n", "trace, line 2: prompt_len is '1.5'"),
        (PLAIN + "0,1e30,3\n", "trace, line 2: prompt_len is '1e30': write a whole number of tokens up to 100,000,000"),
        (PLAIN + "0,True,3\n", "trace, line 2: prompt_len is 'True'"),
        (PLAIN + "0,1,2\n0,1,2,3\n", "trace, line 3: 4 values for 3 columns"),
        (PLAIN + "0,1,2,3\n", "trace, line 2: more values than the header has names"),
        (PLAIN + '0,"1,2\n', "trace is no CSV: .*EOF inside string"),
        (AZURE_2023 + "yesterday,1,2", "trace, line 5: TIMESTAMP is 'yesterday': write a time"),
        (AZURE_2023 + "12,1,2", "trace, line 5: TIMESTAMP is '12'"),
        ("[" + MOONCAKE, "trace, line 1: a JSON list: write one request in a line"),
        ('{"prompt": "", "output_tokens": 3}', "trace, line 1: no known format has the keys 'prompt', 'output_tokens'"),
        ('{"timestamp": 1', "trace, line 1: Input data was truncated"),
        (MOONCAKE + MOONCAKE[:60], "trace, line 4: Input data was truncated: correct it, or leave the line out"),
        ('{"timestamp":' + "[" * 5000, "trace, line 1: .*recursion.*: correct it, or leave the line out"),
        (MOONCAKE + '\n{"timestamp": 1}', r"trace, line 5: Object missing required field `input_length`"),
        (MOONCAKE.replace("77", "-77"), r"trace, line 3: Expected `int` >= 0 - at `\$.input_length`"),
        (MOONCAKE.replace("77", "7.5"), r"trace, line 3: Expected `int`, got `float` - at `\$.input_length`"),
        (MOONCAKE.replace("27482", "-1"), r"trace, line 1: Expected `float` >= 0.0 - at `\$.timestamp`"),
        (MOONCAKE.replace("27482", "NaN"), "trace, line 1: JSON is malformed"),
        (MOONCAKE.replace("2353]", "-2]"), r"trace, line 1: Expected `int` >= 0 - at `\$.hash_ids"),
        (MOONCAKE.replace(", 2353]", "]"), "trace, line 1: 2 hash_ids for 1124 tokens, .* makes 3: name the tokens"),
        ('{"arrival_time_ns": 0, "sub_requests": []}', "trace, line 1: Expected `array` of length >= 1"),
        (flat(0) + '{"arrival_time_ns": 0}', "trace, line 2: Object missing required field `input_toks`"),
        (flat(0) + flat(0, [1, 2]).replace("[1, 2]", "[1]"), "trace, line 2: 1 token ids for 2 tokens"),
        (flat(0, [1], [2]).replace("[2]", "[2, 3]"), "trace, line 1: 2 token ids for 1 tokens"),
    ],
)
def test_a_wrong_file_is_told_its_line(write: Write, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read_trace(write(text))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bytes(range(256)) * 9, r"trace, line 1: no known format has the columns '\\x00"),
        (PLAIN.encode() + bytes(range(128, 256)), "trace, line 2: prompt_len has no value"),
        (b"{\xff\xfe\x00}", "trace, line 1: JSON is malformed"),
        (MOONCAKE.encode() + b'{"timestamp": 1, "input_length": 1, "\xff": 0}', "trace, line 4: "),
    ],
)
def test_binary_files_are_told_apart(write: Write, data: bytes, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read_trace(write(data))


def test_a_line_without_end_is_not_read(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    from pytest_dooly.simulation import trace_lines

    monkeypatch.setattr(trace_lines, "LONGEST_LINE_BYTES", 1 << 20)
    with pytest.raises(ConfigurationError, match="trace, line 4: longer than 1 MiB: write one request in a line"):
        read_trace(write(MOONCAKE + " " * (1 << 21)))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="Is a directory: name a file of requests"):
        read_trace(tmp_path)
    with pytest.raises(ConfigurationError, match="No such file or directory: name a file of requests"):
        read_trace(tmp_path / "nothing.csv")
