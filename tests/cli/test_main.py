"""`dooly` as its users run it, on the fake engine: output, exit status and messages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_dooly import cli
from tests.cli import SMALL


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trace", "nonsense", "--engine=fake"], "unknown model 'nonsense'"),
        (["trace", "model", "--engine=fake", "--tp=none"], "tp must be a whole number, got 'none'"),
        (["validate", "model", "--repeats=1", *SMALL], "--repeats must be at least 2"),
        (["validate", "model", "--prompt", "99", *SMALL], "no workload of that grid fits"),
        (
            ["predict", "model", "--batch=1", "--device=h300", *SMALL],
            "unknown device 'h300': name one of a10, a100_pcie",
        ),
        (["compare", "model", "--device=h300", *SMALL], "unknown device 'h300'"),
        (["compare", "model", *SMALL], "name the GPUs with --device, as in --device h200_sxm"),
        (["plan", "model", *SMALL], "name the GPUs with --device, as in --device h200_sxm"),
        (["plan", "model", "--device=h200_sxm", "--tp=two", *SMALL], "tp must be a whole number, got 'two'"),
        (["compare", "model", "--device=h200_sxm", "--prompt=99", *SMALL], "99 + 64 tokens exceed max_model_len 32"),
        (["plan", "nonsense", "--device=h200_sxm", *SMALL], "unknown model 'nonsense'"),
    ],
)
def test_wrong_usage_exits_2(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert cli.main(arguments) == 2
    streams = capsys.readouterr()
    assert message in streams.err
    assert "Traceback" not in streams.err
    assert streams.out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["predict", "model"],
        ["predict", "model", "--batch=x"],
        ["predict", "model", "--prompt=0"],
        ["validate", "model", "--budget=0"],
        ["plan", "model", "--price=much"],
        ["plan", "model", "--price=0"],
        ["plan", "model", "--target=5"],
        ["plan"],
        ["compare"],
        ["predict", "model", "--prompt=1.5"],
        ["import", "nonsense", "--system", "h200_sxm"],
        ["search", "model", "--device=h200_sxm", "--out=8"],
        ["search", "model", "--device=h200_sxm", "--slo=ttft:1s", "--prompt=8", "--tolerance=0.7"],
    ],
)
def test_a_line_that_cannot_be_parsed_exits_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        cli.main(arguments)
    assert error.value.code == 2


def test_other_failures_exit_1(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "notes").write_text("mine")
    assert cli.main(["trace", "model", "--db=notes", *SMALL]) == 1
    assert "no latency DB" in capsys.readouterr().err

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pytest_dooly.cli.report.models", interrupt)
    assert cli.main(["models"]) == 1
    assert "interrupted" in capsys.readouterr().err


def test_what_an_engine_prints_does_not_reach_standard_output(place: Path) -> None:
    program = (
        "import os, sys\nfrom pytest_dooly import cli\nfrom pytest_dooly.engine.fake import FakeEngine\n"
        "environment = FakeEngine.environment\n"
        "def noisy(self, configuration):\n    os.write(1, b'noise')\n    return environment(self, configuration)\n"
        "FakeEngine.environment = noisy\n"
        f"sys.exit(cli.main(['trace', 'model', '--json', *{SMALL!r}]))\n"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=place, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout)["model"] == "model"
    assert "noise" in result.stderr
