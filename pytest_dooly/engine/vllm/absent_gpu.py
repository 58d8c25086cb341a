"""vLLM on its CUDA platform without a GPU: its Python code decides what would run there, and no kernel runs.

The CPU build ships all of that code. What it lacks are the compiled kernels: names stand in for them, as for packages
of further kernels, and for the GPU there is what its data sheet says. Layers are then described as that GPU has them;
their outputs' shapes come from vLLM's own implementations in plain PyTorch. Fake tensors need no device, so that they
stay on the CPU: indexing one of a device that PyTorch was built without fails.
"""

from __future__ import annotations

import os
import sys
from functools import cache, partial
from importlib import import_module, util
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from pytest_dooly.core.device import Device
from pytest_dooly.engine.vllm.model_classes import AbsentModule, StandIns
from pytest_dooly.errors import EngineError

__all__ = ["describe", "described"]

_COMPILED = (
    "_C_stable_libtorch",
    "_moe_C_stable_libtorch",
    "_flashmla_C",
    "_flashmla_extension_C",
    "vllm_flash_attn._vllm_fa2_C",
    "vllm_flash_attn._vllm_fa3_C",
    "third_party.flashmla.flash_mla_interface",
)
"""Modules of vLLM's CUDA build alone, which register its kernels or call them."""

_NAMESPACES = ("_C", "_C_cache_ops", "_C_custom_ar", "_moe_C", "_flashmla_C", "_vllm_fa2_C", "_vllm_fa3_C")
"""Of `torch.ops`, where they do."""

_PACKAGES = ("cutlass", "deep_gemm", "flashinfer", "humming", "quack", "tilelang", "tokenspeed_mla", "triton_kernels")
"""Of further kernels, which come with the CUDA build and are imported where a GPU has them."""

_SUPPORTED = {
    "cutlass_scaled_mm_supports_fp8": (89, 130),
    "cutlass_scaled_mm_supports_block_fp8": (90, 130),
    "cutlass_scaled_mm_supports_fp4": (100, 130),
    "cutlass_group_gemm_supported": (90, 130),
    "mxfp4_experts_quant_supported": (100, 120),
}
"""What compiled code answers of itself: from which compute capability on, and before which, it has kernels.

Source: vLLM's csrc/libtorch_stable/quantization (w8a8/cutlass/scaled_mm_entry.cu, fp4/nvfp4_scaled_mm_entry.cu and
fp4/mxfp4_experts_quant.cu), built with CUDA 12.8 or newer.
"""

_ANY_NUMBER = 1024
"""Of such GPUs, more than a tensor-parallel group takes."""

_described: Device | None = None
_kept: list[Any] = []


def described() -> Device | None:
    """The GPU that this process takes the machine to have; None where nothing was described."""
    return _described


def describe(gpu: Device) -> None:
    """Makes vLLM in this process take the machine for one with such a GPU, for as long as the process lasts.

    Args:
        gpu: what it is to find.

    Raises:
        EngineError: vLLM has settled on another platform in this process.
    """
    global _described
    if _described == gpu:
        return
    if _described is not None or any(name.startswith("vllm.") for name in sys.modules):
        raise EngineError(f"vLLM cannot be told of an {gpu.product} here: this process has served another device")
    _described = gpu
    os.environ["VLLM_HAS_FLASHINFER_CUBIN"] = "1"
    os.environ["VLLM_USE_FLASHINFER_SAMPLER"] = "0"  # it is asked whether it compiles; a trace samples greedily
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Triton is then not asked for a driver
    _answer_for(gpu)
    for package in _PACKAGES:
        if util.find_spec(package) is None:
            sys.meta_path.append(StandIns(package))
    _settle_on_cuda(gpu)


def _settle_on_cuda(gpu: Device) -> None:
    from vllm import platforms

    platforms.vllm_version_matches_substr = lambda _: False  # the build's name decides whether there is Triton
    for name in _COMPILED:
        sys.modules[f"vllm.{name}"] = AbsentModule(f"vllm.{name}")
    library = torch.library.Library("_C", "FRAGMENT")
    _kept.append(library)  # or the operators go
    for name, (first, beyond) in _SUPPORTED.items():
        library.define(f"{name}(int capability) -> bool")
        within = partial(_within, first, beyond)
        library.impl(name, within, "CompositeExplicitAutograd")
    platforms._current_platform = _platform(gpu)()
    import vllm._custom_ops  # noqa: F401 - asks which kernels there are, to give them shape functions

    for name in _NAMESPACES:
        setattr(torch.ops, name, _Namespace(getattr(torch.ops, name)))
    if util.find_spec("triton") is not None:
        import_module("triton.runtime.jit").KernelInterface.__getitem__ = _launched


def _platform(gpu: Device) -> type:
    """VLLM's CUDA platform, asked in place of the driver."""
    from vllm.platforms.cuda import CudaPlatformBase
    from vllm.platforms.interface import DeviceCapability

    class DescribedGpu(CudaPlatformBase):
        device_type = "cpu"  # where fake tensors are made

        @classmethod
        def get_device_capability(cls, device_id: int = 0) -> Any:
            return DeviceCapability(*gpu.compute_capability)

        @classmethod
        def get_device_name(cls, device_id: int = 0) -> str:
            return gpu.product

        @classmethod
        def get_device_total_memory(cls, device_id: int = 0) -> int:
            return int(gpu.memory_bytes)

        @classmethod
        def device_count(cls) -> int:
            return _ANY_NUMBER

        @classmethod
        def is_fully_connected(cls, physical_device_ids: list[int]) -> bool:
            return True

    return DescribedGpu


def _answer_for(gpu: Device) -> None:
    """What PyTorch is asked past vLLM's platform."""
    major, minor = gpu.compute_capability
    properties = SimpleNamespace(
        name=gpu.product,
        major=major,
        minor=minor,
        total_memory=int(gpu.memory_bytes),
        multi_processor_count=gpu.multiprocessors,
        is_integrated=False,
    )
    torch.accelerator.current_device_index = lambda: 0
    torch.cuda.current_device = lambda: 0
    torch.cuda.get_device_capability = lambda *_: gpu.compute_capability
    torch.cuda.get_device_properties = lambda *_: properties
    torch.cuda.Stream = torch.cuda.Event = SimpleNamespace  # work beside other work, which a trace has none of


def _within(first: int, beyond: int, capability: int) -> bool:
    return first <= capability < beyond


class _Namespace:
    """Operators of a namespace: those that are registered, and stand-ins for all others."""

    def __init__(self, registered: Any) -> None:
        self._registered = registered

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "cpu" in name or hasattr(self._registered, name):
            return getattr(self._registered, name)
        return _Kernel(self._registered.name, name)


class _Kernel:
    """A kernel that only says that it was called, and with which tensors: most write into one of them."""

    def __init__(self, namespace: str, name: str) -> None:
        self._namespace = namespace
        self._name = name

    def __getattr__(self, overload: str) -> Any:
        if overload.startswith("__"):
            raise AttributeError(overload)
        return self

    def __call__(self, *arguments: Any, **options: Any) -> None:
        tensors = [leaf for leaf in tree_leaves((arguments, options)) if isinstance(leaf, torch.Tensor)]
        _operator(self._namespace, self._name)(tensors)


@cache
def _operator(namespace: str, name: str) -> Any:
    """An operator that a dispatch mode sees."""
    library = torch.library.Library(namespace, "FRAGMENT")
    _kept.append(library)
    library.define(f"{name}(Tensor[] tensors) -> ()")
    library.impl(name, lambda _: None, "CompositeExplicitAutograd")
    return torch._ops._OpNamespace(namespace).__getattr__(name).default


def _launched(kernel: Any, _: object) -> _Kernel:
    """What launches a Triton kernel on a grid."""
    return _Kernel("triton", getattr(kernel, "__name__", type(kernel).__name__))
