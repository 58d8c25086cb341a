"""Greedy sampling in vLLM's words: as metadata of a step and as parameters of a request."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

__all__ = ["greedy_parameters", "greedy_sampling"]


def greedy_sampling(device: torch.device) -> Any:
    """VLLM's sampling metadata of temperature 0 without penalties."""
    from vllm.v1.sample.logits_processor import LogitsProcessors
    from vllm.v1.sample.metadata import SamplingMetadata

    none = torch.empty(0, device=device)
    values: dict[str, Any] = {
        "temperature": None,
        "all_greedy": True,
        "all_random": False,
        "top_p": None,
        "top_k": None,
        "generators": {},
        "max_num_logprobs": None,
        "no_penalties": True,
        "prompt_token_ids": None,
        "frequency_penalties": none,
        "presence_penalties": none,
        "repetition_penalties": none,
        "output_token_ids": [],
        "allowed_token_ids_mask": None,
        "bad_words_token_ids": {},
        "logitsprocs": LogitsProcessors(),
    }
    known = {field.name for field in dataclasses.fields(SamplingMetadata)}
    return SamplingMetadata(**{name: value for name, value in values.items() if name in known})


def greedy_parameters(output_len: int) -> Any:
    """VLLM's sampling parameters of a request that ends after so many tokens, whatever they are."""
    from vllm import SamplingParams

    return SamplingParams(temperature=0, max_tokens=output_len, ignore_eos=True, detokenize=False)
