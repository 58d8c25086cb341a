"""What a client measured of traffic that it sent to a real server."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pytest_dooly.core.traffic import Traffic

__all__ = ["Replay", "tpot_s"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Replay:
    """Every request of a traffic, by its place; not a number where a request failed.

    Attributes:
        traffic: what was sent.
        sent_s: when the client sent it, in seconds since the first was sent, shape (requests,).
        ttft_s: seconds from there to the first token.
        latency_s: seconds from there to the last token.
        prompt_lens: tokens of the prompt as the server counted them, shape (requests,).
        output_lens: tokens generated, likewise.
        cached_tokens: of all prompts together, found in the server's prefix cache; None where it does not say.
        engine_ttft_s: seconds from a request's arrival at the engine to its first token there, by the engine's own
            clock, the mean; None where it does not say.
        errors: one line for each request that failed.
    """

    traffic: Traffic
    sent_s: Array
    ttft_s: Array
    latency_s: Array
    prompt_lens: npt.NDArray[np.int64]
    output_lens: npt.NDArray[np.int64]
    cached_tokens: int | None = None
    engine_ttft_s: float | None = None
    errors: tuple[str, ...] = ()

    @property
    def tpot_s(self) -> Array:
        """Time per output token of each request; not a number where it generates one."""
        return tpot_s(self.traffic, self.latency_s - self.ttft_s)


def tpot_s(traffic: Traffic, decoding_s: Array) -> Array:
    """Time per output token of each request, shape (requests,); not a number where it generates one.

    Args:
        traffic: whose requests they are.
        decoding_s: seconds from the first token of each to its last, shape (requests,).
    """
    tokens = np.array([request.output_len for request in traffic.requests], dtype=np.float64)
    return np.where(tokens > 1, decoding_s / np.maximum(tokens - 1, 1), np.nan)
