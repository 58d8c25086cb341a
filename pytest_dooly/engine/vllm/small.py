"""The same model in small: config.json of another depth, or of other sizes that keep the architecture."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")
_EXPERTS_CHOSEN = ("num_experts_per_tok", "experts_per_token")


def at_depth(document: Mapping[str, Any], num_layers: int) -> dict[str, Any]:
    """The config.json of the same model with another number of layers; lists of one entry a layer follow."""
    depth = document.get("num_hidden_layers")
    resized = {
        key: [value[i % len(value)] for i in range(num_layers)]
        for key, value in document.items()
        if isinstance(value, list) and len(value) == depth
    }
    return {**document, **resized, "num_hidden_layers": num_layers}


def in_small(document: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a model of the same architecture that runs in a moment.

    Heads keep being shared, experts chosen, windows alternating and layers of every kind there; only sizes shrink.
    """
    small = at_depth(document, min(_DEPTH, document.get("num_hidden_layers", _DEPTH)))
    heads = document.get("num_attention_heads")
    shared = document.get("num_key_value_heads") or heads
    if heads and shared:
        small["num_key_value_heads"] = kv_heads = min(2, shared)
        small["num_attention_heads"] = kv_heads * min(2, heads // shared)
    if document.get("head_dim"):
        small["head_dim"] = _HEAD
    small["hidden_size"] = _WIDTH if document.get("head_dim") else small.get("num_attention_heads", 4) * _HEAD
    small |= {name: size for name, size in _SMALL.items() if document.get(name)}
    small |= {name: min(_EXPERTS, document[name]) for name in _EXPERT_COUNTS if document.get(name)}
    small |= {name: min(_CHOSEN, document[name]) for name in _EXPERTS_CHOSEN if document.get(name)}
    if document.get("mamba_d_ssm"):
        small["mamba_n_heads"] = 4
        small["mamba_d_ssm"] = 4 * document.get("mamba_d_head", _HEAD)
    return small


@contextmanager
def written(document: Mapping[str, Any]) -> Iterator[Path]:
    """A directory that holds the config.json, for as long as the context lasts."""
    with tempfile.TemporaryDirectory(prefix="dooly-") as folder:
        (Path(folder) / "config.json").write_text(json.dumps(document), encoding="utf-8")
        yield Path(folder)
