"""Neighbouring sizes whose latency jumps: where a matrix product takes one tile more, or a prompt one step more.

A jump is what the larger size costs beyond its share: latencies in proportion to size are no cliff. What is measured at
both neighbours decides; a jump of which only a prediction knows is called so, since a regressor may put one where its
features round up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pytest_dooly.core.batch import Batch, Limits, SweepPoint
from pytest_dooly.core.measurement import Measurement
from pytest_dooly.core.operation import OperationKind
from pytest_dooly.core.routing import TRAINED
from pytest_dooly.core.signature import ModelOperation, ServedModel, Signature
from pytest_dooly.core.work import Work
from pytest_dooly.core.workload import Workload
from pytest_dooly.prediction.step import predict_steps
from pytest_dooly.report.text import format_latency
from pytest_dooly.simulation.predicted_model import PredictedModel

__all__ = ["JUMP", "Cliff", "Size", "cliffs", "edge_points"]

JUMP = 0.05
"""Share of a step that a jump exceeds to be told, 0.05 for 5 %."""

_SMALLEST_TILE = 16
"""Rows of the smallest tile of a matrix product; other edges are its doubles, CUDA graphs' last sizes among them."""

_PRODUCTS = (OperationKind.LINEAR, OperationKind.LOGITS)
"""What is computed in tiles of tokens or requests, and swept over their number."""

_SURE = 2.0
"""Standard deviations of both medians by which a measured jump exceeds noise."""

_CONTEXT_LEN = 128
"""Of decodes, in tokens."""

Size = Literal["tokens", "requests", "prompt tokens"]

_SWEPT: dict[Size, str] = {"tokens": "num_tokens", "requests": "num_reqs"}
"""What operations are swept over."""


@dataclass(frozen=True)
class Cliff:
    """Two neighbouring sizes, the larger of which is better avoided.

    Attributes:
        of: what there are so many of; of prompt tokens the latency is TTFT, else that of one step.
        size: the larger one.
        below_s: predicted seconds with one less.
        jump: relative increase beyond the size's own share, 0.38 for 38 %.
        measured: labels of the operations that were measured at both sizes and jump, the most of it first; empty where
            only the prediction does.
    """

    of: Size
    size: int
    below_s: float
    jump: float
    measured: tuple[str, ...] = ()

    def __str__(self) -> str:
        what = "TTFT" if self.of == "prompt tokens" else "a step"
        return (
            f"avoid {self.size:,} {self.of}: +{self.jump:.0%} of {what} of {format_latency(self.below_s)}{self._rests}"
        )

    @property
    def _rests(self) -> str:
        if self.measured:
            others = f" and {len(self.measured) - 1} more" if len(self.measured) > 1 else ""
            return f"; measured: {self.measured[0]}{others}"
        return "; one step more" if self.of == "prompt tokens" else "; in prediction alone, not measured at both sizes"


def edge_points(signature: Signature, limits: Limits) -> tuple[SweepPoint, ...]:
    """The neighbours at every edge of tiles, to be timed; none of what is not computed in tiles.

    Args:
        signature: of the operation.
        limits: the engine's own bounds of a batch.
    """
    if signature.kind not in _PRODUCTS or signature.swept not in ("num_tokens", "num_reqs"):
        return ()
    by_requests = signature.swept == "num_reqs"
    edges = _edges(limits.max_num_seqs if by_requests else limits.max_num_tokens)
    sizes = [size for edge in edges for size in (edge, edge + 1)]
    return tuple(SweepPoint(num_reqs=size) if by_requests else SweepPoint(num_tokens=size) for size in sizes)


def cliffs(model: PredictedModel, measured: Mapping[str, Mapping[SweepPoint, Measurement]]) -> list[Cliff]:
    """Sizes to be avoided, the highest jump first.

    Args:
        model: that serves.
        measured: what the latency DB has, by signature key and sweep point.
    """
    decided = {of: _neighbours(model.served, of, measured) for of in _SWEPT}
    found = [cliff for of, sizes in decided.items() for cliff in _measured(model, of, sizes)]
    found += [cliff for cliff in _predicted(model) if cliff.size - 1 not in decided["tokens"]]
    return sorted([*found, *_next_step(model)], key=lambda cliff: -cliff.jump)


_Neighbours = dict[int, list[tuple[ModelOperation, Measurement, Measurement]]]
"""By the smaller size, the operations that were measured there and at one more."""


def _neighbours(served: ServedModel, of: Size, measured: Mapping[str, Mapping[SweepPoint, Measurement]]) -> _Neighbours:
    found: _Neighbours = {}
    for operation in served.operations:
        signature = operation.signature
        if signature.swept != _SWEPT[of] or signature.kind is OperationKind.OVERHEAD:
            continue
        of_sizes = {getattr(point, signature.swept): each for point, each in measured.get(signature.key, {}).items()}
        for size, below in of_sizes.items():
            if size + 1 in of_sizes:
                found.setdefault(size, []).append((operation, below, of_sizes[size + 1]))
    return found


def _measured(model: PredictedModel, of: Size, neighbours: _Neighbours) -> Iterator[Cliff]:
    """Where what operations jump by, all together, is much of a step of the smaller size."""
    for size, operations in neighbours.items():
        jumps_s: dict[str, float] = {}
        for operation, below, above in operations:
            beyond_s = above.median_s - below.median_s * (size + 1) / size
            if beyond_s > _SURE * above.median_s * math.hypot(_spread(below), _spread(above)):
                label = operation.signature.label
                jumps_s[label] = jumps_s.get(label, 0.0) + operation.multiplicity * beyond_s
        below_s = model.step(_batch(of, size, model.limits)).latency_s if jumps_s else 1.0
        jump = sum(jumps_s.values()) / below_s
        if jump > JUMP:
            labels = sorted(jumps_s, key=jumps_s.__getitem__, reverse=True)
            yield Cliff(of, size + 1, below_s, jump, tuple(labels))


def _spread(measurement: Measurement) -> float:
    """Relative standard deviation of a median: of its rounds, and of the machine from case to case."""
    return math.hypot(measurement.precision / 1.96, measurement.noise or 0.0)


def _predicted(model: PredictedModel) -> Iterator[Cliff]:
    """Where the step of a prompt jumps in prediction."""
    sizes = np.arange(1, min(model.limits.max_num_tokens, model.limits.max_model_len - 1) + 1)
    steps = Work.of_batches(sizes, np.zeros_like(sizes), np.arange(len(sizes)))
    latencies_s, _ = predict_steps(model.served, model.models, steps, TRAINED)
    beyond = latencies_s[1:] / latencies_s[:-1] - sizes[1:] / sizes[:-1]
    for place in np.flatnonzero(beyond > JUMP):
        yield Cliff("tokens", int(sizes[place]) + 1, float(latencies_s[place]), float(beyond[place]))


def _next_step(model: PredictedModel) -> Iterator[Cliff]:
    """A prompt of one token more than a step takes, whose last token has a step of its own."""
    size = model.limits.max_num_tokens + 1
    if size < model.limits.max_model_len:
        below_s, above_s = (float(model.requests(Workload(each, 1, 1)).ttft_s[0]) for each in (size - 1, size))
        jump = above_s / below_s - size / (size - 1)
        if jump > JUMP:
            yield Cliff("prompt tokens", size, below_s, jump)


def _batch(of: Size, size: int, limits: Limits) -> Batch:
    """A step of so many tokens of prompts, or of so many decodes."""
    if of == "requests":
        return Batch.uniform(size, 1, min(_CONTEXT_LEN, limits.max_model_len - 1))
    longest = limits.max_model_len - 1
    whole, rest = divmod(size, longest)
    return Batch.of([*[(longest, 0)] * whole, *([(rest, 0)] if rest else [])])


def _edges(last: int) -> Iterator[int]:
    """Sizes after which a further tile begins, as far as one more is within the limits."""
    edge = _SMALLEST_TILE
    while edge < last:
        yield edge
        edge *= 2
