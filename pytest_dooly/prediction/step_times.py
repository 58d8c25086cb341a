"""Step times for a simulation: looked up in tables that the predictor has filled, since it asks for one at a time.

What a step takes is the sum of what depends on its tokens (linears, norms, mixtures), on its requests (logits, sampler)
and on who attends to what. The first two are tables over one size. The third is a table of decodes, over their number
and mean context, one of what they add to a chunk, short or long, and one of prompt chunks, over length and context;
what two chunks take apart but not together, as the engine's own share of a step, is found out once and taken off.
Between the points of a table values are interpolated linearly. On an H100's tables, of 200 random steps with up to 200
decodes and three chunks, that is within 0.6 % of the predictor in the mean and 2.3 % at the worst for llama3-70b on
four ranks, 1.0 and 5.5 % for llama3 on one; steps of decodes alone within 0.2 %. What is left is that chunks of one
step are not quite the sum of each.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pytest_dooly.core.routing import TRAINED, RoutingDistribution
from pytest_dooly.core.signature import ModelOperation, ServedModel, data_parallel_size, engines_of
from pytest_dooly.core.work import Work
from pytest_dooly.prediction.step import (
    check_regressors,
    is_hosts,
    is_in_forward,
    is_launch,
    predict_steps,
    step_operations,
)
from pytest_dooly.regress.regressor import LatencyModel
from pytest_dooly.scheduling.scheduler import Together

__all__ = ["Shape", "StepTimes"]

Array = npt.NDArray[np.float64]

_Place = tuple[int, float, int, float]
"""An interval of each of two axes, and how far in it."""

_Places = tuple[_Place | None, list[_Place]]
"""Of a step's decodes, and of each of its chunks."""

_EVERY, _FINE, _COARSE = 256, 16, 64
"""Sizes up to which every one is in a table, and distances of those beyond: below 2,048, and above."""

_SOME_TOKENS = 16
"""Of the small batches that show what is counted once."""

_PER_DOUBLING, _ROUTED_PER_DOUBLING = 4, 16
"""Points of an axis in each doubling, and of what all engines have together beyond what one may have."""


class Shape(Protocol):
    """All of a step that its latency depends on, as a scheduler's `Scheduled` has it."""

    @property
    def num_decodes(self) -> int:
        """How many requests get one more token."""

    @property
    def decode_tokens(self) -> int:
        """Tokens in the KV caches of those, all together."""

    @property
    def chunks(self) -> Sequence[tuple[int, int]]:
        """query_len and context_len of every stretch of a prompt."""

    @property
    def num_tokens(self) -> int:
        """New tokens of all requests."""


class StepTimes:
    """Seconds of any step of one model on one device.

    Attributes:
        model: what is served.
        models: latency models by signature key.
    """

    def __init__(
        self,
        model: ServedModel,
        models: Mapping[str, LatencyModel],
        *,
        routing: RoutingDistribution = TRAINED,
        overlapped: bool = False,
    ) -> None:
        """Fills the tables.

        Args:
            model: what is served.
            models: latency models by signature key.
            routing: how a mixture's router spreads tokens over experts.
            overlapped: whether the engine's process prepares a step while the device works on the one before, so that
                the slower of the two decides (asynchronous scheduling on a device apart from the processor).

        Raises:
            ConfigurationError: the routing has another number of experts than the model.
            MissingMeasurements: an operation has no latency model; names all of them.
        """
        self.model, self.models, self._routing = model, models, routing
        self._engines = data_parallel_size(model)
        # The widest steps that were asked for: most decodes, longest contexts, longest chunk, chunk furthest in.
        self._most, self._longest, self._chunk, self._furthest = (0, 0.0), (0, 0.0), (0, 0), (0, 0)
        self._gathered = 0  # most tokens of all engines that share experts
        self._told: dict[tuple[int, float, int, int], tuple[str, ...]] = {}
        operations = step_operations(model)
        check_regressors(model, operations, models)
        launches = [operation for operation in operations if is_launch(operation, models)]
        hidden = [operation for operation in operations if overlapped and is_hosts(operation)]
        beside = [o for o in operations if not is_launch(o, models) and o not in hidden]
        forward = [operation for operation in operations if is_in_forward(operation)]
        self._all = _Tables(model, beside, models, routing)
        self._hosts = _Tables(model, hidden, models, routing) if hidden else None
        self._launched = _Tables(model, launches, models, routing) if launches else None
        self._forward = _Tables(model, forward, models, routing) if launches else None

    def step_s(self, step: Shape) -> float:
        """Seconds of a step; of a `Together`, until the last of the engines is done."""
        if isinstance(step, Together):
            return self._together_s([each for each in step.engines if each is not None])
        return self._alone_s(step, step.num_tokens, self._engines * step.num_tokens)

    def _together_s(self, steps: Sequence[Shape]) -> float:
        """Seconds of steps of engines that share experts, and so wait for each other in every layer.

        Where the largest replays a graph all do, and each computes with as many tokens as that one.
        """
        most = max(step.num_tokens for step in steps)
        if most <= self.model.limits.captured_tokens:
            return max(self._alone_s(step, most, self._engines * most) for step in steps)
        gathered = sum(step.num_tokens for step in steps)
        return max(self._alone_s(step, step.num_tokens, gathered) for step in steps)

    def _alone_s(self, step: Shape, computed: int, gathered: int) -> float:
        """Seconds of an engine's step that computes with so many tokens, and with all engines' in its experts."""
        if step.num_decodes:
            decodes = step.num_decodes, step.decode_tokens / step.num_decodes
            self._most = max(self._most, decodes)
            self._longest = max(self._longest, decodes, key=_second)
        self._gathered = max(self._gathered, gathered)
        for chunk in step.chunks:
            self._chunk = max(self._chunk, chunk)
            self._furthest = max(self._furthest, chunk, key=_second)
        places = self._all.places(step)
        step_s = self._all.step_s(step, places, computed, gathered)
        if self._launched is not None and self._forward is not None:
            launched_s = self._launched.step_s(step, places, computed, gathered)
            step_s += max(0.0, launched_s - self._forward.step_s(step, places, computed, gathered))
        return step_s if self._hosts is None else max(step_s, self._hosts.step_s(step, places, computed, gathered))

    def __getstate__(self) -> dict[str, Any]:
        """The tables alone: the latency models are a hundred times as large."""
        return {**vars(self), "models": {}}

    def out_of_range(self) -> tuple[str, ...]:
        """One line for each operation that the widest steps asked for lie outside of the known range of.

        Those that were sent to another process have no latency models there, and say nothing.
        """
        if not self.models:
            return ()
        lines: dict[str, None] = {}
        for count, mean in {self._most, self._longest}:
            if count:
                lines |= dict.fromkeys(self._outside(1, mean, count))
        for query_len, context_len in {self._chunk, self._furthest}:
            if query_len:
                lines |= dict.fromkeys(self._outside(query_len, context_len, 1))
        return tuple(lines)

    def _outside(self, query_len: int, context_len: float, count: int) -> tuple[str, ...]:
        """Of so many equal requests; found out once, since one workload after the other asks for the same widest."""
        asked = query_len, context_len, count, self._gathered if self._engines > 1 else 0
        if asked not in self._told:
            work = Work.of_batches([query_len], [context_len], [0], counts=[count])
            if self._engines > 1:
                work = dataclasses.replace(work, gathered=np.array([float(self._gathered)]))
            self._told[asked] = predict_steps(self.model, self.models, work, self._routing)[1]
        return self._told[asked]


class _Tables:
    """Of some of a model's operations, whose latencies add up."""

    def __init__(
        self,
        model: ServedModel,
        operations: Sequence[ModelOperation],
        models: Mapping[str, LatencyModel],
        routing: RoutingDistribution,
    ) -> None:
        self._models, self._routing = models, routing
        limits, engines = model.limits, data_parallel_size(model)
        by_tokens = _only(model, (o for o in operations if o.signature.swept in ("num_tokens", "routing")))
        by_all = _only(model, (o for o in operations if engines_of(o.signature) > 1))
        by_reqs = _only(model, (o for o in operations if o.signature.swept == "num_reqs"))
        by_batch = _only(model, (o for o in operations if o.signature.swept == "batch"))
        self._of_tokens = self._line(
            by_tokens,
            _sizes(limits.max_num_tokens),
            lambda sizes: Work.of_sizes(sizes, gathered=_fewest(sizes, engines)),
        )
        of_all = self._line(
            by_all,
            _sizes_of_all(engines * limits.max_num_tokens, engines),
            lambda sizes: Work.of_sizes(np.ones_like(sizes), gathered=sizes),
        )
        # Beyond one token of each engine, what all engines have together adds.
        self._of_all = [each - of_all[engines] for each in of_all]
        self._of_reqs = self._line(
            by_reqs,
            _sizes(limits.max_num_seqs),
            lambda sizes: Work.of_batches(
                np.ones_like(sizes), np.zeros_like(sizes), np.arange(len(sizes)), counts=sizes
            ),
        )
        numbers, lengths = _axis(1, limits.max_num_seqs), _axis(1, min(limits.max_num_tokens, limits.max_model_len))
        contexts, before = _axis(1, limits.max_model_len), _axis(0, limits.max_model_len)
        self._decodes = _Table(numbers, contexts, self._grid(by_batch, numbers, contexts, decodes=True))
        self._chunks = _Table(lengths, before, self._grid(by_batch, lengths, before, decodes=False))
        self._beside = [
            (tokens, _Table(numbers, contexts, self._added(by_batch, numbers, contexts, tokens)))
            for tokens in (_SOME_TOKENS, float(lengths[-1]))
        ]
        self._once_s = self._counted_once(by_batch)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_models"}

    def places(self, step: Shape) -> _Places:
        """Where a step lies in the tables: in these and in those of the model's other operations."""
        number = step.num_decodes
        decodes = self._decodes.place(number, step.decode_tokens / number) if number else None
        return decodes, [self._chunks.place(query_len, context_len) for query_len, context_len in step.chunks]

    def step_s(self, step: Shape, places: _Places, computed: int, gathered: int) -> float:
        """Seconds of a step that computes with so many tokens, and with those of all engines in shared experts."""
        decodes, chunks = places
        total_s = self._of_tokens[computed] + self._of_reqs[step.num_decodes + len(chunks)]
        total_s += self._of_all[gathered]
        if decodes is not None:
            total_s += self._decodes_s(decodes, step.num_tokens - step.num_decodes)
        for chunk in chunks:
            total_s += self._chunks.at(chunk)
        return total_s - self._once_s * max(len(chunks) - 1, 0)

    def _decodes_s(self, place: _Place, beside: int) -> float:
        """Seconds of attention to decodes, alone or beside so many tokens of prompts."""
        if not beside:
            return self._decodes.at(place)
        (few, short), (most, long) = self._beside
        share = min(max((beside - few) / max(most - few, 1.0), 0.0), 1.0)
        return (1 - share) * short.at(place) + share * long.at(place)

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
        counts, means = (each.ravel() for each in np.meshgrid(numbers, contexts, indexing="ij"))
        chunk, points = tokens, len(counts)
        queries = np.tile([chunk, 1.0], points)
        befores = np.column_stack([np.zeros(points), means]).ravel()
        of_pairs = np.column_stack([np.ones(points), counts]).ravel()
        both = Work.of_batches(queries, befores, 2 * np.arange(points), counts=of_pairs)
        added_s = self._predict(part, both) - self._predict(part, Work.of_batches([chunk], [0.0], [0]))
        return np.maximum(added_s, 0.0).reshape(len(numbers), len(contexts))

    def _line(self, part: ServedModel, known: Sequence[int], work: Callable[[Array], Work]) -> list[float]:
        """Seconds at every size up to the last of the known ones, by size; no step has none."""
        if not part.operations:
            return [0.0] * (known[-1] + 1)
        sizes = np.array(known, dtype=np.float64)
        line: list[float] = np.interp(np.arange(known[-1] + 1), sizes, self._predict(part, work(sizes))).tolist()
        return line

    def _grid(self, part: ServedModel, first: Array, second: Array, *, decodes: bool) -> Array:
        """Seconds over two sizes: number and mean context of decodes, or length and context of one chunk."""
        if not part.operations:
            return np.zeros((len(first), len(second)))
        one, other = (each.ravel() for each in np.meshgrid(first, second, indexing="ij"))
        counts = one if decodes else None
        work = Work.of_batches(np.ones_like(one) if decodes else one, other, np.arange(len(one)), counts=counts)
        return self._predict(part, work).reshape(len(first), len(second))

    def _predict(self, part: ServedModel, work: Work) -> Array:
        return predict_steps(part, self._models, work, self._routing)[0]


def _fewest(sizes: Array, engines: int) -> Array | None:
    """One token of each engine, whatever the sizes are; None where an engine has experts of its own."""
    return np.full_like(sizes, engines) if engines > 1 else None


class _Table:
    """Values over two axes."""

    def __init__(self, first: Array, second: Array, values: Array) -> None:
        self._first, self._second, self._values = first.tolist(), second.tolist(), values.tolist()

    def place(self, first: float, second: float) -> _Place:
        """Where two values lie on the axes; at the edge beyond it."""
        return *_place(self._first, first), *_place(self._second, second)

    def at(self, place: _Place) -> float:
        """Interpolated."""
        i, x, j, y = place
        low, high = self._values[i], self._values[i + 1]
        below: float = low[j] + y * (low[j + 1] - low[j])
        return below + x * (high[j] + y * (high[j + 1] - high[j]) - below)


def _place(axis: list[float], value: float) -> tuple[int, float]:
    """The interval that a value lies in, and how far in it."""
    at = bisect.bisect_right(axis, value) - 1
    if at < 0:
        return 0, 0.0
    if at > len(axis) - 2:
        return len(axis) - 2, 1.0
    return at, (value - axis[at]) / (axis[at + 1] - axis[at])


def _axis(first: int, last: int) -> Array:
    """Whole sizes, so many in each doubling, powers of two and both ends among them."""
    doublings = math.ceil(math.log2(max(last, 2)))
    sizes = np.rint([2**k * (1 + part / _PER_DOUBLING) for k in range(doublings) for part in range(_PER_DOUBLING)])
    last = max(last, first + 1)
    return np.unique([first, *sizes[(sizes > first) & (sizes < last)], last]).astype(np.float64)


def _sizes(longest: int) -> list[int]:
    fine = range(_EVERY, min(longest, 2048), _FINE)
    return sorted({*range(1, min(longest, _EVERY) + 1), *fine, *range(2048, longest, _COARSE), longest})


def _sizes_of_all(longest: int, engines: int) -> list[int]:
    """Those of one engine, and beyond so many in each doubling: what is routed takes long to expect of many tokens."""
    alone = _sizes(max(longest // engines, engines))
    doublings = math.ceil(math.log2(longest / alone[-1]) * _ROUTED_PER_DOUBLING)
    return sorted({*alone, *(round(alone[-1] * 2 ** (i / _ROUTED_PER_DOUBLING)) for i in range(doublings)), longest})


def _second(pair: tuple[float, float]) -> float:
    return pair[1]


def _only(model: ServedModel, operations: Iterable[ModelOperation]) -> ServedModel:
    """The model with some of its operations."""
    return dataclasses.replace(model, operations=tuple(operations))
