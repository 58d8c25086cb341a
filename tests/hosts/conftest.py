"""A model that is planned for GPUs that are not here: all that is known of its operations is what they work on."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_dooly.core.signature import ServedModel
from pytest_dooly.latency_db.db import LatencyDB
from tests.samples import ENVIRONMENT, SAMPLER, served, uses
from tests.traced import EMBEDDING, LOGITS, NORM, attention, linear

LAYERS = 2


def planned() -> ServedModel:
    """Two layers of a dense model, with the paths that vLLM gives them."""

    def each(name: str) -> tuple[str, ...]:
        return tuple(f"model.layers.{layer}.{name}" for layer in range(LAYERS))

    def of(signature: object, *paths: str):  # type: ignore[no-untyped-def]
        operation = uses(signature, len(paths))  # type: ignore[arg-type]
        return operation.__class__(operation.signature, len(paths), paths, operation.origins)

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
