"""Browsing: every ready-made query answers, every chart has its columns, and nothing is written."""

from __future__ import annotations

import asyncio
import dataclasses
import html
import importlib.util
import json
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.parse
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pytest_dooly import cli
from pytest_dooly.core.batch import Batch, SweepPoint
from pytest_dooly.core.measurement import Failure
from pytest_dooly.errors import ConfigurationError, DatabaseError, MissingExtraError
from pytest_dooly.latency_db.browse import HOST, browse, queries, served
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.latency_db.merge import merge
from tests.latency_db.samples import contents
from tests.samples import ATTENTION, ENVIRONMENT, LINEAR, SAMPLER, TOKENS, measured, published, uses
from tests.samples import served as model

DECODES = [SweepPoint(batch=Batch.uniform(num, 1, context)) for num in (1, 8) for context in (0, 512, 2048)]
MIXED = SweepPoint(batch=Batch.parse("8x1+512,128"))
LATER = dataclasses.replace(ENVIRONMENT, engine_version="2")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A latency DB that has something of everything."""
    path, other = tmp_path / "mine.db", tmp_path / "other.db"
    with LatencyDB.open(path) as db:
        for environment in (ENVIRONMENT, LATER):
            for point in TOKENS:
                outcome = dataclasses.replace(measured(1e-6 * (point.num_tokens or 0)), noise=0.03)
                db.record(LINEAR, environment, point, outcome, spent_s=1.0)
        for point in (*DECODES, MIXED):
            db.record(ATTENTION, ENVIRONMENT, point, measured(1e-5), spent_s=1.0)
        for num_reqs in (1, 2):
            db.record(SAMPLER, ENVIRONMENT, SweepPoint(num_reqs=num_reqs), Failure("out of memory"), spent_s=1.0)
        for name in ("one", "two"):
            db.save_model(model(uses(LINEAR), uses(ATTENTION), uses(SAMPLER), name=name), ENVIRONMENT)
        db.save_regressor(LINEAR.key, ENVIRONMENT, {}, error=0.02)
        db.save_regressor(ATTENTION.key, ENVIRONMENT, {}, error=0.05)
        db.publish(published({(LINEAR, point): 2e-6 for point in TOKENS[:3]}, unmapped={"odd": 1, "rare": 2}))
        db.publish(published({(ATTENTION, point): 2e-6 for point in DECODES[:2]}, file="attention.parquet"))
    with LatencyDB.open(other) as db:
        for num_reqs in (1, 2):
            db.record(SAMPLER, ENVIRONMENT, SweepPoint(num_reqs=num_reqs), measured(1e-6), spent_s=1.0)
            db.record(SAMPLER, LATER, SweepPoint(num_reqs=num_reqs), Failure("no kernel"), spent_s=1.0)
    merge(path, [other])
    other.unlink()
    return path


def pages(path: Path, *addresses: str) -> list[Any]:
    """Datasette's answers."""

    async def get() -> list[Any]:
        return [await datasette.client.get(address) for address in addresses]

    with served(path) as datasette:
        return asyncio.run(get())


@pytest.fixture
def answers(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows of every ready-made query, by its name."""
    every = queries()
    answers = pages(path, *(f"{query.path}.json?_shape=array" for query in every))
    assert [answer.status_code for answer in answers] == [200] * len(every)
    return {query.name: answer.json() for query, answer in zip(every, answers, strict=True)}


def test_every_query_answers_and_every_chart_has_more_than_one_mark(answers: dict[str, list[dict[str, Any]]]) -> None:
    assert len(answers) >= 12
    for query in queries():
        rows = answers[query.name]
        assert len(rows) >= 2, query.name  # the least that is drawn
        if query.chart is not None:
            chart = query.chart
            assert chart.mark in ("bar", "line", "circle")
            assert chart.x_type in ("ordinal", "nominal", "quantitative", "temporal")
            assert {chart.x, chart.y, chart.color or chart.x} <= rows[0].keys(), query.name
            assert all(isinstance(row[chart.y], int | float) for row in rows if row[chart.y] is not None), query.name
            assert sum(row[chart.y] is not None for row in rows) >= 2, query.name


def test_every_page_is_there_with_its_rows_and_its_chart(path: Path) -> None:
    for query, page in zip(queries(), pages(path, *(query.path for query in queries())), strict=True):
        assert page.status_code == 200
        assert html.escape(query.title) in page.text
        assert 'class="rows-and-columns"' in page.text, query.name
        assert re.search(r'<script src="/-/static-plugins/datasette_vega/main\.\w+\.js">', page.text)
        assert (f'href="{query.path}?chart=1#g.mark=' in page.text) == (query.chart is not None)


def test_the_start_page_leads_to_every_query_and_chart(path: Path) -> None:
    (start,) = pages(path, "/")
    links = [html.unescape(link) for link in re.findall(r'href="([^"]+)"', start.text)]
    for query in queries():
        assert query.path in links
        assert html.escape(query.description) in start.text
    charts = [link for link in links if "#" in link]
    assert len(charts) == sum(query.chart is not None for query in queries()) >= 10
    assert {page.status_code for page in pages(path, *(chart.partition("#")[0] for chart in charts))} == {200}
    options = dict(urllib.parse.parse_qsl(charts[0].partition("#")[2]))
    assert options == {
        "g.mark": "circle",
        "g.x_column": "measured_at",
        "g.x_type": "temporal",
        "g.y_column": "median_us",
        "g.y_type": "quantitative",
        "g.color_column": "kind",
    }


def test_coverage_asks_for_published_latencies_by_key_however_many_there_are(path: Path) -> None:
    (sql,) = (query.sql for query in queries() if query.name == "coverage_of_models")
    with closing(sqlite3.connect(path)) as connection:
        steps = [detail for *_, detail in connection.execute(f"EXPLAIN QUERY PLAN {sql}")]
    (asked,) = (step for step in steps if "published_measurement" in step)
    assert asked == "SEARCH published_measurement USING PRIMARY KEY (environment=? AND signature=?)"


def test_what_queries_say(answers: dict[str, list[dict[str, Any]]]) -> None:
    slowest = answers["slowest_operations"][0]
    assert (slowest["operation"], slowest["sweep_point"], slowest["mean_us"]) == (LINEAR.label, "T512", 512)
    tokens = answers["latency_against_tokens"]
    assert {row["signature"] for row in tokens} == {LINEAR.label}
    assert [row["size"] for row in tokens[:5]] == [1, 1, 1, 2, 2]
    decodes = answers["decode_attention"]
    assert {(row["requests"], row["context_len"]) for row in decodes} == {
        *((f"{num} requests", context) for num in (1, 8) for context in (0, 512, 2048)),
        *(("1 requests (published)", context) for context in (0, 512)),
    }
    assert {row["reason"] for row in answers["failures"]} == {"no kernel"}
    assert {row["noise_percent"] for row in answers["noise"]} == {3.0}
    both = answers["own_and_published"]
    assert {(row["signature"], row["ratio"]) for row in both} >= {(LINEAR.label, 0.5), (ATTENTION.label, 5)}
    assert len(both) == 3 * 2 + 2
    for row in answers["coverage_of_models"]:
        assert [row[name] for name in ("operations", "measured", "published", "fitted")] == [3, 3, 2, 2]
    assert [(row["error_percent"], row["points"]) for row in answers["held_out_errors"]] == [(5, 7), (2, 10)]
    assert [(row["file"], row["latencies"], row["licence"]) for row in answers["sources"]] == [
        ("gemm.parquet", 3, "Apache-2.0"),
        ("attention.parquet", 2, "Apache-2.0"),
    ]
    assert [(row["reason"], row["num_rows"]) for row in answers["not_mapped"]] == [("rare", 2), ("odd", 1)]
    assert {row["later_environment"] for row in answers["drift"]} == {str(LATER)}
    assert {row["ratio"] for row in answers["drift"]} == {1}
    assert {row["superseded_reason"] for row in answers["superseded_outcomes"]} == {"out of memory"}


def test_an_operation_can_be_named(path: Path) -> None:
    asked = urllib.parse.urlencode({"signature": SAMPLER.label, "_shape": "array"})
    by_size, decodes = pages(
        path, f"/latency/latency_against_tokens.json?{asked}", f"/latency/decode_attention.json?{asked}"
    )
    assert [row["size"] for row in by_size.json()] == [1, 2]
    assert decodes.json() == []


def test_an_empty_latency_db_can_be_browsed(tmp_path: Path) -> None:
    LatencyDB.open(tmp_path / "empty.db").close()
    answers = pages(tmp_path / "empty.db", "/", *(query.path for query in queries()))
    assert {answer.status_code for answer in answers} == {200}


def test_nothing_is_left_beside(path: Path) -> None:
    before = contents(path.parent)
    pages(path, "/", "/latency", "/latency/latency", "/latency/failures")
    assert contents(path.parent) == before


@pytest.mark.parametrize("sql", ["DELETE FROM measurement", "WITH x AS (SELECT 1) DELETE FROM measurement"])
def test_nothing_can_be_written(path: Path, sql: str) -> None:
    before = path.read_bytes()
    (refused,) = pages(path, f"/latency?{urllib.parse.urlencode({'sql': sql})}")
    assert refused.status_code == 400
    with (
        served(path) as datasette,
        closing(datasette.databases["latency"].connect()) as connection,
        pytest.raises(sqlite3.OperationalError, match="readonly"),
    ):
        connection.execute(sql)
    assert path.read_bytes() == before


def test_what_a_run_records_meanwhile_is_seen(path: Path) -> None:
    async def failures() -> int:
        return len((await datasette.client.get("/latency/failures.json?_shape=array")).json())

    with served(path) as datasette, LatencyDB.open(path) as db:
        before = asyncio.run(failures())
        db.record(SAMPLER, LATER, SweepPoint(num_reqs=8), Failure("killed"), spent_s=1.0)
        assert asyncio.run(failures()) == before + 1


def test_any_name_of_a_file_will_do(path: Path, tmp_path: Path) -> None:
    odd = tmp_path / "50% of #1?" / "latencies & more"
    odd.parent.mkdir()
    path.rename(odd)
    (page,) = pages(odd, "/latency/failures")
    assert "no kernel" in page.text


@pytest.mark.parametrize("content", [None, "notes"])
def test_what_is_no_latency_db_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "notes").write_text(content)
    with pytest.raises(DatabaseError, match="no latency DB"):
        browse(tmp_path / "notes", open_browser=False)


@pytest.mark.parametrize("missing", ["datasette", "datasette_vega"])
def test_what_is_not_installed_is_named(path: Path, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find_spec(name))
    with pytest.raises(MissingExtraError, match=rf"^{missing} not installed: run pip install 'pytest-dooly\[browse\]'"):
        browse(path, open_browser=False)


def test_a_port_that_is_taken_is_named(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"cannot listen at port {port} .*name another with --port, or 0"):
            browse(path, port=port, open_browser=False)
        assert cli.main(["browse", f"--db={path}", f"--port={port}", "--no-open"]) == 2
    with pytest.raises(SystemExit):
        cli.main(["browse", "--port=65536"])
    assert "must be 0 to 65535" in capsys.readouterr().err


def test_the_command_serves_until_it_is_interrupted(path: Path) -> None:
    command = [sys.executable, "-m", "pytest_dooly.cli", "browse", f"--db={path}", "--port=0", "--no-open", "--json"]
    before = contents(path.parent)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        address = line.partition(" is at ")[2].partition(" ")[0]
        assert line == f"dooly: {path} is at {address} until you press Ctrl-C\n"
        with urllib.request.urlopen(f"{address}latency/failures", timeout=60) as page:  # noqa: S310 - ours
            assert "no kernel" in page.read().decode()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert json.loads(out) == {"address": address}
    assert err == ""
    assert contents(path.parent) == before


def test_the_start_page_is_opened(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr("uvicorn.Server.run", lambda *_, **__: None)
    announced: list[str] = []
    address = browse(path, port=0, announce=announced.append)
    assert opened == [address]
    assert address in announced[0]
    assert browse(path, port=0, open_browser=False) != ""
    assert opened == [address]


def test_queries_are_named_once() -> None:
    names = [query.name for query in queries()]
    assert len(set(names)) == len(names)
    assert all(query.sql.startswith("SELECT") for query in queries())
