"""The device's last-level cache: what evicts from it, and how many layers it takes that none stays in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import psutil
import torch

from pytest_dooly.core.configuration import ModelConfiguration
from pytest_dooly.core.language_model import language_model
from pytest_dooly.core.operation import OperationKind
from pytest_dooly.core.signature import ModelOperation, Signature, fixed_size, is_weight_matrix

__all__ = ["Ballast", "layers_needed", "reads_a_matrix"]

_CACHE_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}
# Assumed where the kernel does not say.
_USUAL_CACHE_BYTES = 32 * 2**20
# Layers beyond which more rotation costs memory and start-up for nothing.
_MAX_LAYERS = 64


class Ballast:
    """What evicts from the last-level cache, when it is written to, as much as a pass over the model does."""

    def __init__(self, model: torch.nn.Module, device: torch.device) -> None:
        self._model = model
        self._device = device

    def evict(self) -> None:
        """Writes all of it."""
        self._written.add_(1)

    @cached_property
    def _written(self) -> torch.Tensor:
        weights = sum(weight.nbytes for weight in self._model.parameters())
        size = min(weights, 2 * _last_level_cache_bytes())
        return torch.zeros(size, dtype=torch.uint8, device=self._device)


def layers_needed(configuration: ModelConfiguration, operations: Sequence[ModelOperation]) -> int:
    """Layers that hold every operation, and enough weights that none stays in the cache between two uses.

    No more than the model has: what stays in the cache between two steps of the model itself is warm there too.
    """
    last = max((int(part) for o in operations for part in o.layers[0].split(".") if part.isdigit()), default=0)
    layer_bytes = sum(
        2 * fixed_size(shape)
        for operation in operations
        if len(operation.layers) > 1
        for role, _, shape in operation.signature.tensors
        if is_weight_matrix(role, shape)
    )
    rotation = math.ceil(2 * _last_level_cache_bytes() / max(1, layer_bytes))
    affordable = psutil.virtual_memory().available // 3 // max(1, layer_bytes)
    depth = language_model(configuration.document).get("num_hidden_layers", _MAX_LAYERS)
    return max(last + 1, min(rotation, affordable, depth, _MAX_LAYERS))


def reads_a_matrix(signature: Signature) -> bool:
    """Whether the kernel reads a whole weight, of which an embedding reads some rows."""
    matrix = any(is_weight_matrix(role, shape) for role, _, shape in signature.tensors)
    return matrix and signature.kind is not OperationKind.EMBEDDING


def _last_level_cache_bytes() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).L2_cache_size)
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(size[:-1]) * _CACHE_UNITS[size[-1]] for size in sizes), default=_USUAL_CACHE_BYTES)
