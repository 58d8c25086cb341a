"""`dooly report` and `dooly models`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytest_dooly import cli
from pytest_dooly.latency_db.db import LatencyDB
from tests.cli import SMALL
from tests.core.test_in_situ import IN_SITU


def test_report_writes_page_and_picture(profiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", "model", "--reports=here", "--png=picture.png", *SMALL]) == 0
    assert "report: here/model-fake-cpu/index.html" in capsys.readouterr().out
    assert Path("picture.png").read_bytes().startswith(b"\x89PNG")


def test_report_as_json_holds_what_was_found_out(profiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", "model", "--json", *SMALL]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["validation"] is document["in_situ"] is None
    cli.main(["validate", "model", "--prompt", "8", "--repeats", "2", "--json", *SMALL])
    rows = json.loads(capsys.readouterr().out)["rows"]
    with LatencyDB.open(Path(".dooly/latency.db")) as db:
        (environment,) = db.environments()
        (model,) = db.models(environment)
        db.save_finding("in_situ", model.key, environment, IN_SITU.to_json())
    assert cli.main(["report", "model", "--json", *SMALL]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["validation"]["rows"] == rows
    assert document["in_situ"] == json.loads(json.dumps(IN_SITU.to_json()))
    assert "Alone and within a real step" in Path(document["report"]).read_text(encoding="utf-8")


def test_models_lists_aliases(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models"]) == 0
    assert "llama3.2-1b" in capsys.readouterr().out
    assert cli.main(["models", "--json"]) == 0
    assert "llama-300m" in json.loads(capsys.readouterr().out)["shipped"]
