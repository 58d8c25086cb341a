"""The same model in small."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_dooly.engine.vllm.small import at_depth, in_small
from tests.models import GEMMA3, LLAMA, QWEN2_5_VL


@pytest.mark.parametrize("nested", [False, True])
def test_every_token_that_is_named_is_in_the_small_vocabulary(nested: bool) -> None:
    named: dict[str, Any] = {"pad_token_id": 100277, "eos_token_id": [7, 100257], "image_token_index": 100300}
    document = {"text_config": {**LLAMA, **named}, **named} if nested else {**LLAMA, **named}
    small = in_small({**document, "vocab_size": 100352}, {})
    for part in (small, small["text_config"]) if nested else (small,):
        tokens = [part["pad_token_id"], *part["eos_token_id"], part["image_token_index"]]
        assert max(tokens) < 512
        assert part["eos_token_id"][0] == 7


def test_sizes_shrink_where_the_language_model_says_them() -> None:
    small = in_small(GEMMA3, {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256, "vocab_size": 9999})
    assert small["vision_config"] == GEMMA3["vision_config"]
    text = small["text_config"]
    sizes = (text["num_attention_heads"], text["num_key_value_heads"], text["head_dim"], text["vocab_size"])
    assert sizes == (4, 2, 64, 512)
    assert text["num_hidden_layers"] == 4


def test_a_head_keeps_its_size_where_sections_of_its_rotation_are_counted() -> None:
    small = in_small(QWEN2_5_VL, {})
    assert small["hidden_size"] == 128 * small["num_attention_heads"]
    assert 2 * sum(small["rope_scaling"]["mrope_section"]) == 128


def test_another_depth_is_that_of_the_language_model() -> None:
    kinds = ["full", "sliding"] * 24
    document = {**GEMMA3, "text_config": {**GEMMA3["text_config"], "layer_types": kinds}}
    text = at_depth(document, 3)["text_config"]
    assert (text["num_hidden_layers"], text["layer_types"]) == (3, ["full", "sliding", "full"])
