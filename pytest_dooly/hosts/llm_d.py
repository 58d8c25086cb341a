"""Latencies as llm-d-inference-sim reads them: six numbers of a YAML file, fitted to step times.

Source: `pkg/llm-d-inference-sim/latencies.go`, `docs/configuration.md` of llm-d/llm-d-inference-sim (eec055a). With n
requests under way, a factor f that grows linearly from 1 at one request to `time-factor-under-load` at `max-num-seqs`,

    time to first token     f (prefill-overhead + prefill-time-per-token * uncached prompt tokens)
    inter-token latency     f inter-token-latency
    transfer of a KV cache  kv-cache-transfer-time-per-token * prompt tokens

There is no context in it, so that numbers are true for prompts and outputs of about one length.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pytest_dooly.core.device import Device
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.hosts.backend import Backend
from pytest_dooly.hosts.deviation import Deviation
from pytest_dooly.latency_db.export import written_whole
from pytest_dooly.published.footprint import cache_room, footprint

__all__ = ["Numbers", "fitted"]

Array = npt.NDArray[np.float64]

_BLOCK_SIZE = 16
_PER_DOUBLING = 2
"""Numbers of requests under way that are fitted to, in each doubling."""

_AROUND = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Prompts that are fitted to, as multiples of the usual one."""

_WIDTH = 110


@dataclass(frozen=True)
class Numbers:
    """What the simulator is told.

    Attributes:
        title: model, device and lengths that the numbers are true for.
        prefill_overhead_s: of each first token.
        prefill_time_per_token_s: of each prompt token that is not cached.
        inter_token_latency_s: with one request under way.
        time_factor_under_load: with `max_num_seqs` under way, at least 1.
        kv_cache_transfer_time_per_token_s: over one link of the device, by its data sheet.
        max_num_seqs: most requests under way.
        ttft: how far times to first token are off.
        itl: how far inter-token latencies are off.
        most: requests under way up to which both are compared.
    """

    title: str
    prefill_overhead_s: float
    prefill_time_per_token_s: float
    inter_token_latency_s: float
    time_factor_under_load: float
    kv_cache_transfer_time_per_token_s: float
    max_num_seqs: int
    ttft: Deviation
    itl: Deviation
    most: int

    @property
    def lines(self) -> list[str]:
        """How good the numbers are, for people."""
        return [
            self.title,
            f"so simple a form is off from the step times that it is fitted to, 1 to {self.most:,} requests under way:",
            f"  time to first token  {self.ttft}",
            f"  inter-token latency  {self.itl}",
        ]

    @property
    def yaml(self) -> str:
        """The file: those lines as comments, and the numbers."""
        comments = [f"# {line}" for text in self.lines for line in textwrap.wrap(text, _WIDTH, drop_whitespace=False)]
        values = {
            "latency-calculator": "per-token",
            "prefill-overhead": _duration(self.prefill_overhead_s),
            "prefill-time-per-token": _duration(self.prefill_time_per_token_s),
            "inter-token-latency": _duration(self.inter_token_latency_s),
            "time-factor-under-load": f"{self.time_factor_under_load:.4f}",
            "kv-cache-transfer-time-per-token": _duration(self.kv_cache_transfer_time_per_token_s),
            "max-num-seqs": str(self.max_num_seqs),
        }
        return "\n".join([*comments, *(f"{name}: {value}" for name, value in values.items()), ""])

    def write(self, path: Path) -> None:
        """Writes the file, whole or not at all.

        Raises:
            ExportError: it cannot be written.
        """
        with written_whole(path) as temporary:
            temporary.write_text(self.yaml, encoding="utf-8")


def fitted(backend: Backend, device: Device, *, prompt_len: int, output_len: int) -> Numbers:
    """The numbers whose squared relative errors are least.

    Args:
        backend: step times of a model on the device.
        device: that serves it.
        prompt_len: tokens of a usual prompt; those of a quarter to four times as many are fitted to as well.
        output_len: tokens of a usual answer, of which half are there in the mean.

    Raises:
        ConfigurationError: such a request is longer than the model is served with, or it does not fit on the device.
    """
    limits = backend.model.limits
    if prompt_len + output_len > limits.max_model_len:
        raise ConfigurationError(
            f"a request of {prompt_len:,} and {output_len:,} tokens is beyond max_model_len {limits.max_model_len:,}: "
            "name shorter ones with --prompt and --output"
        )
    context_len = prompt_len + output_len // 2
    sent_bytes = footprint(backend.model, device, num_reqs=1, seq_len=context_len).cache_bytes / context_len
    numbers = _numbers(max(min(limits.max_num_seqs, limits.max_num_tokens // 2), 1))
    if sent_bytes:  # no more than are in memory at once
        room = cache_room(backend.model, device, block_size=_BLOCK_SIZE, seq_len=context_len)
        held = room.num_blocks // (-(-context_len // _BLOCK_SIZE) + room.of_states)
        numbers = _numbers(max(min(numbers[-1], held), 1))
    prompts = sorted({min(max(round(prompt_len * each), 1), limits.max_model_len - output_len) for each in _AROUND})
    itl_s = np.array(backend.steps_s([(1, context_len)] * number for number in numbers))
    ttft_s = np.array([[_ttft_s(backend, each, n - 1, context_len) for each in prompts] for n in numbers])
    load = (np.array(numbers) - 1) / max(limits.max_num_seqs - 1, 1)
    overhead_s, per_token_s, token_s, growth = _fit(load, np.array(prompts, dtype=np.float64), ttft_s, itl_s)
    factor = 1 + growth * load
    form_s = factor[:, None] * (overhead_s + per_token_s * np.array(prompts))
    return Numbers(
        title=f"{backend.model.name} on {device.name}, prompts of {prompts[0]:,} to {prompts[-1]:,} tokens, "
        f"{context_len:,} in the KV cache of a request",
        prefill_overhead_s=overhead_s,
        prefill_time_per_token_s=per_token_s,
        inter_token_latency_s=token_s,
        time_factor_under_load=1 + growth,
        kv_cache_transfer_time_per_token_s=sent_bytes / device.link_bytes_per_s,
        max_num_seqs=limits.max_num_seqs,
        ttft=Deviation.of(zip(form_s.ravel(), ttft_s.ravel(), strict=True)),
        itl=Deviation.of(zip(token_s * factor, itl_s, strict=True)),
        most=numbers[-1],
    )


def _fit(load: Array, prompts: Array, ttft_s: Array, itl_s: Array) -> tuple[float, float, float, float]:
    """Overhead, seconds a prompt token, seconds a token, and by how much the factor grows; none is below 0."""
    from scipy.optimize import least_squares  # a second that nothing else needs

    def off(values: Array) -> Array:
        overhead_s, per_token_s, token_s, growth = values * scales
        factor = 1 + growth * load
        first = factor[:, None] * (overhead_s + per_token_s * prompts) / ttft_s - 1
        # As many first tokens as there are others, whatever the number of prompts.
        return np.concatenate([first.ravel() / np.sqrt(len(prompts)), factor * token_s / itl_s - 1])

    alone_s = ttft_s[0]
    scales = np.array([alone_s[0], alone_s[-1] / prompts[-1], itl_s[0], 1.0])
    found: Array = least_squares(off, np.ones(4), bounds=(0, np.inf), method="trf").x * scales
    overhead_s, per_token_s, token_s, growth = map(float, found)
    return overhead_s, per_token_s, token_s, growth


def _ttft_s(backend: Backend, prompt_len: int, beside: int, context_len: int) -> float:
    """Seconds of the steps that a prompt takes beside so many decodes."""
    room = min(backend.model.limits.max_num_tokens - beside, prompt_len)
    chunks = [(min(room, prompt_len - done), done) for done in range(0, prompt_len, room)]
    return sum(backend.steps_s([chunk, *[(1, context_len)] * beside] for chunk in chunks))


def _numbers(most: int) -> Sequence[int]:
    """Of requests under way, from one to the most."""
    doublings = np.arange(0, np.log2(most), 1 / _PER_DOUBLING)
    return sorted({*(int(number) for number in np.rint(2.0**doublings)), most})


def _duration(seconds: float) -> str:
    """As Go reads it."""
    return f"{seconds * 1e6:.3f}us"
