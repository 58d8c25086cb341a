"""Hypothesis strategies for what a step may meet, and points drawn from them that no regressor is fitted to."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from pytest_dooly.core.batch import Batch, Limits, Routing, SweepPoint
from pytest_dooly.core.routing import busiest_between
from pytest_dooly.core.signature import Signature
from pytest_dooly.sweep.grid import refinements, sweep, within

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

__all__ = ["batches", "held_out_points", "sweep_points"]


def batches(limits: Limits) -> SearchStrategy[Batch]:
    """Batches of decodes, of prompts' chunks, and of both, each request with a context of its own."""
    from hypothesis import strategies as st

    last = limits.max_model_len - 1
    decode = st.tuples(st.just(1), _sizes(1, last))

    @st.composite
    def drawn(draw: st.DrawFn) -> Batch:
        num_chunks = draw(st.integers(0, min(3, limits.max_num_seqs)))
        num_decodes = draw(_sizes(0 if num_chunks else 1, limits.max_num_seqs - num_chunks))
        decodes = draw(st.lists(decode, min_size=num_decodes, max_size=num_decodes))
        if draw(st.booleans()):  # contexts alike, as requests that came together have them
            decodes = [(1, max(1, decodes[0][1] - i % 8)) for i in range(num_decodes)]
        chunks, left = list[tuple[int, int]](), limits.max_num_tokens - num_decodes
        for _ in range(num_chunks):
            if left < 2:
                break
            query_len = draw(_sizes(2, min(left, last)))
            context_len = draw(st.one_of(st.just(0), _sizes(0, limits.max_model_len - query_len)))
            chunks.append((query_len, context_len))
            left -= query_len
        return Batch.of([*decodes, *chunks] or [(1, 1)])

    return drawn().filter(lambda batch: within(batch, limits))


def sweep_points(signature: Signature, limits: Limits) -> SearchStrategy[SweepPoint]:
    """Points at which an operation may be asked for."""
    from hypothesis import strategies as st

    if signature.swept == "batch":
        return batches(limits).map(lambda batch: SweepPoint(batch=batch))
    if signature.swept == "num_reqs":
        return _sizes(1, limits.max_num_seqs).map(lambda num: SweepPoint(num_reqs=num))
    tokens = _sizes(1, min(limits.max_num_tokens, limits.max_model_len - 1))
    if signature.swept == "num_tokens":
        return tokens.map(lambda num: SweepPoint(num_tokens=num))
    attributes = dict(signature.attributes)
    top_k, experts = int(attributes["top_k"]), int(attributes["num_local_experts"])

    @st.composite
    def routed(draw: st.DrawFn) -> SweepPoint:
        num_tokens = draw(tokens)
        activated = draw(st.integers(min(top_k, experts), min(experts, num_tokens * top_k)))
        busiest = draw(st.integers(*busiest_between(num_tokens, top_k, activated)))
        return SweepPoint(num_tokens=num_tokens, routing=Routing(activated, busiest))

    return routed()


def held_out_points(signature: Signature, limits: Limits, count: int) -> tuple[SweepPoint, ...]:
    """Different points that the sweep does not have, always the same ones; fewer where there are no more.

    Args:
        signature: of the operation.
        limits: the engine's own bounds of a batch.
        count: how many.
    """
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from hypothesis.errors import HypothesisSideeffectWarning

    taken = {*sweep(signature, limits), *refinements(signature, limits)}
    found: dict[SweepPoint, None] = {}

    @seed(int(signature.key, 16))
    @settings(
        max_examples=8 * count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(sweep_points(signature, limits))
    def collect(point: SweepPoint) -> None:
        if point not in taken:
            found[point] = None

    with warnings.catch_warnings():
        # Meant for plugins that draw unasked while pytest starts; here the user has asked for the points.
        warnings.simplefilter("ignore", HypothesisSideeffectWarning)
        collect()
    # Neighbours are variations of each other.
    return tuple(list(found)[:: max(1, len(found) // count)][-count:])


def _sizes(first: int, last: int) -> SearchStrategy[int]:
    """Sizes of every magnitude alike, since a uniform draw would hardly ever be small."""
    from hypothesis import strategies as st

    if last <= first:
        return st.just(first)
    magnitudes = range(max(1, first).bit_length(), last.bit_length() + 1)
    ranges = [(max(first, 2 ** (bits - 1)), min(last, 2**bits - 1)) for bits in magnitudes]
    none = [st.just(0)] if first == 0 else []
    return st.one_of([*none, *(st.integers(low, high) for low, high in ranges if low <= high)])
