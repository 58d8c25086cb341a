"""Quantised layers as a GPU has them: described by the precision of their weights, built without their kernels."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from enum import Enum
from typing import Any
from unittest import mock

import torch

__all__ = ["Weights", "any_kernel", "experts_kernel", "method_of", "packed", "precision_of"]

Weights = Mapping[str, tuple[torch.dtype, Sequence[Any]]]
"""Dtype and shape by role."""

_CHOOSERS = re.compile(r"(choose|init)_\w+_kernel|select_\w+_moe_backend|make_\w+_moe_kernel")
"""Names of vLLM's functions that choose a kernel for the platform they run on."""

_HOMES = ("vllm.model_executor.kernels.linear", "vllm.model_executor.layers.fused_moe.oracle")

_UNQUANTISED = frozenset({torch.bfloat16, torch.float16, torch.float32})

_DTYPES = {
    "fp8": torch.float8_e4m3fn,
    "fp8_block": torch.float8_e4m3fn,
    "mxfp8": torch.float8_e4m3fn,
    "int8": torch.int8,
    "int8_weights": torch.int8,
}
"""Of a weight, by its precision; those of others have four bits."""

_PRECISIONS = (
    ("mxfp4", "mxfp4"),
    ("mxfp8", "mxfp8"),
    (r"nvfp4|fp4", "nvfp4"),
    ("int8online", "int8_weights"),
    (r"w8a8_?int8|int8", "int8"),
    (r"fp8|w8a8", "fp8"),
)
"""Of the weights, by a part of the name of vLLM's method or scheme; the first that is found."""


def method_of(layer: Any) -> str:
    """How the weights are quantised, by vLLM's name of the method."""
    return re.sub(r"(Fused)?(MoE|Linear)?Method$", "", type(layer.quant_method).__name__).lower()


def precision_of(layer: Any) -> str | None:
    """What the matrix products of a layer are computed from; None where its weights are not quantised.

    `fp8` with a scale for each tensor, channel or token, `fp8_block` with one for each block of a weight; `int8` as
    fp8; `int4` and `int8_weights` where weights alone are small; `nvfp4`; `mxfp4`, whose activations stay bf16.
    """
    method = method_of(layer)
    if method == "unquantized":
        return None
    scheme = getattr(layer, "scheme", None) or layer.quant_method
    bits = _bits(scheme)
    kept = type(getattr(scheme, "wkey", None)).__name__  # ModelOpt's methods are one class, with weights of several
    name = f"{method} {type(scheme).__name__} {kept}".lower()
    if bits is not None and not re.search(r"fp8|fp4|w8a8|int8", name):
        return "int4" if bits == 4 else f"int{bits}_weights"
    precision = next((precision for part, precision in _PRECISIONS if re.search(part, name)), method)
    return "fp8_block" if precision == "fp8" and ("block" in name or _in_blocks(scheme)) else precision


def experts_kernel(layer: Any) -> str | None:
    """The kernel that a GPU's experts are computed with, as in TRITON or MARLIN; None on a CPU, or where none is named.

    Args:
        layer: the experts that tokens are routed to.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cuda():
        return None
    kept = vars(layer.quant_method).items()
    return next((value.name for name, value in kept if name.endswith("_backend") and isinstance(value, Enum)), None)


def packed(layer: Any, role: str, shape: Sequence[Any]) -> tuple[frozenset[str], Weights]:
    """Names of a weight whose parameter is not what its kernel reads, and the dtype and shape of that.

    Several numbers are packed into one, or the engine quantises them as it loads. Empty where the parameter is read as
    it is.

    Args:
        layer: that holds it.
        role: what it is called where it is not packed, as in `weight` or `w13_weight`.
        shape: that it has then.
    """
    form = re.compile(rf"{role}(_packed)?|{role.replace('weight', 'qweight')}")
    held = {name: value for name, value in layer.named_parameters(recurse=False) if form.fullmatch(name)}
    sizes = sorted(int(size) for size in shape)
    precision = precision_of(layer)
    as_loaded = precision is not None and all(value.dtype in _UNQUANTISED for value in held.values())
    whole = any(sorted(int(size) for size in value.shape) == sizes for value in held.values())
    if not held or (whole and not as_loaded):
        return frozenset(), {}
    return frozenset(held), {role: (_DTYPES.get(precision or "", torch.uint4), shape)}


def _bits(scheme: Any) -> int | None:
    """Bits of a weight where its method counts them."""
    for owner in (scheme, getattr(scheme, "quant_config", None)):
        for attribute in ("weight_bits", "num_bits"):
            bits = getattr(owner, attribute, None)
            if isinstance(bits, int):
                return bits
    return None


def _in_blocks(scheme: Any) -> bool:
    config = getattr(scheme, "quant_config", None)
    blocks = (getattr(owner, "weight_block_size", None) for owner in (scheme, config))
    strategy = str(getattr(scheme, "strategy", "")).lower()
    return bool(getattr(scheme, "block_quant", False) or any(blocks) or strategy.endswith("block"))


@contextmanager
def any_kernel(quantised: bool) -> Iterator[None]:
    """While open, layers are built for kernels that this platform or processor lacks: a skeleton runs none.

    Args:
        quantised: whether the model is; nothing is done where it is not.
    """
    if not quantised:
        yield
        return
    from vllm.model_executor.layers.quantization.utils import marlin_utils

    with ExitStack() as stack:
        enter = stack.enter_context
        enter(mock.patch.object(torch.cpu, "_is_amx_tile_supported", return_value=True, create=True))
        enter(mock.patch.object(marlin_utils, "_check_marlin_supported", return_value=(True, None)))
        for module, name in _choosers():
            enter(mock.patch.object(module, name, _or_none_that_runs(getattr(module, name))))
        yield


class _NoKernel(mock.MagicMock):
    """Stands for a kernel, or for one and where it comes from."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()
        self.__iter__.side_effect = lambda: iter((_NoKernel, _NoKernel))

    def _get_child_mock(self, **_: Any) -> mock.MagicMock:
        return mock.MagicMock()


def _or_none_that_runs(choose: Callable[..., Any]) -> Callable[..., Any]:
    """The chooser of a kernel, or of a kernel's class, with a stand-in where it finds none."""

    def chosen(*arguments: Any, **options: Any) -> Any:
        try:
            return choose(*arguments, **options)
        except (AssertionError, AttributeError, NotImplementedError, RuntimeError, ValueError):
            return _NoKernel if choose.__name__.startswith("choose_") else _NoKernel()

    return chosen


def _choosers() -> Iterator[tuple[Any, str]]:
    """Every place where one of vLLM's choosers of kernels is known by name."""
    for module in tuple(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("vllm."):
            for name, value in tuple(vars(module).items()):
                if _CHOOSERS.fullmatch(name) and getattr(value, "__module__", "").startswith(_HOMES):
                    yield module, name
