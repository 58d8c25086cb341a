"""Step times for a simulation: looked up in tables that the predictor has filled, since it asks for one at a time.

What a step takes is the sum of what depends on its tokens (linears, norms, mixtures), on its requests (logits, sampler)
and on who attends to what. The first two are tables over one size. The third is a table of decodes, over their number
and mean context, one of what they add to a chunk, short or long, and one of prompt chunks, over length and context;
what two chunks take apart but not together, as the engine's own share of a step, is found out once and taken off.
Between the points of a table values are interpolated linearly, sizes on logarithmic axes: on an H100's tables within
0.5 % of the predictor in the mean, 3.3 % at the worst of 450 steps of three models.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from pytest_dooly.core.routing import UNIFORM, RoutingDistribution
from pytest_dooly.core.signature import ModelOperation, ServedModel
from pytest_dooly.core.work import Work
from pytest_dooly.prediction.step import step_operations
from pytest_dooly.prediction.workload import predict_steps
from pytest_dooly.regress.regressor import LatencyModel

__all__ = ["StepTimes"]

Array = npt.NDArray[np.float64]

_EVERY, _FINE, _COARSE = 256, 16, 64
"""Sizes up to which every one is in a table, and distances of those beyond: below 2,048, and above."""

_SOME_TOKENS = 16
"""Of the small batches that show what is counted once."""

_PER_DOUBLING = 3
"""Points of a logarithmic axis in each doubling."""


class StepTimes:
    """Seconds of any step of one model on one device."""

    def __init__(
        self,
        model: ServedModel,
        models: Mapping[str, LatencyModel],
        *,
        routing: RoutingDistribution = UNIFORM,
    ) -> None:
        """Fills the tables.

        Args:
            model: what is served.
            models: latency models by signature key.
            routing: how a mixture's router spreads tokens over experts.

        Raises:
            MissingMeasurements: an operation has no latency model; names all of them.
        """
        limits = model.limits
        operations = step_operations(model)
        by_tokens = _only(model, (o for o in operations if o.signature.swept in ("num_tokens", "routing")))
        by_reqs = _only(model, (o for o in operations if o.signature.swept == "num_reqs"))
        by_batch = _only(model, (o for o in operations if o.signature.swept == "batch"))
        self._model, self._models, self._routing = model, models, routing
        # The widest steps that were asked for: most decodes, longest contexts, longest chunk, chunk furthest in.
        self._most, self._longest, self._chunk, self._furthest = (0, 0.0), (0, 0.0), (0, 0), (0, 0)
        self._of_tokens = self._line(by_tokens, limits.max_num_tokens, lambda sizes: Work.of_sizes(sizes))
        self._of_reqs = self._line(
            by_reqs,
            limits.max_num_seqs,
            lambda sizes: Work.of_batches(
                np.ones_like(sizes), np.zeros_like(sizes), np.arange(len(sizes)), counts=sizes
            ),
        )
        numbers, contexts = _axis(1, limits.max_num_seqs), _axis(1, limits.max_model_len)
        lengths, before = _axis(1, min(limits.max_num_tokens, limits.max_model_len)), _axis(1, limits.max_model_len)
        self._decodes = _Table(numbers, contexts, self._grid(by_batch, numbers, contexts, decodes=True))
        self._chunks = _Table(lengths, before, self._grid(by_batch, lengths, before, decodes=False))
        self._beside = [
            (tokens, _Table(numbers, contexts, self._added(by_batch, numbers, contexts, tokens)))
            for tokens in (_SOME_TOKENS, float(lengths[-1]))
        ]
        self._once_s = self._counted_once(by_batch)

    def latency_s(self, num_decodes: int, decode_tokens: int, chunks: Sequence[tuple[int, int]]) -> float:
        """Seconds of a step.

        Args:
            num_decodes: requests that get one more token.
            decode_tokens: tokens in their KV caches, all together.
            chunks: query_len and context_len of every stretch of a prompt.
        """
        num_tokens = num_decodes + sum(query_len for query_len, _ in chunks)
        total_s = self._of_tokens[num_tokens] + self._of_reqs[min(num_decodes + len(chunks), len(self._of_reqs) - 1)]
        attended_s = 0.0
        if num_decodes:
            mean = decode_tokens / num_decodes
            attended_s += self._decodes_s(num_decodes, mean, num_tokens - num_decodes)
            self._most = max(self._most, (num_decodes, mean))
            self._longest = max(self._longest, (num_decodes, mean), key=lambda each: each[1])
        for query_len, context_len in chunks:
            self._chunk = max(self._chunk, (query_len, context_len))
            self._furthest = max(self._furthest, (query_len, context_len), key=lambda each: each[1])
            attended_s += self._chunks.at(query_len, context_len)
        return total_s + attended_s - self._once_s * max(len(chunks) - 1, 0)

    def _decodes_s(self, num_decodes: int, mean: float, beside: int) -> float:
        """Seconds of attention to decodes, alone or beside so many tokens of prompts."""
        if not beside:
            return self._decodes.at(num_decodes, mean)
        (few, short), (most, long) = self._beside
        share = min(max((beside - few) / max(most - few, 1.0), 0.0), 1.0)
        return (1 - share) * short.at(num_decodes, mean) + share * long.at(num_decodes, mean)

    def out_of_range(self) -> tuple[str, ...]:
        """One line for each operation that the widest steps asked for lie outside of the known range of."""
        lines: dict[str, None] = {}
        for count, mean in {self._most, self._longest}:
            if count:
                lines |= dict.fromkeys(self._outside([1], [mean], [count]))
        for query_len, context_len in {self._chunk, self._furthest}:
            if query_len:
                lines |= dict.fromkeys(self._outside([query_len], [context_len], [1]))
        return tuple(lines)

    def _outside(self, queries: Sequence[float], contexts: Sequence[float], counts: Sequence[float]) -> tuple[str, ...]:
        work = Work.of_batches(queries, contexts, [0], counts=counts)
        return predict_steps(self._model, self._models, work, self._routing)[1]

    def _counted_once(self, part: ServedModel) -> float:
        """Seconds that two chunks take apart but not together."""
        if not part.operations:
            return 0.0
        chunk_s, two_s = self._predict(part, Work.of_batches([_SOME_TOKENS] * 3, [0] * 3, [0, 1]))
        return float(2 * chunk_s - two_s)

    def _added(self, part: ServedModel, numbers: Array, contexts: Array, tokens: float) -> Array:
        """Seconds that decodes add to a chunk of so many tokens, over their number and mean context."""
        if not part.operations:
            return np.zeros((len(numbers), len(contexts)))
        counts, means = (each.ravel() for each in np.meshgrid(np.rint(numbers), contexts, indexing="ij"))
        chunk, points = np.rint(tokens), len(counts)
        queries = np.tile([chunk, 1.0], points)
        befores = np.column_stack([np.zeros(points), means]).ravel()
        of_pairs = np.column_stack([np.ones(points), counts]).ravel()
        both = Work.of_batches(queries, befores, 2 * np.arange(points), counts=of_pairs)
        added_s = self._predict(part, both) - self._predict(part, Work.of_batches([chunk], [0.0], [0]))
        return np.maximum(added_s, 0.0).reshape(len(numbers), len(contexts))

    def _line(self, part: ServedModel, longest: int, work: Callable[[Array], Work]) -> list[float]:
        """Seconds at every size up to the longest, by size; no step has none."""
        if not part.operations:
            return [0.0] * (longest + 1)
        sizes = np.array(_sizes(longest), dtype=np.float64)
        known = self._predict(part, work(sizes))
        line: list[float] = np.interp(np.arange(longest + 1), sizes, known).tolist()
        return line

    def _grid(self, part: ServedModel, first: Array, second: Array, *, decodes: bool) -> Array:
        """Seconds over two sizes: number and mean context of decodes, or length and context of one chunk."""
        if not part.operations:
            return np.zeros((len(first), len(second)))
        one, other = (each.ravel() for each in np.meshgrid(first, second, indexing="ij"))
        starts = np.arange(len(one))
        if decodes:
            work = Work.of_batches(np.ones_like(one), other, starts, counts=np.rint(one))
        else:
            # The axis begins at a context of one, which stands for none.
            work = Work.of_batches(np.rint(one), np.where(other <= 1, 0.0, np.rint(other)), starts)
        return self._predict(part, work).reshape(len(first), len(second))

    def _predict(self, part: ServedModel, work: Work) -> Array:
        return predict_steps(part, self._models, work, self._routing)[0]


class _Table:
    """Values over two logarithmic axes."""

    def __init__(self, first: Array, second: Array, values: Array) -> None:
        self._first, self._second = np.log(first).tolist(), np.log(second).tolist()
        self._values = values.tolist()

    def at(self, first: float, second: float) -> float:
        """Interpolated; at the edge beyond it."""
        i, x = _place(self._first, first)
        j, y = _place(self._second, second)
        low, high = self._values[i], self._values[i + 1]
        below = low[j] + y * (low[j + 1] - low[j])
        return float(below + x * (high[j] + y * (high[j + 1] - high[j]) - below))


def _place(axis: list[float], value: float) -> tuple[int, float]:
    """The interval that a value lies in, and how far in it."""
    log = math.log(value) if value > 1 else 0.0
    at = min(max(bisect.bisect_right(axis, log) - 1, 0), len(axis) - 2)
    return at, min(max((log - axis[at]) / (axis[at + 1] - axis[at]), 0.0), 1.0)


def _axis(first: int, last: int) -> Array:
    """Sizes at equal distances on a logarithmic axis, both ends among them."""
    points = max(2, 1 + math.ceil(_PER_DOUBLING * math.log2(max(last, 2) / first)))
    return np.geomspace(first, max(last, 2), points)


def _sizes(longest: int) -> list[int]:
    fine = range(_EVERY, min(longest, 2048), _FINE)
    return sorted({*range(1, min(longest, _EVERY) + 1), *fine, *range(2048, longest, _COARSE), longest})


def _only(model: ServedModel, operations: Iterable[ModelOperation]) -> ServedModel:
    """The model with some of its operations."""
    return dataclasses.replace(model, operations=tuple(operations))
