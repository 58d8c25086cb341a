"""`dooly validate --traffic`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pytest_dooly import cli
from pytest_dooly.core.batch import Limits
from pytest_dooly.core.configuration import ModelConfiguration
from pytest_dooly.engine.fake import FakeEngine
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.scheduling.scheduler import SchedulerOptions
from tests.cli import SMALL
from tests.test_validate_traffic import Simulator

LOAD = ("--traffic", "--prompt=4", "--output=uniform:2,6", "--shared-prefix=2x2x8", "--budget=1", "--repeats=2")


@pytest.fixture
def served(profiled: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The fake engine with a server that takes as long as other step times say; ports that were asked for."""
    ports: list[int] = []

    def server(_: FakeEngine, configuration: ModelConfiguration, *, port: int = 0) -> Simulator:
        ports.append(port)
        simulator = Simulator(0.001)
        limits = Limits(max_num_tokens=16, max_num_seqs=2, max_model_len=32)
        simulator.options = SchedulerOptions(limits, 9, 8, async_scheduling=False)
        return simulator

    monkeypatch.setattr(FakeEngine, "server", server)
    return ports


def test_loads_are_sent_and_kept(served: list[int], profiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = cli.main(["validate", "model", *LOAD, "--port=8123", "--json", *SMALL])
    streams = capsys.readouterr()
    document = json.loads(streams.out)
    assert served == [8123]
    assert [load["shared"] for load in document["loads"]] == [True] * 3 + [False] * 3
    assert len(document["rows"]) == 6 * 3 * 4
    assert {verdict["statistic"] for verdict in document["verdicts"]} == {"mean", "p99"}
    assert (document["num_kv_blocks"], document["block_size"], document["max_num_seqs"]) == (9, 8, 2)
    # Whether a made-up server takes as long as predicted hangs on the machine: the status says what was found.
    assert status == document["status"] == (0 if document["passed"] else 1)
    assert re.search(r"6 loads of \d+ to \d+ requests", streams.err)
    with LatencyDB.open(profiled / ".dooly/latency.db") as db:
        kinds = [row["kind"] for row in db._rows("SELECT kind FROM finding", [])]
    assert "traffic_validation" in kinds


def test_rates_may_be_named_and_a_table_is_printed(served: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["validate", "model", *LOAD, "--rate", "5", "9", "--server-ms=3", *SMALL])
    text = capsys.readouterr().out
    assert text.count("requests/s") == 4
    assert "server and client add 3.00 ms to each request in the prediction, as named" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--batch", "2"], "--batch does not go with --traffic"),
        (["--requests", "2"], "--requests does not go with --traffic"),
        (["--prompt", "4", "8"], "takes one --prompt, got 2"),
        (["--prompt", "gauss:4"], "cannot read 'gauss:4' as lengths"),
        (["--shared-prefix", "8"], "cannot read '8' as a shared prefix"),
        (["--prompt", "40"], "exceeds max_model_len 32"),
        (["--repeats", "1"], "--repeats must be at least 2"),
        (["--arrivals", "never"], "'never' as a kind of arrivals"),
    ],
)
def test_wrong_usage_is_one_message(
    served: list[int], capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert cli.main(["validate", "model", *LOAD, *arguments, *SMALL]) == 2
    assert said in capsys.readouterr().err


def test_a_grid_takes_no_laws(profiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["validate", "model", "--prompt", "uniform:2,6", *SMALL]) == 2
    assert "laws of lengths go with --traffic" in capsys.readouterr().err


def test_the_fake_engine_has_no_server(profiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["validate", "model", *LOAD, *SMALL]) == 1
    assert "no server of its own" in capsys.readouterr().err
