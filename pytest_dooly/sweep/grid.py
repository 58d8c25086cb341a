"""Signature -> the sweep points at which it is timed, up to the engine's own limits.

A sweep starts from a coarse grid; `refinements` are the points of finer ones, which are timed where the held-out error
asks for them. Grids are fixed and only cut off at the limits, so that two configurations share the points that both
reach.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from pytest_dooly.core.batch import Batch, Limits, Routing, SweepPoint
from pytest_dooly.core.operation import OperationKind
from pytest_dooly.core.routing import busiest_between
from pytest_dooly.core.signature import Signature

__all__ = ["kv_tokens", "refinements", "sweep", "within"]

_KV_TOKENS = 65_536
"""Tokens in the KV cache that a sweep over many requests may take; one request may take max_model_len."""

_FINEST = 2
"""Last level of refinement; the coarse grid is level 0."""


def kv_tokens(limits: Limits) -> int:
    """Most tokens that a sweep point keeps in the KV cache."""
    return max(limits.max_model_len, min(limits.max_num_seqs * limits.max_model_len, _KV_TOKENS))


def sweep(signature: Signature, limits: Limits) -> tuple[SweepPoint, ...]:
    """The coarse grid at which an operation is always timed, smallest first.

    Args:
        signature: of the operation.
        limits: the engine's own bounds of a batch.
    """
    return _level(signature, limits, 0)


def refinements(signature: Signature, limits: Limits) -> tuple[SweepPoint, ...]:
    """The points of the finer grids that the coarse one lacks, coarser grids first.

    Args:
        signature: of the operation.
        limits: the engine's own bounds of a batch.
    """
    coarse = set(sweep(signature, limits))
    finer = (point for level in range(1, _FINEST + 1) for point in _level(signature, limits, level))
    return tuple(dict.fromkeys(point for point in finer if point not in coarse))


def within(batch: Batch, limits: Limits) -> bool:
    """Whether a sweep over the engine's limits may take the batch."""
    return (
        batch.num_tokens <= limits.max_num_tokens
        and batch.num_reqs <= limits.max_num_seqs
        and max(request.seq_len for request in batch.requests) <= limits.max_model_len
        and sum(request.seq_len for request in batch.requests) <= kv_tokens(limits)
    )


def _level(signature: Signature, limits: Limits, level: int) -> tuple[SweepPoint, ...]:
    if signature.swept == "num_reqs":
        return tuple(SweepPoint(num_reqs=num) for num in _steps(1, limits.max_num_seqs, level))
    if signature.swept == "num_tokens":
        longest = min(limits.max_num_tokens, limits.max_num_seqs * limits.max_model_len)
        if signature.kind is OperationKind.OVERHEAD:
            longest = min(longest, limits.max_model_len - 1)
        return tuple(SweepPoint(num_tokens=num) for num in _steps(1, longest, level))
    if signature.swept == "routing":
        return tuple(_routed(signature, limits, level))
    batches = _steps_of_engine(limits, level) if signature.kind is OperationKind.OVERHEAD else _batches(limits, level)
    allowed = [batch for batch in dict.fromkeys(batches) if within(batch, limits)]
    return tuple(SweepPoint(batch=batch) for batch in sorted(allowed, key=_work))


def _batches(limits: Limits, level: int) -> Iterator[Batch]:
    """What attention meets: prompts, chunks of prompts, decodes, even and ragged, and all of them at once."""
    longest = min(limits.max_num_tokens, limits.max_model_len)
    last = limits.max_model_len - 1
    factor = (8, 4, 2)[level]
    for query in _powers(8, longest, (4, 2, 2)[level]):
        yield Batch.uniform(1, query)
    for context in _powers(128, last, factor):
        for query in _powers(4, longest, factor):
            yield Batch.uniform(1, query, context)
    for num in _powers(4, limits.max_num_seqs, factor):
        for query in _powers(16, longest, (16, 8, 4)[level]):
            yield Batch.uniform(num, query)
    for num in _powers(1, limits.max_num_seqs, (4, 2, 2)[level]):
        for context in _powers(16, last, factor):
            yield Batch.uniform(num, 1, context)
    for num in _powers(4, limits.max_num_seqs, factor):
        for longer in _powers(256, last, (8, 4, 2)[level]):
            yield Batch.of([(1, longer)] + [(1, 16)] * (num - 1))
    # A prompt's chunk beside decodes, as chunked prefill schedules them.
    for num in _powers(2, limits.max_num_seqs - 1, factor):
        for context in _powers(128, last, (16, 8, 4)[level]):
            for query in _powers(64, limits.max_num_tokens, (16, 8, 4)[level]):
                yield Batch.of([(1, context)] * num + [(min(query, limits.max_num_tokens - num, last), 0)])


def _steps_of_engine(limits: Limits, level: int) -> Iterator[Batch]:
    """What the engine's own share of a step meets."""
    # Bookkeeping hardly depends on the context, which a case must first compute.
    context = min(16, limits.max_model_len - 1)
    for num in _powers(1, limits.max_num_seqs, (4, 2, 2)[level]):
        yield Batch.uniform(num, 1, context)
    for query in _powers(64, min(limits.max_num_tokens, limits.max_model_len - 2), (8, 4, 2)[level]):
        yield Batch.uniform(1, query)
    for num in _powers(4, limits.max_num_seqs, (8, 4, 2)[level]):
        yield Batch.uniform(num, 64)


def _routed(signature: Signature, limits: Limits, level: int) -> Iterator[SweepPoint]:
    """Tokens, over few or many experts, spread evenly or with one expert that every token goes to."""
    attributes = dict(signature.attributes)
    top_k, experts = int(attributes["top_k"]), int(attributes["num_local_experts"])
    for num_tokens in _steps(1, min(limits.max_num_tokens, limits.max_num_seqs * limits.max_model_len), level):
        assigned = num_tokens * top_k
        for activated in _powers(min(top_k, experts), min(experts, assigned), 4 if level < _FINEST else 2):
            for busiest in sorted({*busiest_between(num_tokens, top_k, activated)}):
                yield SweepPoint(num_tokens=num_tokens, routing=Routing(activated, busiest))


def _work(batch: Batch) -> tuple[int, int]:
    return batch.num_tokens, sum(request.seq_len for request in batch.requests)


def _steps(first: int, last: int, level: int) -> list[int]:
    """Sizes of a grid over one symbol: every fourfold, every double, and half-way between these."""
    doubles = _powers(first, last, 2)
    if level < _FINEST:
        return _powers(first, last, 4) if level == 0 else doubles
    return sorted({*doubles, *((low + high) // 2 for low, high in itertools.pairwise(doubles))})


def _powers(first: int, last: int, factor: int) -> list[int]:
    """first, first * factor, ... below `last`, and `last` itself; empty where last < first."""
    if last < first:
        return []
    count = math.ceil(math.log(last / first, factor))
    return sorted({*(first * factor**i for i in range(count)), last})
