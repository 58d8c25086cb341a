"""A simulation for people: a table beside vLLM's own, a picture, a row each request."""

from __future__ import annotations

import csv
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch
from pyarrow import parquet

from pytest_dooly.core.traffic import Traffic, TrafficRequest
from pytest_dooly.errors import ConfigurationError, MissingExtraError
from pytest_dooly.latency_db.export import ExportError
from pytest_dooly.report import simulation_report
from pytest_dooly.report.simulation_report import format_simulation, save_requests, save_simulation
from pytest_dooly.report.timeline import KV_BLOCKS, RUNNING, STEP_TIME, WAITING, Timeline
from pytest_dooly.scheduling.clock import Simulated, StepRecord
from pytest_dooly.simulation.simulate import Simulation
from pytest_dooly.simulation.summary import Slo, summary

COLUMNS = [
    "request",
    "stage",
    "sent_s",
    "scheduled_s",
    "first_token_s",
    "last_token_s",
    "prompt_len",
    "output_len",
    "ttft_s",
    "tpot_s",
    "e2el_s",
    "cached_tokens",
    "preemptions",
]

TITLE = "llama3 here"


def step(begin_s: float, latency_s: float = 0.1, **counts: int) -> StepRecord:
    known = {"num_tokens": 8, "num_decodes": 1, "num_running": 2, "num_waiting": 0, "used_blocks": 5, "preempted": 0}
    return StepRecord(begin_s, latency_s, **(known | counts))


def simulated(
    *ttfts_s: float, output_len: int = 5, steps: tuple[StepRecord, ...] = (step(0.0), step(0.1))
) -> Simulated:
    """Requests a second apart, 20 ms from token to token; the last one generates a single token."""
    number = len(ttfts_s)
    outputs = [output_len] * (number - 1) + [1]
    requests = [TrafficRequest(float(i), 100, tokens, stage=i // 2) for i, tokens in enumerate(outputs)]
    sent_s = np.arange(number, dtype=np.float64)
    first_s = sent_s + np.array(ttfts_s)
    last_s = first_s + 0.02 * (np.array(outputs) - 1)
    cached = np.arange(number, dtype=np.int64) * 25
    return Simulated(
        Traffic(requests), sent_s, sent_s, first_s, last_s, cached, np.full(number, 3, dtype=np.int64), steps
    )


THREE = simulated(0.1, 0.3, 0.2)


def values(text: str) -> dict[str, str]:
    return {line[:40].rstrip(): line[41:] for line in text.splitlines() if line[0] not in "-="}


def test_the_table_has_vllms_words_numbers_and_places() -> None:
    text = format_simulation(summary(THREE, slo=Slo(ttft_s=0.25)), title="toy")
    lines = text.splitlines()
    assert lines[0] == f"{' toy ':=^50}"
    assert lines[1] == "{:<40} {:<10}".format("Successful requests:", 3).rstrip()
    assert lines[-1] == "=" * 50
    assert [line.strip("-") for line in lines if line.startswith("-")] == [
        "Time to First Token",
        "Time per Output Token (excl. 1st token)",
        "Inter-token Latency",
        "End-to-end Latency",
        "KV Cache",
    ]
    known = values(text)
    assert known["Failed requests:"] == "0"
    assert known["Benchmark duration (s):"] == "2.20"
    assert known["Total input tokens:"] == "300"
    assert known["Total generated tokens:"] == "11"
    assert known["Request throughput (req/s):"] == "1.36"
    assert known["Request goodput (req/s):"] == "0.91"
    assert known["Output token throughput (tok/s):"] == "5.00"
    assert known["Peak concurrent requests:"] == "1.00"
    assert known["Total token throughput (tok/s):"] == "141.36"
    assert known["Mean TTFT (ms):"] == known["Median TTFT (ms):"] == "200.00"
    assert known["P99 TTFT (ms):"] == "298.00"
    assert known["Mean TPOT (ms):"] == "20.00"
    assert known["P90 ITL (ms):"] == "100.00"
    assert known["Median E2EL (ms):"] == "200.00"
    assert known["Prefix cache hit rate (%):"] == "25.00"
    assert known["Preemptions:"] == "9"
    assert {len(line) for line in lines if line[0] in "-="} == {50}
    assert not any(label.startswith("P50") for label in known)


def test_what_is_not_known_is_a_dash_and_what_is_lacking_has_no_line() -> None:
    one = simulated(0.1)
    text = format_simulation(summary(one), title="toy")
    known = values(text)
    assert known["Successful requests:"] == "1"
    assert known["Request goodput (req/s):"] == known["Mean TPOT (ms):"] == known["P99 TPOT (ms):"] == "-"
    assert known["P99 TTFT (ms):"] == "100.00"
    vllms = {name: value for name, value in summary(THREE).items() if "_itl_" not in name}
    assert "Inter-token" not in format_simulation(vllms, title="without")


def test_stages_have_a_line_each() -> None:
    text = format_simulation(Simulation(THREE).summary(), title="toy")
    header, first, second = text.partition("Stages")[2].splitlines()[1:4]
    assert header.split() == ["stage", "asked", "served", "requests", "TTFT", "P99", "TPOT", "P99", "E2EL", "P99"]
    assert first.split() == ["0", "-", "1.45", "2", "200.00", "298.00", "20.00", "20.00", "280.00", "378.00"]
    assert second.split() == ["1", "-", "5.00", "1", "200.00", "200.00", "-", "-", "200.00", "200.00"]
    assert max(map(len, text.splitlines())) <= 100
    assert "Stages" not in format_simulation(summary(THREE), title="toy")


def test_counts_of_several_engines_are_added_and_the_picture_says_so(tmp_path: Path, figures: list[Figure]) -> None:
    one = [step(i / 100, 0.01, num_running=2, used_blocks=5) for i in range(100)]
    other = [step(0.5 + i / 100, 0.01, num_running=3, engine=1) for i in range(100)]
    timeline = Timeline.of([*other, *one])
    mean, most = timeline.panels[RUNNING]
    assert (mean.min(), mean.max(), most.max()) == (2, 5, 5)
    assert set(mean[:300]) == {2}  # the other has not begun
    assert set(mean[700:900]) == {3}  # the one has ended
    save_simulation(simulated(0.1, steps=(*one, *other)), tmp_path / "two.png", title=TITLE)
    assert "1 request in 200 steps of 2 engines, counts of all together" in figures[0].get_suptitle()


def test_a_document_that_vllm_wrote_has_its_peak_and_no_cache() -> None:
    text = format_simulation({"completed": 7, "max_output_tokens_per_s": 1234.0, "mean_ttft_ms": 3.0}, title="measured")
    assert values(text) == {
        "Successful requests:": "7",
        "Peak output token throughput (tok/s):": "1234.00",
        "Mean TTFT (ms):": "3.00",
    }
    assert "KV Cache" not in text


def test_the_table_is_at_most_a_hundred_columns_wide() -> None:
    document = summary(THREE) | {"total_token_throughput": 1e12}
    lines = format_simulation(document, title="begin" + 200 * "x" + "end").splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].strip("= ").startswith("begin")
    assert lines[0].strip("= ").endswith("end")


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Those that would be saved, which takes longer than all else."""
    kept: list[Figure] = []
    monkeypatch.setattr(simulation_report, "save_png", lambda figure, _: kept.append(figure))
    return kept


def notes(ax: Any) -> list[str]:
    return [each.get_text() for each in ax.texts]


def test_the_picture_is_a_png_and_the_same_every_time(tmp_path: Path) -> None:
    save_simulation(THREE, tmp_path / "one.png", title=TITLE)
    save_simulation(THREE, tmp_path / "two.png", title=TITLE)
    content = (tmp_path / "one.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", content[16:24]) == (1600, 1200)
    assert content == (tmp_path / "two.png").read_bytes()


def test_the_picture_marks_percentiles_above_the_load(tmp_path: Path, figures: list[Figure]) -> None:
    save_simulation(THREE, tmp_path / "one.png", title=TITLE)
    ttft, tpot, *load = figures[0].axes
    assert figures[0].get_suptitle() == f"{TITLE}: 3 requests in 2 steps, as simulated"
    assert (ttft.get_title("left"), tpot.get_title("left")) == ("TTFT of 3 requests", "TPOT of 2 requests")
    assert notes(ttft) == ["p50 200 ms", "p90 280 ms", "p99 298 ms"]
    assert notes(tpot) == ["p50 20.0 ms", "p90 20.0 ms", "p99 20.0 ms"]
    assert [ax.get_title("left") for ax in load] == [WAITING, RUNNING, KV_BLOCKS, STEP_TIME]
    assert [ax.get_title("right") for ax in load] == ["at most 0", "at most 2", "at most 5", "at most 100 ms"]
    assert ttft.get_xscale() == tpot.get_xscale() == "linear"


def test_every_request_is_in_a_bar(tmp_path: Path, figures: list[Figure]) -> None:
    for ttfts_s in ((0.1, 0.3, 0.2), (0.007, 0.07, 7.3), (0.1, 0.1 + 1e-12), (0.0, 0.0)):
        save_simulation(simulated(*ttfts_s), tmp_path / "one.png", title=TITLE)
        (bars,) = figures[-1].axes[0].patches
        assert isinstance(bars, StepPatch)
        heights, *_ = bars.get_data()
        assert heights.sum() == len(ttfts_s)


def test_latencies_that_are_equal_but_for_rounding_are_one_bar(tmp_path: Path, figures: list[Figure]) -> None:
    save_simulation(simulated(*[0.3] * 30), tmp_path / "one.png", title=TITLE)
    for ax, number in zip(figures[0].axes, (30, 29), strict=False):
        (bars,) = ax.patches
        assert isinstance(bars, StepPatch)
        heights, *_ = bars.get_data()
        assert max(heights) == number


def test_latencies_over_more_than_two_decades_have_a_logarithmic_axis(tmp_path: Path, figures: list[Figure]) -> None:
    save_simulation(simulated(0.01, 0.02, 1.01), tmp_path / "wide.png", title=TITLE)
    assert figures[0].axes[0].get_xscale() == "log"
    save_simulation(simulated(0.01, 0.02, 0.99), tmp_path / "narrow.png", title=TITLE)
    assert figures[1].axes[0].get_xscale() == "linear"


def test_names_of_percentiles_stay_clear_of_the_axis(tmp_path: Path, figures: list[Figure]) -> None:
    for ttfts_s, side in (((0.1, 0.1, 0.1, 0.9), "left"), ((0.1, 0.9, 0.9, 0.9), "right")):
        save_simulation(simulated(*ttfts_s), tmp_path / "one.png", title=TITLE)
        assert {each.get_horizontalalignment() for each in figures[-1].axes[0].texts} == {side}


def test_one_request_of_one_token_has_no_tpot(tmp_path: Path, figures: list[Figure]) -> None:
    save_simulation(simulated(0.1, steps=(step(0.0),)), tmp_path / "one.png", title=TITLE)
    tpot = figures[0].axes[1]
    assert figures[0].get_suptitle() == f"{TITLE}: 1 request in 1 step, as simulated"
    assert tpot.get_title("left") == "TPOT of 0 requests"
    assert notes(tpot) == ["no request has one"]
    assert not tpot.patches


def test_preemptions_are_marked_where_there_are_any(tmp_path: Path, figures: list[Figure]) -> None:
    save_simulation(
        simulated(0.1, 0.2, steps=(step(0.0), step(1.0, preempted=2))), tmp_path / "one.png", title="llama3 here"
    )
    blocks = figures[0].axes[4]
    assert blocks.get_title("left") == "KV blocks used; preemptions marked below"
    assert np.min(np.asarray(blocks.lines[-1].get_xdata())) == pytest.approx(1.0, abs=2e-3)


def test_a_bin_has_mean_and_maximum_of_the_steps_that_begin_in_it() -> None:
    waiting = [step(i / 1024, 1 / 1024, num_waiting=i % 4) for i in range(4_000)]
    timeline = Timeline.of(waiting[::-1])  # steps of several engines need not ascend
    mean, most = timeline.panels[WAITING]
    assert len(mean) == len(most) == len(timeline.edges_s) - 1 == 1000
    assert set(mean) == {1.5}
    assert set(most) == {3.0}
    assert (timeline.edges_s[0], timeline.edges_s[-1]) == (0.0, 4_000 / 1024)
    assert not len(timeline.preempted_s)


def test_a_bin_without_a_beginning_is_under_way_or_idle() -> None:
    timeline = Timeline.of([step(0.0, 2.5, num_running=7), step(7.5, 2.5, num_running=9, preempted=1)])
    running, _ = timeline.panels["requests running"]
    times_ms, _ = timeline.panels[STEP_TIME]
    assert running[[0, 100, 249, 251, 500, 748, 751, 999]].tolist() == [7, 7, 7, 0, 0, 0, 9, 9]
    assert np.isnan(times_ms[[251, 500, 748]]).all()
    assert times_ms[[0, 249, 751, 999]].tolist() == [2500.0] * 4
    assert timeline.preempted_s.min() == pytest.approx(7.5, abs=0.02)


def test_a_short_step_does_not_hide_a_long_one_of_another_engine() -> None:
    timeline = Timeline.of([step(0.0, 10.0), step(1.0, 0.1)])
    running, _ = timeline.panels["requests running"]
    assert running.min() == 2


def test_steps_that_take_no_time_are_there(tmp_path: Path) -> None:
    timeline = Timeline.of([step(0.0, 0.0, num_waiting=1), step(0.0, 0.0, num_waiting=5)])
    assert timeline.panels[WAITING][1].max() == 5
    at_the_end = Timeline.of([step(0.0, 0.5), step(1.0, 0.0, num_waiting=4)])
    assert at_the_end.panels[WAITING][1][-1] == 4
    save_simulation(
        simulated(0.0, 0.0, steps=(step(0.0, 0.0, num_running=0),)), tmp_path / "one.png", title="llama3 here"
    )


def test_csv_and_parquet_read_back_equal(tmp_path: Path) -> None:
    save_requests(THREE, tmp_path / "deeper" / "requests.csv")
    save_requests(THREE, tmp_path / "deeper" / "requests.PARQUET")
    with (tmp_path / "deeper" / "requests.csv").open(newline="") as file:
        header, *lines = csv.reader(file)
    table = parquet.read_table(tmp_path / "deeper" / "requests.PARQUET")
    assert header == table.column_names == COLUMNS
    rows = [tuple(row.values()) for row in table.to_pylist()]
    assert [tuple(float(cell) if cell else None for cell in line) for line in lines] == rows
    assert rows[1] == pytest.approx((1, 0, 1.0, 1.0, 1.3, 1.38, 100, 5, 0.3, 0.02, 0.38, 25, 3))
    assert rows[2][COLUMNS.index("stage")] == 1
    assert [row[COLUMNS.index("tpot_s")] is None for row in rows] == [False, False, True]
    assert table["ttft_s"].to_pylist() == THREE.ttft_s.tolist()
    assert [str(table.schema.field(name).type) for name in ("request", "tpot_s")] == ["int64", "double"]
    assert sorted(path.name for path in (tmp_path / "deeper").iterdir()) == ["requests.PARQUET", "requests.csv"]


def test_a_column_of_nothing_keeps_its_type(tmp_path: Path) -> None:
    save_requests(simulated(0.1), tmp_path / "one.parquet")
    column = parquet.read_table(tmp_path / "one.parquet")["tpot_s"]
    assert (str(column.type), column.to_pylist()) == ("double", [None])


@pytest.mark.parametrize("name", ["requests.xlsx", "requests", "requests.csv.gz"])
def test_other_files_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"name a \.csv or \.parquet file, got .*{name}"):
        save_requests(THREE, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'pytest-dooly\[public-data\]', or name a \.csv file"):
        save_requests(THREE, tmp_path / "requests.parquet")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_file_that_cannot_be_written_leaves_what_was_there(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"requests.{suffix}"
    path.write_text("before")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ExportError, match=r"cannot write .*requests\.\w+: No space left on device; name another file"):
        save_requests(THREE, path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
