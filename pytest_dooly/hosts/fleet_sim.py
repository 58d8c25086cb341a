"""A GPU of vLLM Semantic Router's fleet simulator (`vllm-sr-sim`) whose steps are ours; any object of its form will do.

Source: `fleet_sim/gpu_profiles/protocol.py` of vllm-sr-sim 0.1, and what its pools read beyond that (`chunk`,
`blk_size`). A "GPU" there is whatever serves a request: here, all ranks of one engine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from pytest_dooly.core.configuration import ServingOptions
from pytest_dooly.core.device import device_named
from pytest_dooly.core.routing import TRAINED, RoutingDistribution
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.hosts.backend import Backend, backend
from pytest_dooly.published.footprint import cache_room

__all__ = ["GpuProfile", "gpu_profile"]


@dataclass(frozen=True)
class GpuProfile:
    """What the simulator asks of a GPU; names and units are its own, times are seconds.

    Attributes:
        name: for people.
        cost_per_hr: dollars an hour, of all ranks.
        backend: step times.
        total_kv_blks: KV blocks that the engine has.
        chunk: tokens of a prompt in one step.
        blk_size: tokens in one KV block.
        calibration_ctx: length of a request where none is said.
    """

    name: str
    cost_per_hr: float
    backend: Backend
    total_kv_blks: int
    chunk: int
    blk_size: int = 16
    calibration_ctx: int = 8192

    def iter_latency(self, n_active: int, mean_seq_len: float | None = None) -> float:
        """A step of so many decodes of that mean length."""
        return self.backend.step_s([(1, self._context_len(mean_seq_len))] * max(n_active, 1))

    def prefill_iter_latency(
        self, chunk_tokens: int, kv_history_tokens: float, n_active: int, mean_seq_len: float | None = None
    ) -> float:
        """A step with a chunk of a prompt beside the decodes of all other requests."""
        limits, beside = self.backend.model.limits, max(n_active - 1, 0)
        query_len = max(min(chunk_tokens, limits.max_num_tokens - beside), 1)
        before = min(int(kv_history_tokens), limits.max_model_len - query_len)
        return self.backend.step_s([(query_len, before), *[(1, self._context_len(mean_seq_len))] * beside])

    def n_slots(self, max_ctx: int) -> int:
        """Requests of that length that are served at once: by the engine's limit, and by its KV blocks."""
        held = self.total_kv_blks // math.ceil(max_ctx / self.blk_size)
        return max(min(held, self.backend.model.limits.max_num_seqs), 1)

    def service_time(self, l_in: int, l_out: int, max_ctx: int) -> float:
        """Seconds of one request where as many are served as there are slots."""
        slots, length = self.n_slots(max_ctx), float(l_in + l_out)
        prefill_s = self.prefill_iter_latency(min(self.chunk, l_in), l_in / 2, slots, length)
        return math.ceil(l_in / self.chunk) * prefill_s + l_out * self.iter_latency(slots, length)

    def throughput(self, max_ctx: int, mean_l_in: float, mean_l_out: float) -> float:
        """Requests a second where all slots are taken."""
        return self.n_slots(max_ctx) / self.service_time(max(int(mean_l_in), 1), max(int(mean_l_out), 1), max_ctx)

    def _context_len(self, mean_seq_len: float | None) -> int:
        longest = self.backend.model.limits.max_model_len - 1
        return min(max(int(self.calibration_ctx if mean_seq_len is None else mean_seq_len), 1), longest)


def gpu_profile(
    model: str,
    *,
    device: str,
    cost_per_hr: float,
    chunk: int = 512,
    db: str | Path = ".dooly/latency.db",
    options: ServingOptions | None = None,
    routing: str | RoutingDistribution = TRAINED,
) -> GpuProfile:
    """A model on a GPU, as the fleet simulator's pools take it.

    Args:
        model: name that it was planned by.
        device: as in `predict`.
        cost_per_hr: dollars an hour, of all ranks.
        chunk: tokens of a prompt in one step.
        db: path of the latency DB.
        options: as in `predict`.
        routing: as in `predict`.

    Raises:
        ConfigurationError: the model does not fit on the device, or something named is unknown or below 1.
        DatabaseError: there is no latency DB, or it cannot be read.
        MissingMeasurements: as in `predict`.
    """
    if chunk < 1:
        raise ConfigurationError(f"chunk must be at least 1, got {chunk}")
    made = backend(model, device=device, db=db, options=options, routing=routing)
    block_size = (options.block_size if options is not None else None) or 16
    room = cache_room(made.model, device_named(device), block_size=block_size)
    blocks = room.for_tokens(made.model.limits.max_num_seqs)
    return GpuProfile(f"{model} on {device}", cost_per_hr, made, blocks, chunk, block_size)
