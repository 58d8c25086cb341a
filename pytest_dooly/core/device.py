"""GPUs by name: what their data sheets say, what CUDA reports of their memory, how a server bounds its steps there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pytest_dooly.core.batch import Limits
from pytest_dooly.errors import ConfigurationError

if TYPE_CHECKING:
    from pytest_dooly.core.configuration import ServingOptions  # which asks for the names of devices
    from pytest_dooly.core.signature import ServedModel

__all__ = ["DEVICES", "Device", "default_limits", "device_named", "device_of", "served_on", "serving_limits"]

_GIB = float(1 << 30)


@dataclass(frozen=True)
class Device:
    """One kind of GPU.

    Attributes:
        name: as people and public tables name it (`h200_sxm`).
        product: as its driver names it (`NVIDIA H200`).
        multiprocessors: streaming multiprocessors.
        memory_bytes: of the device, as CUDA reports it.
        memory_bytes_per_s: peak of that memory.
        flops_per_s: peak of bf16 matrix products without sparsity; 8-bit ones are twice as fast, 4-bit ones four times.
        fp32_flops_per_s: peak of products in fp32, which no tensor core computes unless TF32 is allowed.
        link_bytes_per_s: to the other GPUs of a node, in one direction.
        compute_capability: major and minor, by which an engine chooses its kernels.
        like: name of the GPU whose published latencies stand in where there are none of this one; None for none.
    """

    name: str
    product: str
    multiprocessors: int
    memory_bytes: float
    memory_bytes_per_s: float
    flops_per_s: float
    fp32_flops_per_s: float
    link_bytes_per_s: float
    compute_capability: tuple[int, int] = (9, 0)
    like: str | None = None


DEVICES: tuple[Device, ...] = (
    Device("a10", "NVIDIA A10", 72, 22.0 * _GIB, 0.6e12, 125e12, 31.2e12, 32e9, (8, 6), "a100_sxm"),
    Device(
        "a100_pcie", "NVIDIA A100 80GB PCIe", 108, 79.25 * _GIB, 1.935e12, 312e12, 19.5e12, 32e9, (8, 0), "a100_sxm"
    ),
    Device("a100_sxm", "NVIDIA A100-SXM4-80GB", 108, 79.25 * _GIB, 2.039e12, 312e12, 19.5e12, 300e9, (8, 0)),
    Device(
        "a100_sxm_40gb", "NVIDIA A100-SXM4-40GB", 108, 39.4 * _GIB, 1.555e12, 312e12, 19.5e12, 300e9, (8, 0), "a100_sxm"
    ),
    Device("a40", "NVIDIA A40", 84, 44.4 * _GIB, 0.696e12, 149.7e12, 37.4e12, 32e9, (8, 6), "a100_sxm"),
    Device(
        "a800_sxm", "NVIDIA A800-SXM4-80GB", 108, 79.25 * _GIB, 2.039e12, 312e12, 19.5e12, 200e9, (8, 0), "a100_sxm"
    ),
    Device("b200_sxm", "NVIDIA B200", 148, 178.35 * _GIB, 7.7e12, 2250e12, 75e12, 900e9, (10, 0)),
    Device("b300_sxm", "NVIDIA B300 SXM6 AC", 148, 267.9 * _GIB, 7.75e12, 2250e12, 75e12, 900e9, (10, 3)),
    Device("gb200", "NVIDIA GB200", 152, 184.3 * _GIB, 8e12, 2500e12, 80e12, 900e9, (10, 0)),
    Device("gb300", "NVIDIA GB300", 152, 276.8 * _GIB, 8e12, 2500e12, 80e12, 900e9, (10, 3)),
    Device("h100_pcie", "NVIDIA H100 PCIe", 114, 79.19 * _GIB, 2.0e12, 756e12, 51e12, 64e9, (9, 0), "h100_sxm"),
    Device("h100_sxm", "NVIDIA H100 80GB HBM3", 132, 79.19 * _GIB, 3.35e12, 989e12, 67e12, 450e9, (9, 0)),
    Device("h20", "NVIDIA H20", 78, 95.0 * _GIB, 4.0e12, 148e12, 44e12, 450e9, (9, 0), "h100_sxm"),
    Device("h200_sxm", "NVIDIA H200", 132, 139.80 * _GIB, 4.8e12, 989e12, 67e12, 450e9, (9, 0)),
    Device("h20_3e", "NVIDIA H20-3e", 78, 139.8 * _GIB, 4.8e12, 148e12, 44e12, 450e9, (9, 0), "h200_sxm"),
    Device("l4", "NVIDIA L4", 58, 22.0 * _GIB, 0.3e12, 121e12, 30.3e12, 32e9, (8, 9), "l40s"),
    Device("l40", "NVIDIA L40", 142, 44.4 * _GIB, 0.864e12, 181e12, 90.5e12, 32e9, (8, 9), "l40s"),
    Device("l40s", "NVIDIA L40S", 142, 44.39 * _GIB, 0.864e12, 362e12, 91.6e12, 32e9, (8, 9)),
    Device("rtx_3090", "NVIDIA GeForce RTX 3090", 82, 23.6 * _GIB, 0.936e12, 71e12, 35.6e12, 32e9, (8, 6), "a100_sxm"),
    Device("rtx_4090", "NVIDIA GeForce RTX 4090", 128, 25.25e9, 1.008e12, 165.2e12, 82.6e12, 32e9, (8, 9), "l40s"),
    Device(
        "rtx_4090_d", "NVIDIA GeForce RTX 4090 D", 114, 23.5 * _GIB, 1.008e12, 147e12, 73.5e12, 32e9, (8, 9), "l40s"
    ),
    Device(
        "rtx_5090",
        "NVIDIA GeForce RTX 5090",
        multiprocessors=170,
        memory_bytes=31.36 * _GIB,
        memory_bytes_per_s=1.792e12,
        flops_per_s=209.5e12,
        fp32_flops_per_s=104.8e12,
        link_bytes_per_s=64e9,
        compute_capability=(12, 0),
        like="rtx_pro_6000_server",
    ),
    Device(
        "rtx_6000_ada",
        "NVIDIA RTX 6000 Ada Generation",
        142,
        47.4 * _GIB,
        0.96e12,
        364e12,
        91.1e12,
        32e9,
        (8, 9),
        "l40s",
    ),
    Device("rtx_a6000", "NVIDIA RTX A6000", 84, 47.4 * _GIB, 0.768e12, 154.8e12, 38.7e12, 32e9, (8, 6), "a100_sxm"),
    Device(
        "rtx_pro_6000_server",
        "NVIDIA RTX PRO 6000 Blackwell Server Edition",
        multiprocessors=188,
        memory_bytes=101.97e9,
        memory_bytes_per_s=1.597e12,
        flops_per_s=503.8e12,
        fp32_flops_per_s=120e12,
        link_bytes_per_s=64e9,
        compute_capability=(12, 0),
    ),
    Device(
        "v100s_pcie_32gb",
        "Tesla V100S-PCIE-32GB",
        80,
        31.75 * _GIB,
        1.134e12,
        130e12,
        16.4e12,
        16e9,
        (7, 0),
        "a100_sxm",
    ),
)
"""Figures of NVIDIA's data sheets; dense matrix products (Volta's in fp16, having no bf16), HGX boards, PCIe 3.0 for
the V100S, 4.0 for the L40S and the RTX 4090, 5.0 for the RTX Pro 6000. Its and the RTX 4090's products are those that
add up in fp32, by the whitepapers on Ada and on RTX Blackwell (there of the Workstation Edition).

Those with a `like` have no public tables: it is the GPU of the same generation that has some, or else of the next. Of
the RTX 4090 there are some of single models, which come first. Their memory is what `nvidia-smi` shows less 0.6 GiB.

Memory is what `torch.cuda.get_device_properties` says under drivers of 2025 and 2026, of which vLLM takes its share:
0.5 to 0.8 GiB less than `nvidia-smi` shows, which has 81,920 MiB of an A100, 81,559 of an H100, 143,771 of an H200,
183,359 of a B200 and 46,068 of an L40S. Drivers differ by up to 0.1 GiB. Sources: vLLM's own words in public logs
("Free memory on device (78.84/79.25 GiB)" of an A100 80GB under 0.31.0; 79.19 of an H100, 139.8 of an H200), and
PyTorch's "total capacity of" in those of the B200 (178.35 GiB), the L40S (44.39) and V100s of 32 GB (31.75). Of the
B300, GB200 and GB300 it is what `nvidia-smi` shows (275,040, 189,471 and 284,208 MiB, as aiconfigurator's
`systems/*.yaml` have it) less the B200's difference, 0.7 GiB; their other figures are that package's too.
"""


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


def served_on(model: ServedModel, device: Device, options: ServingOptions) -> ServedModel:
    """The model with the limits that it is served with on a device, whatever it was traced on.

    Args:
        model: as traced, under its key still.
        device: that serves it.
        options: that it is served with.
    """
    return replace(model, limits=serving_limits(device, options, model.limits.max_model_len))


def serving_limits(device: Device, options: ServingOptions, max_model_len: int) -> Limits:
    """The bounds of a batch that `vllm serve` takes on a device; what the options name stands.

    Source: `EngineArgs.get_batch_defaults` and `_set_default_max_num_seqs_and_batched_tokens_args` of vLLM 0.32.0
    (vllm/engine/arg_utils.py), for the usage context OPENAI_API_SERVER.

    Args:
        device: that serves.
        options: whose max_num_tokens and max_num_seqs come before the defaults.
        max_model_len: most tokens of one request.
    """
    return _within(_memory_class(device), options, max_model_len)


def default_limits(options: ServingOptions, max_model_len: int) -> Limits:
    """The same on a device that nobody has named: as on most, 2,048 tokens and 256 requests.

    Args:
        options: as in `serving_limits`.
        max_model_len: most tokens of one request.
    """
    return _within("others", options, max_model_len)


def _within(memory_class: str, options: ServingOptions, max_model_len: int) -> Limits:
    num_tokens, num_seqs = _SERVING_DEFAULTS[memory_class]
    num_seqs = options.max_num_seqs or num_seqs
    num_tokens = options.max_num_tokens or min(num_tokens, num_seqs * max_model_len)
    num_seqs = options.max_num_seqs or min(num_seqs, num_tokens)
    return Limits(num_tokens, num_seqs, max_model_len, options.max_captured)


_SERVING_DEFAULTS = {"B200": (16384, 1024), "H100": (8192, 1024), "others": (2048, 256)}
"""Most tokens and requests of a step, by the GPUs that vLLM has in mind."""


def _memory_class(device: Device) -> str:
    if device.memory_bytes >= 160 * _GIB:
        return "B200"
    return "H100" if device.memory_bytes >= 70 * _GIB and "a100" not in device.product.lower() else "others"
