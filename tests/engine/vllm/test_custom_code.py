"""Configurations whose class is code of the checkpoint."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from pytest_dooly.engine.vllm.custom_code import read_as_data
from tests.models import QWEN2, write

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")

DOCUMENT: dict[str, Any] = {
    "architectures": ["SomeChatModel"],
    "auto_map": {"AutoConfig": "configuration_some.SomeConfig"},
    "model_type": "some_chat",
    "downsample_ratio": 0.5,
    "llm_config": dict(QWEN2),
    "vision_config": {"model_type": "siglip", "hidden_size": 32, "num_hidden_layers": 3},
}


def test_a_configuration_is_read_without_its_code(tmp_path: Path) -> None:
    from vllm.transformers_utils.config import _CONFIG_REGISTRY, get_config

    folder = str(write(tmp_path, DOCUMENT))
    with read_as_data(DOCUMENT):
        config = get_config(folder, False)
    assert "some_chat" not in _CONFIG_REGISTRY
    assert config.downsample_ratio == 0.5
    assert type(config.get_text_config()).__name__ == "Qwen2Config"
    assert config.get_text_config().num_hidden_layers == 2
    assert type(config.vision_config).__name__ == "SiglipVisionConfig"
    assert (config.vision_config.num_hidden_layers, config.vision_config.num_channels) == (3, 3)


@pytest.mark.parametrize("document", [{}, QWEN2, {**DOCUMENT, "auto_map": {}}, {**DOCUMENT, "model_type": "qwen2"}])
def test_what_needs_no_such_code_is_read_as_ever(document: dict[str, Any]) -> None:
    from vllm.transformers_utils.config import _CONFIG_REGISTRY

    before = dict(_CONFIG_REGISTRY)
    with read_as_data(document):
        assert dict(_CONFIG_REGISTRY) == before
