"""What a model and its requests take of a device's memory, from its operations alone.

Parameters are the tensors of an operation whose sizes no request decides, caches those that a request's length does.
Experts in MXFP4 are as large as vLLM's kernels have them padded. Left out: graphs, and what is empty of a request's
last block. An embedding and the logits' weight count twice where they are one tensor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from pytest_dooly.core.batch import Batch
from pytest_dooly.core.device import Device
from pytest_dooly.core.operation import OperationKind
from pytest_dooly.core.release import NEWEST
from pytest_dooly.core.signature import ServedModel, Signature, dtype_bytes, engines_of, fixed_size
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.published.family import weight_precision

__all__ = [
    "ENGINE_SHARE",
    "CacheRoom",
    "Footprint",
    "cache_room",
    "footprint",
    "footprint_of_batch",
    "state_blocks",
    "working_bytes",
]

ENGINE_SHARE = NEWEST.memory_share
"""Of the memory, that vLLM takes unless told otherwise."""

_GIB = float(1 << 30)

_CONTEXT_BYTES, _COLLECTIVES_BYTES = 0.2 * _GIB, 0.45 * _GIB
"""Of CUDA and of the engine's buffers; of those that collectives take in addition."""

_ROUNDED = 256
"""What the hidden size of experts in MXFP4 is a multiple of in memory.

Source: `mxfp4_round_up_hidden_size_and_intermediate_size` of vLLM 0.32.0 (model_executor/layers/fused_moe/oracle/
mxfp4.py). gpt-oss-120b took 64.38 GiB of an H100 with Triton's kernels (log of 0.14.1, issue 33155), which sizes alone
make 60.77 of, and 65.97 with Marlin's (issue 23278), which pad the inner size too.
"""

_WIDEST, _COPIES = 1.5, 5
"""How much the widest activation of a step stands for: that and half of it, as of a gated layer; tensors of the size of
all requests' logits in 32 bits that sampling holds at once."""


@dataclass(frozen=True)
class Footprint:
    """Memory of one device, in bytes.

    Attributes:
        weights_bytes: of the parameters of one rank.
        cache_bytes: of what all requests keep at their full length: keys and values, states.
        usable_bytes: what the engine takes of the device.
    """

    weights_bytes: float
    cache_bytes: float
    usable_bytes: float

    @property
    def fits(self) -> bool:
        """Whether weights and all requests are in memory at once; else some wait, or nothing starts."""
        return self.weights_bytes + self.cache_bytes <= self.usable_bytes


def footprint(model: ServedModel, device: Device, *, num_reqs: int, seq_len: int) -> Footprint:
    """What a rank of a model holds in a device's memory.

    Args:
        model: one rank of it.
        device: that serves the rank.
        num_reqs: requests at once.
        seq_len: tokens of each, prompt and output.
    """
    weights_bytes = cache_bytes = 0.0
    for operation in model.operations:
        weights, cached = _held(operation.signature, seq_len)
        weights_bytes += operation.multiplicity * weights
        cache_bytes += operation.multiplicity * cached * num_reqs
    return Footprint(weights_bytes, cache_bytes, ENGINE_SHARE * device.memory_bytes)


def footprint_of_batch(model: ServedModel, device: Device, batch: Batch) -> Footprint:
    """What a rank of a model holds in a device's memory once the requests of a step are served.

    Args:
        model: one rank of it.
        device: that serves the rank.
        batch: of the step.
    """
    each = [footprint(model, device, num_reqs=number, seq_len=request.seq_len) for request, number in batch.groups]
    return replace(each[0], cache_bytes=sum(held.cache_bytes for held in each))


def working_bytes(model: ServedModel) -> float:
    """What a rank takes while it runs: of the engine's share, it is neither weights nor cache.

    Source: set by hand after logs of vLLM 0.15.1 on H100 (2,048 tokens and 128 requests a step), which leave 0.42 GiB
    for Llama-2-7B and 0.87 to 0.91 GiB for three larger models on 2 and 4 ranks. Of Llama-3.1-8B, whose logits are
    wider, an A100's log of 0.31.0 leaves 1.7 GiB (2,048 tokens, 256 requests): there it falls short by 0.8 GiB.

    Args:
        model: one rank of it, with the limits that it is served with.
    """
    wide_bytes = [0.0]
    logits_bytes = collectives_bytes = 0.0
    for operation in model.operations:
        engines = engines_of(operation.signature)  # of whose tokens hidden states are gathered
        if operation.signature.kind is OperationKind.COLLECTIVE or engines > 1:
            collectives_bytes = _COLLECTIVES_BYTES
        for role, dtype, shape in operation.signature.tensors:
            if shape[:1] == ("num_tokens",):
                wide_bytes.append(engines * fixed_size(shape) * dtype_bytes(dtype))
            elif role == "logits":
                logits_bytes = 4.0 * fixed_size(shape)
    activations_bytes = _WIDEST * model.limits.max_num_tokens * max(wide_bytes)
    sampling_bytes = _COPIES * model.limits.max_num_seqs * logits_bytes
    return _CONTEXT_BYTES + collectives_bytes + activations_bytes + sampling_bytes


@dataclass(frozen=True)
class CacheRoom:
    """What a device's memory leaves beside the weights, in KV blocks.

    Attributes:
        num_blocks: by what tokens take of them.
        of_states: of those, what the states of one request take, however long it is; 0 without state-space mixers. As
            if blocks were of one size: vLLM makes them so large there that one holds a state, and the last is emptier.
    """

    num_blocks: int
    of_states: int = 0

    def for_tokens(self, num_reqs: int) -> int:
        """Blocks that the states of so many requests leave, for a scheduler that knows of none.

        Raises:
            ConfigurationError: they leave none.
        """
        left = self.num_blocks - num_reqs * self.of_states
        if left < 1:
            raise ConfigurationError(
                f"the states of {num_reqs:,} requests take all of {self.num_blocks:,} KV blocks, {self.of_states:,} "
                "each: serve fewer at once (max_num_seqs)"
            )
        return left


def cache_room(
    model: ServedModel, device: Device, *, block_size: int = 16, share: float = ENGINE_SHARE, seq_len: int = 0
) -> CacheRoom:
    """KV blocks that the device's memory leaves beside the weights.

    Layers whose attention has a window keep no more of a request than that, so that what a block takes in the mean
    falls with a request's length: vLLM gives such layers blocks of their own, and takes back those that have left the
    window.

    Args:
        model: one rank of it.
        device: that serves the rank.
        block_size: tokens in one block.
        share: of the memory, that the engine takes (`gpu_memory_utilization`).
        seq_len: tokens of a typical request in the cache; 0 for so few that no window is full.

    Raises:
        ConfigurationError: the weights alone do not fit, or the model keeps no keys and values.
    """
    held, block_bytes = _held_and_block(model, device, block_size, seq_len)
    if block_bytes <= 0:
        raise ConfigurationError(f"{model.name} keeps no keys and values: name the number of KV blocks")
    usable_bytes = share * device.memory_bytes
    left_bytes = usable_bytes - held.weights_bytes - working_bytes(model)
    if left_bytes < held.cache_bytes + block_bytes:
        raise ConfigurationError(
            f"{model.name} does not fit on {device.name}: {held.weights_bytes / 1e9:.1f} GB of weights on a rank, "
            f"{usable_bytes / 1e9:.1f} GB that the engine takes; use more ranks (--tp)"
        )
    return CacheRoom(int(left_bytes / block_bytes), math.ceil(held.cache_bytes / block_bytes))


def state_blocks(model: ServedModel, device: Device, *, block_size: int = 16, seq_len: int = 0) -> int:
    """KV blocks that the states of one request take, of however many there are; arguments as of `cache_room`.

    0 for a model that keeps no keys and values, whose blocks have no size.
    """
    held, block_bytes = _held_and_block(model, device, block_size, seq_len)
    return math.ceil(held.cache_bytes / block_bytes) if block_bytes > 0 else 0


def _held_and_block(model: ServedModel, device: Device, block_size: int, seq_len: int) -> tuple[Footprint, float]:
    """What is held of a request without tokens, its states, beside the weights; and bytes of a block in the mean."""
    blocks = max(math.ceil(seq_len / block_size), 1)
    held, typical = (footprint(model, device, num_reqs=1, seq_len=tokens) for tokens in (0, blocks * block_size))
    return held, (typical.cache_bytes - held.cache_bytes) / blocks


def _held(signature: Signature, seq_len: int) -> tuple[float, float]:
    """Bytes of an operation's parameters, and of what it keeps of one request."""
    tokens = min(seq_len, signature.window or seq_len)
    padding = _padding(signature)
    weights_bytes = cache_bytes = 0.0
    for role, dtype, shape in signature.tensors:
        asked = [dim for dim in shape if isinstance(dim, str)]
        size_bytes = fixed_size(shape) * dtype_bytes(dtype)
        if asked == ["context_len + query_len"]:
            cache_bytes += tokens * size_bytes
        elif role.startswith("state") and not asked:
            cache_bytes += size_bytes
        elif not asked:
            weights_bytes += size_bytes * (padding if len(shape) > 2 else 1)
    return weights_bytes, cache_bytes


def _padding(signature: Signature) -> float:
    """How many times as large experts are as their sizes say."""
    if signature.kind is not OperationKind.MOE or not weight_precision(signature).startswith("mxfp4"):
        return 1.0
    shapes = {role.rpartition(".")[2]: shape for role, _, shape in signature.tensors}
    hidden = int(shapes["w2_weight"][1])
    return math.ceil(hidden / _ROUNDED) * _ROUNDED / hidden
