"""Step times as the mocker of NVIDIA Dynamo (DynoSim) reads them: a `.npz` of five arrays.

Source: `components/src/dynamo/mocker/utils/planner_profiler_perf_data_converter.py` of ai-dynamo 1.6, and its mocker. A
step there is what its new prompt tokens take, all together and without a context, plus what its decodes take by all
tokens in their KV caches and by the mean. Between the points it interpolates linearly, and beyond them as well.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_dooly.hosts.backend import Backend
from pytest_dooly.hosts.deviation import Deviation
from pytest_dooly.latency_db.export import written_whole

__all__ = ["StepTables", "step_tables"]

_PER_DOUBLING = 4
"""Points of an axis in each doubling."""

_SHORTEST = 16
"""Tokens of the shortest context, one KV block."""


@dataclass(frozen=True)
class StepTables:
    """What goes into the file.

    Attributes:
        arrays: by name; lengths in tokens, times in milliseconds, `decode_itl` of shape (active KV tokens, contexts).
        mixed: how far the sum of a prompt's and the decodes' steps is from the step with both.
    """

    arrays: Mapping[str, npt.NDArray[np.float64]]
    mixed: Deviation

    def write(self, path: Path) -> None:
        """Writes the file, whole or not at all.

        Raises:
            ExportError: it cannot be written.
        """
        arrays: dict[str, Any] = dict(self.arrays)
        with written_whole(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)


def step_tables(backend: Backend) -> StepTables:
    """The tables of a model on a device, up to the limits that it is served with."""
    limits = backend.model.limits
    longest, most = limits.max_model_len - 1, min(limits.max_num_seqs, limits.max_num_tokens)
    lengths = _sizes(1, min(limits.max_num_tokens, limits.max_model_len))
    contexts = _sizes(max(1, min(_SHORTEST, longest // 2)), longest)
    kv_tokens = _sizes(contexts[0], most * longest)
    itl_s = [
        backend.steps_s([(1, context)] * _number(tokens, context, most) for context in contexts) for tokens in kv_tokens
    ]
    arrays = {
        "prefill_isl": np.array(lengths, dtype=np.float64),
        "prefill_ttft_ms": 1e3 * np.array(backend.steps_s([(length, 0)] for length in lengths)),
        "decode_active_kv_tokens": np.array(kv_tokens, dtype=np.float64),
        "decode_context_length": np.array(contexts, dtype=np.float64),
        "decode_itl": 1e3 * np.array(itl_s),
    }
    numbers = _sizes(1, limits.max_num_seqs)
    quadrupled = (axis[:: 2 * _PER_DOUBLING] for axis in (contexts, numbers, lengths))
    return StepTables(arrays, Deviation.of(_mixed(backend, *quadrupled)))


def _mixed(
    backend: Backend, contexts: Sequence[int], numbers: Sequence[int], chunks: Sequence[int]
) -> Iterator[tuple[float, float]]:
    """What the form says of steps with decodes and a prompt, and what they take, in seconds."""
    limits = backend.model.limits
    for context, number, chunk in itertools.product(contexts, numbers, chunks):
        if number < limits.max_num_seqs and number + chunk <= limits.max_num_tokens and chunk <= limits.max_model_len:
            decodes, prompt = [(1, context)] * number, [(chunk, 0)]
            yield backend.step_s(decodes) + backend.step_s(prompt), backend.step_s([*decodes, *prompt])


def _number(kv_tokens: int, context: int, most: int) -> int:
    """Decodes that hold so many tokens at that mean context."""
    return min(max(round(kv_tokens / context), 1), most)


def _sizes(first: int, last: int) -> list[int]:
    """From the first to the last, so many in each doubling."""
    doublings = np.log2(max(last, first + 1) / first)
    places = np.linspace(0, doublings, int(np.ceil(_PER_DOUBLING * doublings)) + 1)
    return sorted({int(size) for size in np.rint(first * 2.0**places)})
