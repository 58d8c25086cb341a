"""What Vidur and the simulators that come from it have in common: batches, names of GPUs, what a predictor is told."""

from __future__ import annotations

from typing import Any

from pytest_dooly.hosts.backend import Backend, backend
from pytest_dooly.hosts.options import options_of

__all__ = ["backend_of", "device_of", "requests_of"]

_THEIR_NAMES = {"a100": "a100_sxm", "h100": "h100_sxm"}
"""Our names of the GPUs that their data are of."""


def requests_of(batch: Any) -> list[tuple[int, int]]:
    """query_len and context_len of each request of a batch of theirs.

    The first generated token counts as processed there as soon as the prompt is, its key and value are written later.
    Lengths from a trace are floats there.
    """
    return [
        (int(query_len), int(request.num_processed_tokens) - request.is_prefill_complete)
        for request, query_len in zip(batch.requests, batch.num_tokens, strict=True)
    ]


def device_of(predictor_config: Any, replica_config: Any) -> str:
    """Name of the GPU: the one that our configuration names, or else theirs."""
    return str(predictor_config.device or _THEIR_NAMES.get(replica_config.device, replica_config.device))


def backend_of(predictor_config: Any, replica_config: Any, ranks: int) -> Backend:
    """Step times of what is served.

    Args:
        predictor_config: `db`, `model`, `device`, `options` and `routing`, of which the middle three may be empty.
        replica_config: `model_name` and `device`.
        ranks: tensor-parallel size.

    Raises:
        ConfigurationError: something named is unknown.
        DatabaseError: there is no latency DB, or it cannot be read.
        MissingMeasurements: the latency DB lacks the model.
    """
    return backend(
        predictor_config.model or replica_config.model_name,
        device=device_of(predictor_config, replica_config),
        db=predictor_config.db,
        options=options_of(predictor_config.options, ranks),
        routing=predictor_config.routing,
    )
