"""`dooly trace`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pytest_dooly import cli
from pytest_dooly.core.configuration import ModelConfiguration
from pytest_dooly.core.device import device_named
from pytest_dooly.engine.base import Origins, Skeleton
from pytest_dooly.engine.fake import FakeEngine
from pytest_dooly.errors import EngineError, TraceError
from pytest_dooly.tracing import trace as trace_module
from tests.cli import SMALL
from tests.models import LLAMA, write


def test_trace_prints_every_operation_with_its_origins(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trace", "model", *SMALL]) == 0
    out = capsys.readouterr().out
    assert "model (FakeForCausalLM)" in out
    assert "weight fp32 [intermediate_size, hidden_size]" in out
    assert "input fp32 [num_reqs, hidden_size]" in out
    assert max(map(len, out.splitlines())) <= 100


def test_trace_says_what_of_a_checkpoint_it_leaves_out(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = {**LLAMA, "vision_config": {"depth": 27}, "audio_config": {"num_hidden_layers": 12}}
    write(place / "towers", document, hidden_size=64, intermediate_size=96, vocab_size=128)
    assert cli.main(["trace", "towers", *SMALL, "--no-coverage"]) == 0
    line = "vision tower (27 layers) and audio tower (12 layers) left out: only the language model is traced"
    assert capsys.readouterr().out.splitlines()[1] == line
    assert cli.main(["trace", "towers", "--json", *SMALL, "--no-coverage"]) == 0
    parts = json.loads(capsys.readouterr().out)["left_out"]
    assert parts == ["vision tower (27 layers)", "audio tower (12 layers)"]


class Elsewhere(FakeEngine):
    """An engine for whose architectures the processor here has no kernels, and no GPU is here."""

    def absent_device(self, configuration: ModelConfiguration) -> str | None:
        return None if configuration.options.device is None else device_named(configuration.options.device).product

    @contextmanager
    def skeleton(self, configuration: ModelConfiguration, origins: Origins) -> Iterator[Skeleton]:
        if configuration.options.device is None:
            raise TraceError("is_act_and_mul=False is supported only for CUDA, XPU and ROCm for now")
        with super().skeleton(configuration, origins) as skeleton:
            yield skeleton


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_dooly.cli.opening.load_engine", lambda _: Elsewhere())
    monkeypatch.setattr(
        "pytest_dooly.tracing.trace.in_own_process", lambda _, name, *rest: trace_module._traced(Elsewhere(), *rest)
    )


@pytest.mark.usefixtures("elsewhere")
def test_trace_says_that_the_gpu_is_not_here(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trace", "model", "--device", "h200_sxm"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[1].startswith("as the engine's own code decides for an NVIDIA H200, which is not here:")
    assert out.splitlines()[-1] == "coverage not counted: no NVIDIA H200 is here to run the architecture in small"
    assert cli.main(["trace", "model", "--device", "h200_sxm", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["absent_device"] == "NVIDIA H200"


@pytest.mark.usefixtures("elsewhere")
def test_what_has_no_kernels_on_a_cpu_is_traced_for_the_gpu_that_is_predicted(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["predict", "model", "--device", "h200_sxm", "--batch", "1x16"]) == 0
    assert "step of 1 requests, 16 tokens" in capsys.readouterr().out
    assert cli.main(["trace", "model"]) != 0
    assert "is_act_and_mul=False is supported only for CUDA, XPU and ROCm for now" in capsys.readouterr().err


def test_trace_as_json_is_one_document(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trace", "model", "--json", *SMALL]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["limits"]["max_model_len"] == 32
    up = next(o for o in document["operations"] if o["label"] == "linear-64x96-fp32")
    assert up["multiplicity"] == 2
    assert up["origins"][1] == {"tensor": "weight", "dtype": "fp32", "shape": ["intermediate_size", "hidden_size"]}


def test_trace_says_what_share_of_a_real_forward_pass_it_covers(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["trace", "model", *SMALL]) == 0
    streams = capsys.readouterr()
    assert re.search(r"covers 100\.0% of \d+ operators of a real forward pass in small; outside: nothing", streams.out)
    assert "running FakeForCausalLM in small" in streams.err
    assert cli.main(["trace", "model", "--json", *SMALL]) == 0
    streams = capsys.readouterr()
    assert json.loads(streams.out)["coverage"]["share"] == 1
    assert "in small" not in streams.err  # known from before

    def breaks(*_: object, **__: object) -> None:
        raise EngineError("no memory")

    monkeypatch.setattr(FakeEngine, "open", breaks)
    assert cli.main(["trace", "model", "--db=other.db", *SMALL]) == 0
    assert "coverage not counted: no memory" in capsys.readouterr().out
    assert cli.main(["trace", "model", "--db=other.db", "--no-coverage", *SMALL]) == 0
    assert capsys.readouterr().out.endswith("coverage not counted\n")


def test_trace_compares_two_models(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(place / "other", LLAMA, hidden_size=64, intermediate_size=96, vocab_size=256)
    assert cli.main(["trace", "model", "--diff=other", *SMALL]) == 0
    out = capsys.readouterr().out
    assert "differing (3)\n  embedding-64x128-fp32 -> embedding-64x256-fp32" in out
    assert cli.main(["trace", "model", "--diff=other", "--json", *SMALL]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["models"] == ["model", "other"]
    assert len(document["shared"]) == 9
    assert 0 < document["share_saved"] < 1
