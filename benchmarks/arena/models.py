"""What the published config.json of each model says: as aiconfigurator's package has it, or as the project ships it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from pytest_dooly.core.configuration import aliases

Document = Mapping[str, Any]

LIKE = {
    "Qwen/Qwen3-235B-A22B-Instruct-2507": "Qwen/Qwen3-235B-A22B",
    "Qwen/Qwen3-235B-A22B-Instruct-2507-FP8": "Qwen/Qwen3-235B-A22B-FP8",
    "Qwen/Qwen3-30B-A3B-Instruct-2507": "Qwen/Qwen3-30B-A3B",
    "deepseek-ai/DeepSeek-R1-0528": "deepseek-ai/DeepSeek-R1",
    "meta-llama/Llama-3.1-70B-Instruct": "meta-llama/Meta-Llama-3.1-70B",
    "meta-llama/Llama-3.1-8B": "meta-llama/Meta-Llama-3.1-8B",
    "meta-llama/Llama-3.1-8B-Instruct": "meta-llama/Meta-Llama-3.1-8B",
    "meta-llama/Llama-3.3-70B-Instruct": "meta-llama/Meta-Llama-3.1-70B",
    "meta-llama/Meta-Llama-3-70B-Instruct": "meta-llama/Meta-Llama-3.1-70B",
    "meta-llama/Meta-Llama-3-8B-Instruct": "meta-llama/Meta-Llama-3.1-8B",
    "meta-llama/Meta-Llama-3.1-8B-Instruct": "meta-llama/Meta-Llama-3.1-8B",
    "mistralai/Mixtral-8x7B-Instruct-v0.1": "mistralai/Mixtral-8x7B-v0.1",
    "nvidia/Llama-3.3-70B-Instruct-FP8": "nvidia/Llama-3.1-70B-Instruct-FP8",
}
"""Models whose sizes are those of another one."""

_SHIPPED = {"mistralai/Mistral-7B-Instruct-v0.3": "mistral-7b"}

_MODELOPT = {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "ignore": ["lm_head"]}

_LARGE = {"hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126, "num_attention_heads": 128}

_CHANGED: Mapping[str, tuple[str, Document]] = {
    "nvidia/Llama-3.1-8B-Instruct-FP8": ("meta-llama/Meta-Llama-3.1-8B", {"quantization_config": _MODELOPT}),
    "meta-llama/Llama-3.1-405B-FP8": (
        "meta-llama/Meta-Llama-3.1-405B",
        {**_LARGE, "quantization_config": {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}},
    ),
}
"""Models that another one becomes with what else stands in their config.json."""


_DEFAULTS = {"Qwen/Qwen3.5-9B": ("qwen3_5", "Qwen3_5ForConditionalGeneration")}
"""Models whose sizes are the defaults of their type in transformers 5.19 (`Qwen3_5TextConfig` says so): its name and
the architecture."""


def document_of(name: str) -> Document | None:
    """The config.json of a model by Hugging Face's name; None where it is in neither place."""
    if name in _CHANGED:
        like, changes = _CHANGED[name]
        base = document_of(like)
        return None if base is None else {**base, **changes}
    if name in _DEFAULTS:
        from transformers import AutoConfig

        kind, architecture = _DEFAULTS[name]
        return {**AutoConfig.for_model(kind).to_dict(), "architectures": [architecture]}
    if name in _SHIPPED:
        shipped: Document = json.loads((aliases()[_SHIPPED[name]] / "config.json").read_text(encoding="utf-8"))
        return shipped
    folder, stem = files("aiconfigurator_core") / "model_configs", LIKE.get(name, name).replace("/", "--")
    path, apart = folder / f"{stem}_config.json", folder / f"{stem}_hf_quant_config.json"
    if not path.is_file():
        return None
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if apart.is_file() and "quantization_config" not in document:
        document["quantization_config"] = {"quant_method": "modelopt", **json.loads(apart.read_text(encoding="utf-8"))}
    return document


def written(name: str, folder: Path) -> str:
    """A directory in the folder that holds the model's config.json, as the engine takes it.

    Raises:
        KeyError: nothing is known of the model.
    """
    document = document_of(name)
    if document is None:
        raise KeyError(name)
    directory = folder / name.replace("/", "--")
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(document), encoding="utf-8")
    return str(directory)
