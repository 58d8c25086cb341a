"""The language model within a config.json, and what is left out beside it."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_dooly.core.language_model import language_model, left_out, with_language_model

TEXT: dict[str, Any] = {"model_type": "text", "hidden_size": 64, "num_hidden_layers": 2}
VISION: dict[str, Any] = {"model_type": "vit", "hidden_size": 32, "depth": 27}
THINKER: dict[str, Any] = {"text_config": TEXT, "audio_config": {"encoder_layers": 32}, "vision_config": VISION}
OMNI: dict[str, Any] = {"thinker_config": THINKER, "talker_config": {"num_hidden_layers": 24}}


@pytest.mark.parametrize(
    ("document", "parts"),
    [
        (TEXT, ()),
        ({**TEXT, "vision_config": VISION}, ("vision tower (27 layers)",)),
        ({"text_config": TEXT, "vision_config": {"num_hidden_layers": 34}}, ("vision tower (34 layers)",)),
        ({"llm_config": TEXT, "visual": {"layers": 48}}, ("visual tower (48 layers)",)),
        ({"text_config": TEXT, "audio_config": None, "vision_config": VISION}, ("vision tower (27 layers)",)),
        ({"text_config": TEXT, "quantization_config": {"bits": 4, "config_groups": {}}}, ()),
        (OMNI, ("audio tower (32 layers)", "vision tower (27 layers)", "talker (24 layers)")),
    ],
)
def test_what_is_no_language_model_is_named_with_its_depth(document: dict[str, Any], parts: tuple[str, ...]) -> None:
    assert language_model(document)["hidden_size"] == 64
    assert left_out(document) == parts


def test_a_part_takes_the_place_of_the_language_model_wherever_that_lies() -> None:
    other = {**TEXT, "num_hidden_layers": 1}
    assert with_language_model(TEXT, other) == other
    document = {"thinker_config": {"text_config": TEXT, "vision_config": VISION}, "eos_token_id": 1}
    changed = with_language_model(document, other)
    assert changed == {"thinker_config": {"text_config": other, "vision_config": VISION}, "eos_token_id": 1}
    assert language_model(document) == TEXT
