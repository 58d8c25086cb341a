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

_SHIPPED = {"mistralai/Mistral-7B-Instruct-v0.3": "mistral-7b", "microsoft/phi-4": "phi4"}

_MODELOPT = {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "ignore": ["lm_head"]}

_NVFP4 = {**_MODELOPT, "quant_algo": "NVFP4", "group_size": 16}

_AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}

_LARGE = {"hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126, "num_attention_heads": 128}

_FBGEMM = {
    "quant_method": "fbgemm_fp8",
    "activation_scale_ub": 1200.0,
    "modules_to_not_convert": [
        "lm_head",
        *(f"model.layers.{layer}.self_attn.{part}_proj" for layer in range(126) for part in "qkvo"),
        *(f"model.layers.{layer}.mlp.{part}_proj" for layer in (0, 125) for part in ("gate", "up", "down")),
    ],
}
"""Products of attention and of the first and last layer stay in bf16: The Llama 3 Herd of Models, arXiv 2407.21783."""

_CHANGED: Mapping[str, tuple[str, Document]] = {
    "nvidia/Llama-3.1-8B-Instruct-FP8": ("meta-llama/Meta-Llama-3.1-8B", {"quantization_config": _MODELOPT}),
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-FP8": (
        "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
        {"quantization_config": _MODELOPT},
    ),
    "Qwen/Qwen3-32B-AWQ": ("Qwen/Qwen3-32B", {"quantization_config": _AWQ}),
    "nvidia/Llama-3.3-70B-Instruct-FP4": ("meta-llama/Meta-Llama-3.1-70B", {"quantization_config": _NVFP4}),
    "meta-llama/Llama-3.1-405B-FP8": (
        "meta-llama/Meta-Llama-3.1-405B",
        {**_LARGE, "quantization_config": _FBGEMM},
    ),
}
"""Models that another one becomes with what else stands in their config.json."""


_GLM = {"attention_bias": True, "head_dim": 128, "rope_theta": 1e6, "routed_scaling_factor": 1.0}

_GLM_4_6 = {
    **_GLM,
    "hidden_size": 5120,
    "intermediate_size": 12288,
    "num_hidden_layers": 92,
    "max_position_embeddings": 202752,
    "moe_intermediate_size": 1536,
    "n_routed_experts": 160,
    "first_k_dense_replace": 3,
    "use_qk_norm": True,
    "routed_scaling_factor": 2.5,
}

_PER_CHANNEL = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "ignore": ["lm_head", "re:.*mlp.gate$"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "dynamic": False, "symmetric": True},
            "input_activations": {
                "num_bits": 8,
                "type": "float",
                "strategy": "token",
                "dynamic": True,
                "symmetric": True,
            },
        }
    },
}

_TYPES: Mapping[str, tuple[str, str, Document]] = {
    "Qwen/Qwen3.5-9B": ("qwen3_5", "Qwen3_5ForConditionalGeneration", {}),
    "Qwen/Qwen3-14B": (
        "qwen3",
        "Qwen3ForCausalLM",
        {"hidden_size": 5120, "intermediate_size": 17408, "num_hidden_layers": 40, "num_attention_heads": 40}
        | {"num_key_value_heads": 8, "max_position_embeddings": 40960},
    ),
    "Qwen/Qwen2.5-72B-Instruct": (
        "qwen2",
        "Qwen2ForCausalLM",
        {"hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80, "num_attention_heads": 64}
        | {"num_key_value_heads": 8, "vocab_size": 152064},
    ),
    "zai-org/GLM-4.5-Air": ("glm4_moe", "Glm4MoeForCausalLM", _GLM),
    "zai-org/GLM-4.6": ("glm4_moe", "Glm4MoeForCausalLM", _GLM_4_6),
    "zai-org/GLM-4.6-FP8": (
        "glm4_moe",
        "Glm4MoeForCausalLM",
        {**_GLM_4_6, "quantization_config": _PER_CHANNEL},
    ),
}
"""Models that are a type of transformers 5.19 with what differs from its defaults: the type, the architecture, that.

GLM's sizes stand in THUDM/slime's `scripts/models`, Qwen's in their reports (arXiv 2412.15115 and 2505.09388)."""


def document_of(name: str) -> Document | None:
    """The config.json of a model by Hugging Face's name; None where it is in neither place."""
    if name in _CHANGED:
        like, changes = _CHANGED[name]
        base = document_of(like)
        return None if base is None else {**base, **changes}
    if name in _TYPES:
        from transformers import AutoConfig

        kind, architecture, changes = _TYPES[name]
        return {**AutoConfig.for_model(kind, **changes).to_dict(), "architectures": [architecture]}
    folder, stem = files("aiconfigurator_core") / "model_configs", LIKE.get(name, name).replace("/", "--")
    path, apart = folder / f"{stem}_config.json", folder / f"{stem}_hf_quant_config.json"
    if not path.is_file():
        return _shipped(name)
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if apart.is_file() and "quantization_config" not in document:
        document["quantization_config"] = {"quant_method": "modelopt", **json.loads(apart.read_text(encoding="utf-8"))}
    return document


def is_known(name: str, folder: Path) -> bool:
    """Whether the model's config.json is in the folder or in one of the places above."""
    return _directory(name, folder).is_dir() or document_of(name) is not None


def written(name: str, folder: Path) -> str:
    """A directory in the folder that holds the model's config.json, as the engine takes it; one that is there stands.

    Raises:
        KeyError: nothing is known of the model.
    """
    directory = _directory(name, folder)
    if not directory.is_dir():
        document = document_of(name)
        if document is None:
            raise KeyError(name)
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(document), encoding="utf-8")
    return str(directory)


def _directory(name: str, folder: Path) -> Path:
    return folder / name.replace("/", "--")


def _shipped(name: str) -> Document | None:
    """What the project ships of a model, whose alias is mostly its name."""
    usual = name.split("/")[-1].lower().removesuffix("-instruct")
    directory = aliases().get(_SHIPPED.get(name, usual))
    if directory is None:
        return None
    shipped: Document = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return shipped
