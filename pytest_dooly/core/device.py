"""GPUs by name: what their data sheets say, for estimates and for features of what a kernel does."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_dooly.errors import ConfigurationError

__all__ = ["DEVICES", "Device", "device_named", "device_of"]


@dataclass(frozen=True)
class Device:
    """One kind of GPU.

    Attributes:
        name: as people and public tables name it (`h200_sxm`).
        product: as its driver names it (`NVIDIA H200`).
        multiprocessors: streaming multiprocessors.
        memory_bytes: of the device.
        memory_bytes_per_s: peak of that memory.
        flops_per_s: peak of bf16 matrix products without sparsity; 8-bit ones are twice as fast, 4-bit ones four times.
        link_bytes_per_s: to the other GPUs of a node, in one direction.
    """

    name: str
    product: str
    multiprocessors: int
    memory_bytes: float
    memory_bytes_per_s: float
    flops_per_s: float
    link_bytes_per_s: float


DEVICES: tuple[Device, ...] = (
    Device("a100_sxm", "NVIDIA A100-SXM4-80GB", 108, 80e9, 2.039e12, 312e12, 300e9),
    Device("b200_sxm", "NVIDIA B200", 148, 180e9, 7.7e12, 2250e12, 900e9),
    Device("h100_sxm", "NVIDIA H100 80GB HBM3", 132, 80e9, 3.35e12, 989e12, 450e9),
    Device("h200_sxm", "NVIDIA H200", 132, 141e9, 4.8e12, 989e12, 450e9),
    Device("l40s", "NVIDIA L40S", 142, 48e9, 0.864e12, 362e12, 32e9),
    Device("rtx_4090", "NVIDIA GeForce RTX 4090", 128, 25.25e9, 1.008e12, 165.2e12, 32e9),
    Device("rtx_pro_6000", "NVIDIA RTX PRO 6000 Blackwell Server Edition", 188, 101.97e9, 1.597e12, 503.8e12, 64e9),
)
"""Figures of NVIDIA's data sheets; dense matrix products, HGX boards, PCIe 4.0 for the L40S and the RTX 4090, 5.0 for
the RTX Pro 6000. Its and the RTX 4090's products are those that add up in fp32, by the whitepapers on Ada and on RTX
Blackwell (there of the Workstation Edition); their memory is what CUDA reports of it in public logs."""


def device_named(name: str) -> Device:
    """The device of that name or product.

    Raises:
        ConfigurationError: it is unknown; names those that are.
    """
    for device in DEVICES:
        if name in (device.name, device.product):
            return device
    raise ConfigurationError(f"unknown device {name!r}: name one of {', '.join(each.name for each in DEVICES)}")


def device_of(product: str) -> Device | None:
    """The device whose driver names it so, or None."""
    return next((device for device in DEVICES if device.product == product), None)
