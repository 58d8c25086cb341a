"""The language model within a config.json, beside towers for images and sound that no trace goes into."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["language_model", "left_out", "with_language_model"]

_LANGUAGE = ("thinker_config", "text_config", "llm_config", "language_config")
"""Keys under which a configuration of several models holds the language model's, an outer one first."""

_DEPTHS = ("num_hidden_layers", "depth", "num_layers", "encoder_layers", "layers", "vt_num_hidden_layers")
_TOWER = re.compile(r"vision|visual|vit\b|image|audio|sound|speech")


def language_model(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config.json that says the sizes of the language model; all of it where there are no parts."""
    key = _key(document)
    return document if key is None else language_model(document[key])


def with_language_model(document: Mapping[str, Any], part: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json with another part in place of its `language_model`."""
    key = _key(document)
    return dict(part) if key is None else {**document, key: with_language_model(document[key], part)}


def left_out(document: Mapping[str, Any]) -> tuple[str, ...]:
    """What a config.json describes besides the language model, with its depth: `vision tower (27 layers)`."""
    return tuple(_others(document))


def _key(document: Mapping[str, Any]) -> str | None:
    return next((key for key in _LANGUAGE if isinstance(document.get(key), Mapping)), None)


def _others(document: Mapping[str, Any]) -> Iterator[str]:
    language = _key(document)
    for key, part in document.items():
        if not isinstance(part, Mapping):
            continue
        if key == language:
            yield from _others(part)
            continue
        depth = next((part[name] for name in _DEPTHS if isinstance(part.get(name), int)), None)
        name = key.removesuffix("_config").replace("_", " ")
        if depth is not None and (key.endswith("_config") or _TOWER.search(name)):
            tower = f"{name} tower" if _TOWER.search(name) and "tower" not in name else name
            yield f"{tower} ({depth} layers)"
