"""What of vLLM is patched while a model is built on fake tensors and traced, each for one reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from pytest_dooly.engine.base import Origins
from pytest_dooly.engine.vllm.parallel import one_of_many
from pytest_dooly.engine.vllm.quantisation import any_kernel

__all__ = ["without_weights"]

# Names of integers in a Hugging Face configuration that count layers or name tokens: no size is made of them.
_NO_SIZE = ("_token_id", "layers", "layer_types", "chunk_size_feed_forward", "num_labels")

_DERIVED = {
    "hidden_size": "hidden_size",
    "vocab_size": "vocab_size",
    "head_size": "head_dim",
    "total_num_attention_heads": "num_attention_heads",
    "total_num_kv_heads": "num_key_value_heads",
}
"""Sizes of vLLM's own summary of a configuration, and what the configuration calls them."""


@contextmanager
def without_weights(config: Any, origins: Origins) -> Iterator[None]:
    """While open, vLLM builds a model of symbolic sizes on fake tensors, and runs it.

    Args:
        config: vLLM's configuration, whose integers are planted.
        origins: plants a symbol in place of every one.
    """
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.layers.fused_moe.expert_map_manager import ExpertMapManager
    from vllm.utils.torch_utils import set_default_torch_dtype

    _plant(config, origins.plant)
    with (
        set_current_vllm_config(config),
        one_of_many(config, origins.plant),
        _rounding_by(origins.integer),
        set_default_torch_dtype(config.model_config.dtype),
        _without_compiler(),
        _no_shared_tables(),
        _never_reloaded(),
        any_kernel(config.quant_config is not None),
        _attributes_of_parameters(),
        _never_moved_away(),
        _sums_within_kernels(),
        _rows_filled_up(),
        # A line for the log that looks into a tensor's values.
        mock.patch.object(ExpertMapManager, "get_compressed_map_string", return_value=""),
    ):
        yield


def _plant(config: Any, plant: Callable[[str, int], int]) -> None:
    model = config.model_config
    named = [(model.hf_text_config, name, name) for name in vars(model.hf_text_config)]
    # What vLLM has read off the configuration by itself, under the names that configurations use.
    named += [(model.model_arch_config, ours, theirs) for ours, theirs in _DERIVED.items()]
    for owner, attribute, name in [*named, (config.cache_config, "block_size", "block_size")]:
        value = _global_value(owner, attribute)
        if type(value) is int and value > 0 and not any(part in name for part in _NO_SIZE):
            object.__setattr__(owner, attribute, plant(name, value))


def _global_value(config: Any, attribute: str) -> Any:
    """What a configuration says for all layers alike; None where Transformers refuses, since layers differ in it."""
    try:
        return getattr(config, attribute, None)
    except RuntimeError:
        return None


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Functions that vLLM decorates with torch.compile run as they are: a compiler cannot see our symbols."""
    import torch._dynamo

    with torch._dynamo.config.patch(disable=True):
        yield


@contextmanager
def _no_shared_tables() -> Iterator[None]:
    """Rotary tables that vLLM keeps for all models stay apart: ours are fake tensors, a real model would find them."""
    from vllm.model_executor.layers import rotary_embedding

    with mock.patch.dict(rotary_embedding._ROPE_DICT, clear=True):
        yield


@contextmanager
def _never_reloaded() -> Iterator[None]:
    """No notes are taken of every weight for a later reload: a fifth of a trace, and a skeleton has no weights."""
    from vllm.model_executor.model_loader import utils

    with mock.patch.object(utils, "record_metadata_for_reloading"):
        yield


@contextmanager
def _rounding_by(integer: type[int]) -> Iterator[None]:
    """Sizes that go through a float and `int` keep their origin: the rotary part of a head, for one."""
    from vllm.model_executor.layers import rotary_embedding

    with mock.patch.object(rotary_embedding, "int", integer, create=True):
        yield


@contextmanager
def _attributes_of_parameters() -> Iterator[None]:
    """A parameter made of a fake tensor is none of vLLM's class, whose constructor sets what layers look for."""
    from vllm.model_executor.parameter import BasevLLMParameter

    def make(cls: type, data: torch.Tensor, **attributes: Any) -> torch.Tensor:
        parameter = torch.nn.Parameter.__new__(cls, data=data, requires_grad=False)
        if not isinstance(parameter, cls):
            vars(parameter).update(attributes)
        return parameter

    with mock.patch.object(BasevLLMParameter, "__new__", make):
        yield


@contextmanager
def _never_moved_away() -> Iterator[None]:
    """Towers that are left out stay where they are: fake tensors hold no memory to be freed, and cannot be moved."""
    move = torch.nn.Module.to

    def moved(module: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
        return module if args == ("meta",) else move(module, *args, **kwargs)

    with mock.patch.object(torch.nn.Module, "to", moved):
        yield


@contextmanager
def _rows_filled_up() -> Iterator[None]:
    """Rows that fill up what ranks share are put below the others: padding by a symbol has no fake kernel."""
    pad = torch.nn.functional.pad

    def padded(tensor: torch.Tensor, widths: Sequence[int], *args: Any, **kwargs: Any) -> torch.Tensor:
        *others, more = widths
        if not isinstance(more, torch.SymInt) or any(others):
            return pad(tensor, widths, *args, **kwargs)
        return torch.cat([tensor, tensor.new_empty((more, *tensor.shape[1:]))])

    with mock.patch.object(torch.nn.functional, "pad", padded):
        yield


@contextmanager
def _sums_within_kernels() -> Iterator[None]:
    """A norm whose kernel sums over all ranks, as MiniMax-M2 has it, shows that sum as the collective that it is.

    The variances of queries and keys of every token, in single precision; older versions sum them in a kernel apart.
    """
    try:
        from vllm.distributed.communication_op import tensor_model_parallel_all_reduce
        from vllm.model_executor.layers.minimax_rms_norm import MiniMaxText01RMSNormTP
    except ImportError:
        yield
        return
    normed = MiniMaxText01RMSNormTP.forward_qkv

    def forward_qkv(
        q_norm: Any, k_norm: Any, qkv: torch.Tensor, q_size: int, kv_size: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        found: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = normed(q_norm, k_norm, qkv, q_size, kv_size)
        if q_norm.tp_world > 1:
            tensor_model_parallel_all_reduce(qkv.new_empty((qkv.shape[0], 2), dtype=torch.float32))
        return found

    with mock.patch.object(MiniMaxText01RMSNormTP, "forward_qkv", staticmethod(forward_qkv)):
        yield
