"""The device that vLLM runs on: which one, its name, what its kernels can do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pytest_dooly.core.configuration import ModelConfiguration
from pytest_dooly.core.device import Device, device_named
from pytest_dooly.core.environment import EAGER
from pytest_dooly.core.operation import GAP, LAUNCH

__all__ = ["absent_gpu", "between_layers", "cpu_name", "cuda_driver", "device_of", "permit_tiles", "runs_here"]

_ANY = "h100_sxm"


def device_of(configuration: ModelConfiguration) -> str:
    """Where the configuration is served, cpu or cuda: the device asked for, else the best that is here."""
    asked = configuration.options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return "cpu" if asked == "cpu" else "cuda"


def absent_gpu(configuration: ModelConfiguration) -> Device | None:
    """The GPU that the configuration is to be served on where it is not here; an H100 where any will do."""
    asked, here = configuration.options.device, torch.cuda.is_available()
    if device_of(configuration) == "cpu" or (here and asked in (None, "cuda")):
        return None
    gpu = device_named(_ANY if asked in (None, "cuda") else str(asked))
    return None if here and torch.cuda.get_device_name() == gpu.product else gpu


def cpu_name() -> str:
    """The processor's name as the kernel says it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "CPU"


def cuda_driver() -> str:
    """The version of the CUDA driver, of the runtime where torch does not say."""
    return str(torch.cuda.driver_version()) if hasattr(torch.cuda, "driver_version") else str(torch.version.cuda)


def runs_here(document: Mapping[str, Any]) -> bool:
    """Whether this processor has the kernels of the weights' format; MXFP4 experts need AMX on a CPU."""
    method = (document.get("quantization_config") or {}).get("quant_method")
    amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return method != "mxfp4" or torch.cuda.is_available() or bool(amx())


def between_layers(configuration: ModelConfiguration) -> str | None:
    """The overhead of a decoder layer: a CPU's gaps add up, a GPU's launches hide behind its work, a graph has none."""
    device = device_of(configuration)
    if device == "cpu":
        return GAP
    return LAUNCH if configuration.options.execution_on(device) == EAGER else None


def permit_tiles() -> None:
    """Asks the kernel for AMX tiles: the CPU attention of vLLM 0.32 uses them unasked, which ends the process."""
    supported, permit = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_init_amx"))
    if supported is not None and permit is not None and supported():
        permit()
