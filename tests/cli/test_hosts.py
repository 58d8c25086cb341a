"""`dooly export --for …`: a model on a GPU, as other simulators read it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pytest_dooly import cli
from pytest_dooly.cli.opening import Opened
from pytest_dooly.published.llmservingsim import Bundle
from tests.cli import SMALL
from tests.hosts.conftest import planned
from tests.samples import STEP, uses

ON = ("--device=h200_sxm", *SMALL)


def export(host: str, *options: str) -> int:
    return cli.main(["export", "--for", host, "model", *ON, *options])


def test_numbers_for_llm_d_stand_in_a_file_with_their_error(
    published: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export("llm-d", "--prompt=8", "--output=4", "--out=new/numbers.yaml") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "new/numbers.yaml"
    assert "inter-token latency" in lines[-1]
    assert "in the mean" in lines[-1]
    text = Path("new/numbers.yaml").read_text()
    assert text.startswith(f"# {lines[1]}\n")
    assert f"# {lines[-1]}\n" in text
    assert "\nmax-num-seqs: 2\n" in text


def test_arrays_for_dynamo_go_into_a_directory(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("here").mkdir()
    assert export("dynamo", "--out=here", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["file"] == "here/step_times.npz"
    with np.load(document["file"]) as arrays:
        assert {name: list(arrays[name].shape) for name in arrays.files} == document["arrays"]
    assert document["mixed"]["points"] > 0
    assert export("dynamo", "--out=here") == 0
    assert "adds up what each takes alone" in capsys.readouterr().out


def test_a_bundle_for_llmservingsim_is_one_of_ours_again(
    published: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert export("llmservingsim", "--out=perf") == 2
    assert "model has no self_attn.attn, around which" in capsys.readouterr().err  # the fake engine's layers
    model = replace(planned(), operations=(*planned().operations, uses(STEP)))
    monkeypatch.setattr(Opened, "served", lambda *_, **__: model)
    assert export("llmservingsim", "--out=perf", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["directory"] == "perf/h200_sxm/model/bf16/tp1"
    assert Bundle.open(Path(document["directory"])).model == "model"
    assert set(document["rows"]) == {"dense.csv", "per_sequence.csv", "attention.csv"}
    assert export("llmservingsim", "--out=perf") == 0
    out = capsys.readouterr().out
    assert f"{document['rows']['dense.csv']:,} rows in dense.csv" in out
    assert "no layer of LLMServingSim stands for: step" in out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("--for", "llm-d", "model"), "name the GPU, as in --device h100_sxm"),
        (("--for", "llm-d", "model", "--device=cpu"), "name the GPU"),
        (("--for", "dynamo"), "name the model, as in --for dynamo llama3"),
        (("--for", "dynamo", "model", "--format=csv"), "--format and --environment go with all latencies"),
        (("--for", "dynamo", "model", "--environment=x"), "--format and --environment go with all latencies"),
        (("model",), "model: name the simulator that the file is for, as in --for llm-d"),
    ],
)
def test_what_is_missing_is_said(
    place: Path, command: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", *command]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "wanted"),
    [
        ("dynamo", "a file that ends in .npz, or a directory"),
        ("llm-d", "a file that ends in .yaml, or a directory"),
        ("llmservingsim", "a directory"),
    ],
)
def test_a_file_of_another_kind_is_no_directory(
    place: Path, host: str, wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["export", "--for", host, "model", "--device=h200_sxm", "--engine=fake", "--max-model-len=32"]
    assert cli.main([*asked, "--out=step.txt"]) == 2
    assert f"--out step.txt: name {wanted}" in capsys.readouterr().err
    assert not Path("step.txt").exists()
