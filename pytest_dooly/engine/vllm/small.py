"""The same model in small: config.json of another depth, or of other sizes that keep the architecture."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytest_dooly.core.language_model import language_model, with_language_model

__all__ = ["at_depth", "in_small", "written"]

_DEPTH = 4
"""Layers that show every kind: alternating windows come in periods of up to four, dense layers first."""

_WIDTH, _HEAD, _VOCABULARY, _WINDOW = 256, 64, 512, 32
"""Sizes that every kernel takes: multiples of a quantisation block, a tile and a head."""

_EXPERTS, _CHOSEN = 8, 2

_SMALL = {
    "intermediate_size": _WIDTH,
    "moe_intermediate_size": _WIDTH,
    "shared_expert_intermediate_size": _WIDTH,
    "vocab_size": _VOCABULARY,
    "sliding_window": _WINDOW,
    "mamba_d_state": 16,
}
_SAID = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size", "vocab_size")
"""Sizes that a small model needs to be told of; what a checkpoint leaves out is as its class has it."""

_TOKEN = re.compile(r"token_(id|ids|index)$")

_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")
_EXPERTS_CHOSEN = ("num_experts_per_tok", "experts_per_token")


def at_depth(document: Mapping[str, Any], num_layers: int) -> dict[str, Any]:
    """The config.json of the same model with another number of layers; lists of one entry a layer follow."""
    return with_language_model(document, _at_depth(language_model(document), num_layers))


def in_small(document: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a model of the same architecture that runs in a moment.

    Heads keep being shared, experts chosen, windows alternating and layers of every kind there; only sizes shrink.

    Args:
        document: a config.json.
        defaults: what the engine takes for sizes of the language model that the document does not say.
    """
    part = {**{name: defaults[name] for name in _SAID if defaults.get(name)}, **language_model(document)}
    small = with_language_model(document, _in_small(part))
    tokens = int(language_model(small).get("vocab_size") or _VOCABULARY)
    return {key: _known(key, value, tokens) for key, value in small.items()}


def _at_depth(part: Mapping[str, Any], num_layers: int) -> dict[str, Any]:
    depth = part.get("num_hidden_layers")
    resized = {
        key: [value[i % len(value)] for i in range(num_layers)]
        for key, value in part.items()
        if isinstance(value, list) and len(value) == depth
    }
    return {**part, **resized, "num_hidden_layers": num_layers}


def _in_small(part: Mapping[str, Any]) -> dict[str, Any]:
    small = _at_depth(part, min(_DEPTH, part.get("num_hidden_layers", _DEPTH)))
    heads = part.get("num_attention_heads")
    shared = part.get("num_key_value_heads") or heads
    if heads and shared:
        small["num_key_value_heads"] = kv_heads = min(2, shared)
        small["num_attention_heads"] = kv_heads * min(2, heads // shared)
    # The sections of a rotation that knows images are counted for the head as it is.
    head = _head(part) if "mrope_section" in str(part) else _HEAD
    if part.get("head_dim"):
        small["head_dim"] = head
    small["hidden_size"] = _WIDTH if part.get("head_dim") else small.get("num_attention_heads", 4) * head
    small |= {name: size for name, size in _SMALL.items() if part.get(name)}
    small |= {name: min(_EXPERTS, part[name]) for name in _EXPERT_COUNTS if part.get(name)}
    small |= {name: min(_CHOSEN, part[name]) for name in _EXPERTS_CHOSEN if part.get(name)}
    if part.get("mamba_d_ssm"):
        small["mamba_n_heads"] = 4
        small["mamba_d_ssm"] = 4 * part.get("mamba_d_head", _HEAD)
    return small


def _head(part: Mapping[str, Any]) -> int:
    return int(part.get("head_dim") or part["hidden_size"] // part["num_attention_heads"])


def _known(key: str, value: Any, tokens: int) -> Any:
    """The value, and within it any id of a token, as one of so many tokens: a padding row must be in the table."""
    if isinstance(value, Mapping):
        return {name: _known(name, inner, tokens) for name, inner in value.items()}
    if not _TOKEN.search(key):
        return value
    if isinstance(value, list):
        return [_known(key, each, tokens) for each in value]
    return value % tokens if isinstance(value, int) and value >= tokens else value


@contextmanager
def written(document: Mapping[str, Any]) -> Iterator[Path]:
    """A directory that holds the config.json, for as long as the context lasts."""
    with tempfile.TemporaryDirectory(prefix="dooly-") as folder:
        (Path(folder) / "config.json").write_text(json.dumps(document), encoding="utf-8")
        yield Path(folder)
