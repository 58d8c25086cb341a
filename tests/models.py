"""Small configurations of real architectures: every stage runs on them in seconds, without a GPU."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LLAMA: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 704,
    "num_hidden_layers": 2,
    "vocab_size": 2048,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}

QWEN2: Mapping[str, Any] = {
    **{key: value for key, value in LLAMA.items() if key != "head_dim"},
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
}

GEMMA2: Mapping[str, Any] = {
    **LLAMA,
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "hidden_activation": "gelu_pytorch_tanh",
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "query_pre_attn_scalar": 64,
    "sliding_window": 128,
    "num_hidden_layers": 4,
    "tie_word_embeddings": True,
}

DENSE = {"llama": LLAMA, "qwen2": QWEN2, "gemma2": GEMMA2}


def write(folder: Path, document: Mapping[str, Any], **changes: Any) -> Path:
    """The folder, holding a config.json of the document with some values changed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**document, **changes}), encoding="utf-8")
    return folder
