"""What a model and its requests take of a device's memory, from its operations alone.

Parameters are the tensors of an operation whose sizes no request decides, caches those that a request's length does.
Left out: activations, graphs, and what is empty of a request's last block. An embedding and the logits' weight count
twice where they are one tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

from pytest_dooly.core.device import Device
from pytest_dooly.core.signature import ServedModel, Signature, dtype_bytes, fixed_size

__all__ = ["ENGINE_SHARE", "Footprint", "footprint"]

ENGINE_SHARE = 0.92
"""Of the memory, that vLLM takes unless told otherwise (`gpu_memory_utilization` of 0.32.0)."""


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


def _held(signature: Signature, seq_len: int) -> tuple[float, float]:
    """Bytes of an operation's parameters, and of what it keeps of one request."""
    tokens = min(seq_len, signature.window or seq_len)
    weights_bytes = cache_bytes = 0.0
    for role, dtype, shape in signature.tensors:
        asked = [dim for dim in shape if isinstance(dim, str)]
        size_bytes = fixed_size(shape) * dtype_bytes(dtype)
        if asked == ["context_len + query_len"]:
            cache_bytes += tokens * size_bytes
        elif role.startswith("state") and not asked:
            cache_bytes += size_bytes
        elif not asked:
            weights_bytes += size_bytes
    return weights_bytes, cache_bytes
