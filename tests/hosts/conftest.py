"""A model that is planned for GPUs that are not here: all that is known of its operations is what they work on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_dooly.core.batch import Limits
from pytest_dooly.core.signature import ModelOperation, ServedModel, Signature
from pytest_dooly.hosts.backend import Backend
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.prediction.step_times import Shape, StepTimes
from tests.samples import ENVIRONMENT, LIMITS, SAMPLER, served, uses
from tests.traced import EMBEDDING, LOGITS, NORM, attention, linear

LAYERS = 2


def planned() -> ServedModel:
    """Two layers of a dense model, with the paths that vLLM gives them."""

    def each(name: str) -> tuple[str, ...]:
        return tuple(f"model.layers.{layer}.{name}" for layer in range(LAYERS))

    def of(signature: Signature, *paths: str) -> ModelOperation:
        return replace(uses(signature, len(paths)), layers=paths)

    return served(
        of(EMBEDDING, "model.embed_tokens"),
        of(NORM, *each("input_layernorm"), *each("post_attention_layernorm"), "model.norm"),
        of(linear(6144, 4096), *each("self_attn.qkv_proj")),
        of(attention(32, 8, 128), *each("self_attn.attn")),
        of(linear(4096, 4096), *each("self_attn.o_proj")),
        of(linear(28672, 4096), *each("mlp.gate_up_proj")),
        of(linear(4096, 14336), *each("mlp.down_proj")),
        of(LOGITS, "logits_processor"),
        of(SAMPLER, "sampler"),
        name="planned",
    )


@pytest.fixture
def db(tmp_path: Path) -> Path:
    path = tmp_path / "latency.db"
    with LatencyDB.open(path) as opened:
        opened.save_model(planned(), ENVIRONMENT)
    return path


Steps = Callable[[Shape], float]
"""Seconds of a step."""


class _Times(StepTimes):
    """Step times of a law."""

    def __init__(self, step_s: Steps, limits: Limits) -> None:
        self.model = served(name="lawful", limits=limits)
        self.models = {}
        self._step_s = step_s

    def step_s(self, step: Shape) -> float:
        return self._step_s(step)


def of_steps(step_s: Steps, limits: Limits = LIMITS) -> Backend:
    """A back end whose steps follow a law."""
    return Backend(_Times(step_s, limits))
