"""Releases of vLLM, and what an older one does otherwise than the newest, as far as predictions depend on it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from packaging.version import InvalidVersion, Version

from pytest_dooly.core.device import device_named
from pytest_dooly.errors import ConfigurationError

__all__ = ["NEWEST", "Release"]

_HOPPER = 9
"""Major compute capability of GPUs whose attention is FlashAttention 3."""


@dataclass(frozen=True, order=True)
class Release:
    """A release of vLLM by its number, 0.MINOR.PATCH.

    Attributes:
        minor: infinite for the newest, whichever that is.
        patch: of it.
    """

    minor: float
    patch: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """A release as in `0.10.2` or `v0.19.1rc1.dev339+g1c2d3e4`.

        Raises:
            ConfigurationError: it is none.
        """
        try:
            major, minor, patch, *_ = (*Version(text).release, 0, 0)
        except InvalidVersion:
            major = -1
        if major:
            raise ConfigurationError(f"unknown release of vLLM {text!r}: name it as in 0.10.2")
        return cls(minor, patch)

    def __str__(self) -> str:
        return "the newest" if math.isinf(self.minor) else f"0.{self.minor:.0f}.{self.patch}"

    @property
    def is_v0(self) -> bool:
        """Whether its engine is the one before V1, which schedules prompts and decodes in steps of their own."""
        return self < Release(8)

    @property
    def async_scheduling(self) -> bool:
        """Whether a step is prepared while the one before runs, unless told otherwise: since 0.14."""
        return self >= Release(14)

    @property
    def memory_share(self) -> float:
        """Of the device's memory, that the engine takes unless told otherwise (`gpu_memory_utilization`)."""
        return 0.92 if self >= Release(21) else 0.9

    def server_processes(self, engines: int) -> int:
        """Of the server: as many as engines since 0.15 (a log of 0.15.1 has as many), one before.

        Args:
            engines: that share experts.
        """
        return engines if self >= Release(15) else 1

    @property
    def follows_checkpoint(self) -> bool:
        """Whether keys and values are kept as the checkpoint names it, without a flag: since 0.13 (pull request 29980).

        In two bytes an element before.
        """
        return self >= Release(13)

    def kv_cache_dtype(self, told: str | None, document: Mapping[str, Any]) -> str | None:
        """What keys and values are kept in, as a flag of the newest release would have it.

        Args:
            told: `--kv-cache-dtype`; None for none.
            document: config.json of the checkpoint.
        """
        quantised = document.get("quantization_config") or {}
        names_one = any(quantised.get(key) for key in ("kv_cache_scheme", "kv_cache_quant_algo"))
        return "bfloat16" if told is None and names_one and not self.follows_checkpoint else told

    def attends_in_two_bytes(self, device: str, kv_cache_dtype: str | None) -> bool:
        """Whether keys and values that are kept in fp8 take attention as long as if they were of two bytes each.

        On Hopper "FP8 decoding is not faster at all than BF16" with heads of 128 before 0.11.1: pull request 96 of
        vllm-project/flash-attention, merged in October 2025.

        Args:
            device: the GPU, as the project names it.
            kv_cache_dtype: as the server is told; None where it is not.
        """
        is_hopper = device_named(device).compute_capability[0] == _HOPPER
        return str(kv_cache_dtype).startswith("fp8") and is_hopper and self < Release(11, 1)


NEWEST = Release(math.inf)
"""Whichever that is."""
