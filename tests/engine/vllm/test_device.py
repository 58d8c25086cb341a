"""What a step costs between its layers, on each device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pytest_dooly.core.configuration import ServingOptions, resolve
from pytest_dooly.core.operation import LAUNCH
from pytest_dooly.engine.vllm.device import between_layers, permit_tiles
from tests.models import LLAMA, write


@pytest.mark.parametrize("execution", ["eager", "cuda_graph"])
def test_a_step_on_a_gpu_has_launches_unless_it_replays_graphs(execution: str, tmp_path: Path) -> None:
    """What is between layers costs a CPU a gap, a GPU launches that may hide, and a graph nothing."""
    folder = str(write(tmp_path, LLAMA))
    on_gpu = resolve(folder, ServingOptions(device="cuda", execution=execution))
    assert between_layers(on_gpu) == {"eager": LAUNCH, "cuda_graph": None}[execution]
    assert between_layers(resolve(folder, ServingOptions(device="cpu"))) == "layer_gap"


@pytest.mark.parametrize("supported", [True, False])
def test_tiles_are_asked_for_where_the_processor_has_them(monkeypatch: pytest.MonkeyPatch, supported: bool) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: supported, raising=False)
    monkeypatch.setattr(torch.cpu, "_init_amx", lambda: asked.append(True), raising=False)
    permit_tiles()
    assert asked == [True] * supported
