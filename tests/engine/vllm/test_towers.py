"""Checkpoints with towers for images: their language models are traced."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pytest_dooly.core.configuration import ServingOptions, resolve
from pytest_dooly.core.operation import OperationKind
from pytest_dooly.core.signature import model_operations
from pytest_dooly.engine.base import Engine
from pytest_dooly.tracing.trace import cover, trace
from tests.models import GEMMA3, LLAMA, LLAMA4, QWEN2_5_VL, write

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")

OPTIONS = ServingOptions(device="cpu", max_model_len=8192)
TELLING = {OperationKind.LINEAR, OperationKind.ATTENTION, OperationKind.MOE, OperationKind.LOGITS}


@pytest.mark.parametrize(
    ("document", "operations"),
    [
        (
            LLAMA4,
            {
                "linear-5120x7168-bf16": 48,
                "attention-40h8kv128-bf16-c8192": 36,
                "attention-40h8kv128-bf16": 12,
                "linear-5120x5120-bf16": 48,
                "linear-5120x16-bf16": 48,
                "fused_moe-16e1-5120x16384-bf16": 48,
                "logits-5120x202048-bf16": 1,
            },
        ),
        (
            GEMMA3,
            {
                "linear-3840x8192-bf16": 48,
                "attention-16h8kv256-bf16-w1024": 40,
                "attention-16h8kv256-bf16": 8,
                "linear-4096x3840-bf16": 48,
                "linear-3840x30720-bf16": 48,
                "linear-15360x3840-bf16": 48,
                "logits-3840x262208-bf16": 1,
            },
        ),
        (
            QWEN2_5_VL,
            {
                "linear-3584x4608-bf16-bias": 28,
                "attention-28h4kv128-bf16": 28,
                "linear-3584x3584-bf16": 28,
                "linear-3584x37888-bf16": 28,
                "linear-18944x3584-bf16": 28,
                "logits-3584x152064-bf16": 1,
            },
        ),
    ],
    ids=["llama4", "gemma3", "qwen2.5-vl"],
)
def test_the_language_model_of_a_published_checkpoint_is_traced(
    engine: Engine, tmp_path: Path, document: Mapping[str, Any], operations: Mapping[str, int]
) -> None:
    traced, _ = trace(engine, resolve(str(write(tmp_path, document)), OPTIONS))
    counts: Counter[str] = Counter()
    for operation in model_operations(traced):
        if operation.signature.kind in TELLING:
            counts[operation.signature.label] += operation.multiplicity
    assert counts == operations


def test_a_rotation_that_knows_images_has_a_position_for_each_of_its_axes(engine: Engine, tmp_path: Path) -> None:
    configuration = resolve(str(write(tmp_path, QWEN2_5_VL)), OPTIONS)
    coverage = cover(engine, configuration)
    assert (coverage.outside, coverage.share) == ((), 1)
    traced, _ = trace(engine, configuration)
    rotary = next(each for each in traced.operations if each.kind is OperationKind.ROTARY)
    assert [str(dim) for dim in rotary.inputs[0].shape] == ["3", "num_tokens"]


def test_a_tower_that_vllm_takes_away_part_by_part_is_left_out_too(engine: Engine, tmp_path: Path) -> None:
    document = {
        "architectures": ["SmolVLMForConditionalGeneration"],
        "model_type": "smolvlm",
        "text_config": dict(LLAMA),
        "vision_config": {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2, "image_size": 28},
    }
    traced, _ = trace(engine, resolve(str(write(tmp_path, document)), ServingOptions(device="cpu")))
    layers = [each.layer for each in traced.operations if each.kind is OperationKind.ATTENTION]
    assert len(layers) == LLAMA["num_hidden_layers"]
    assert not any("vision" in each.layer for each in traced.operations)
