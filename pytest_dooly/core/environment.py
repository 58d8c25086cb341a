"""What a latency is true for."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass

__all__ = [
    "CUDA_EVENT",
    "CUDA_GRAPH",
    "EAGER",
    "PERF_COUNTER",
    "REPEATED",
    "UNKNOWN",
    "Environment",
    "content_hash",
]

PERF_COUNTER, CUDA_EVENT = "perf_counter", "cuda_event"
"""Clocks: the host's, and events on a GPU."""

EAGER, CUDA_GRAPH = "eager", "cuda_graph"
"""Executions: kernel by kernel as the host launches them, and recorded once and replayed as a whole."""

REPEATED = "repeated"
"""Cache mode of latencies of others, who run an operation again and again on the same inputs."""

UNKNOWN = "unknown"
"""What a source of latencies does not say."""


def content_hash(document: object) -> str:
    """Sixteen hex digits that identify a JSON document by its content."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Environment:
    """What a latency is true for; part of every look-up in the latency DB.

    Attributes:
        device: the processor's own name (`NVIDIA H200`, `AMD EPYC`).
        device_count: GPUs, or CPU threads that the engine computes with.
        driver: version of the GPU driver; instruction set of a CPU.
        engine: name of the serving engine.
        engine_version: its version.
        torch_version: version of PyTorch, with its build tag.
        clock: what the durations of layers are read from (`perf_counter`: the host's; `cuda_event`: the GPU's).
        cache_mode: state of the caches when an operation starts (`in_pass`: as a forward pass leaves them; `flushed`:
            evicted before its inputs are written; `repeated`: as the same operation leaves them).
        execution: how the engine runs its model (`eager`, `cuda_graph`).
    """

    device: str
    device_count: int
    driver: str
    engine: str
    engine_version: str
    torch_version: str
    clock: str
    cache_mode: str
    execution: str

    @property
    def key(self) -> str:
        """Content hash: equal for equal environments, on every machine."""
        return content_hash(dataclasses.asdict(self))

    @property
    def slug(self) -> str:
        """The device as a part of a file name."""
        return re.sub(r"[^a-z0-9]+", "-", self.device.lower()).strip("-")

    def __str__(self) -> str:
        return (
            f"{self.device} x{self.device_count}, {self.engine} {self.engine_version}, torch {self.torch_version}, "
            f"{self.execution}, {self.clock}, {self.cache_mode} caches"
        )
