"""Signature -> the sweep points at which it is timed, up to the engine's own limits.

The grids are fixed and only cut off at the limits, so that two configurations share the points that both reach.
"""

from __future__ import annotations

import math

from pytest_dooly.batch import Batch, Limits, Routing, SweepPoint
from pytest_dooly.operation import OperationKind
from pytest_dooly.signature import Signature

__all__ = ["kv_tokens", "sweep"]

_KV_TOKENS = 32_768
"""Tokens in the KV cache that a sweep over many requests may take; one request may take max_model_len."""


def kv_tokens(limits: Limits) -> int:
    """Most tokens that a sweep point keeps in the KV cache."""
    return max(limits.max_model_len, min(limits.max_num_seqs * limits.max_model_len, _KV_TOKENS))


def sweep(signature: Signature, limits: Limits) -> tuple[SweepPoint, ...]:
    """The points at which an operation is timed, smallest first.

    Args:
        signature: of the operation.
        limits: the engine's own bounds of a batch.
    """
    if signature.kind is OperationKind.OVERHEAD:
        return _overhead(signature, limits)
    if signature.swept == "num_reqs":
        return tuple(SweepPoint(num_reqs=num) for num in _powers(1, limits.max_num_seqs, 2))
    if signature.swept == "num_tokens":
        longest = min(limits.max_num_tokens, limits.max_num_seqs * limits.max_model_len)
        return tuple(SweepPoint(num_tokens=num) for num in _powers(1, longest, 2))
    if signature.swept == "routing":
        return _routed(signature, limits)
    return _points([*_prefills(limits), *_decodes(limits), *_mixtures(limits)], limits)


def _routed(signature: Signature, limits: Limits) -> tuple[SweepPoint, ...]:
    """Tokens, over few or many experts, spread evenly or with one expert that every token goes to."""
    attributes = dict(signature.attributes)
    top_k, experts = int(attributes["top_k"]), int(attributes["num_local_experts"])
    longest = min(limits.max_num_tokens, limits.max_num_seqs * limits.max_model_len)
    points = []
    for num_tokens in _powers(1, longest, 4):
        assigned = num_tokens * top_k
        for activated in _powers(min(top_k, experts), min(experts, assigned), 4):
            even = -(-assigned // activated)
            skewed = max(even, min(num_tokens, assigned - activated + 1))
            points += [
                SweepPoint(num_tokens=num_tokens, routing=Routing(activated, busiest))
                for busiest in sorted({even, skewed})
            ]
    return tuple(points)


def _prefills(limits: Limits) -> list[Batch]:
    """One prompt's chunk, and several prompts in one step."""
    longest = min(limits.max_num_tokens, limits.max_model_len)
    single = [Batch.uniform(1, query, 0) for query in _powers(8, longest, 2)]
    chunked = [
        Batch.uniform(1, query, context)
        for context in _powers(256, limits.max_model_len, 4)
        for query in _powers(32, longest, 4)
    ]
    several = [
        Batch.uniform(num, query, 0) for num in _powers(4, limits.max_num_seqs, 4) for query in _powers(16, longest, 8)
    ]
    return single + chunked + several


def _decodes(limits: Limits) -> list[Batch]:
    """Every request one token, at one context length."""
    return [
        Batch.uniform(num, 1, context)
        for num in _powers(1, limits.max_num_seqs, 2)
        for context in _powers(16, limits.max_model_len - 1, 4)
    ]


def _mixtures(limits: Limits) -> list[Batch]:
    """A prompt's chunk beside decodes, as chunked prefill schedules them."""
    return [
        Batch.of([(1, context)] * num + [(query, 0)])
        for num in _powers(2, limits.max_num_seqs - 1, 4)
        for context in _powers(128, limits.max_model_len - 1, 4)
        for query in _powers(64, limits.max_num_tokens, 8)
    ]


def _overhead(signature: Signature, limits: Limits) -> tuple[SweepPoint, ...]:
    if signature.swept == "batch":
        # Bookkeeping hardly depends on the context, which a case must first compute.
        context = min(16, limits.max_model_len - 1)
        decodes = [Batch.uniform(num, 1, context) for num in _powers(1, limits.max_num_seqs, 2)]
        longest = min(limits.max_num_tokens, limits.max_model_len - 2)
        prefills = [Batch.uniform(1, query, 0) for query in _powers(64, longest, 8)]
        several = [Batch.uniform(num, 64, 0) for num in _powers(4, limits.max_num_seqs, 4)]
        return _points(decodes + prefills + several, limits)
    return tuple(
        SweepPoint(num_tokens=num) for num in _powers(1, min(limits.max_num_tokens, limits.max_model_len - 1), 8)
    )


def _points(batches: list[Batch], limits: Limits) -> tuple[SweepPoint, ...]:
    allowed = [
        batch
        for batch in dict.fromkeys(batches)
        if batch.num_tokens <= limits.max_num_tokens
        and batch.num_reqs <= limits.max_num_seqs
        and max(request.seq_len for request in batch.requests) <= limits.max_model_len
        and sum(request.seq_len for request in batch.requests) <= kv_tokens(limits)
    ]
    return tuple(SweepPoint(batch=batch) for batch in sorted(allowed, key=_work))


def _work(batch: Batch) -> tuple[int, int]:
    return batch.num_tokens, sum(request.seq_len for request in batch.requests)


def _powers(first: int, last: int, factor: int) -> list[int]:
    """first, first * factor, ... below `last`, and `last` itself; empty where last < first."""
    if last < first:
        return []
    count = math.ceil(math.log(last / first, factor))
    return sorted({*(first * factor**i for i in range(count)), last})
