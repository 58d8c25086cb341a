"""A tokenizer of which one word is one token, so that prompts and outputs are as long as they are asked to be."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["write_tokenizer"]


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """Writes what vLLM loads a tokenizer from: a word for each token of the model's vocabulary, none special."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"t{token}": token for token in range(vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="t0"))  # noqa: S106 - a word, not a password
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")
