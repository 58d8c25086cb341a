"""Hypothesis strategies for what a step may meet, and points drawn from them that no regressor is fitted to."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from pytest_dooly.core.batch import Batch, Limits, Routing, SweepPoint
from pytest_dooly.core.routing import busiest_between
from pytest_dooly.core.signature import Signature
from pytest_dooly.sweep.grid import kv_tokens, refinements, sweep

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

__all__ = ["batches", "held_out_points", "sizes", "sweep_points"]

_SMALL = 32
"""Above which a number is not small."""

_Divided = tuple[int, int, int]
"""How many, the total that is divided among them, and how far apart they are; see `_divided`."""


def batches(limits: Limits, *, max_kv_tokens: int | None = None) -> SearchStrategy[Batch]:
    """Batches of prompts, of later chunks of them, of decodes with equal or ragged contexts, and of all of them.

    What is drawn are totals and how they are divided, so that each shrinks apart from the others: to one prompt, then
    to few tokens, then to no context.

    Args:
        limits: the engine's own bounds of a batch.
        max_kv_tokens: most tokens in the KV cache after the step, of all requests; None for what a sweep takes there.
    """
    from hypothesis import strategies as st

    longest = limits.max_model_len - 1
    number, stride = sizes(1, limits.max_num_seqs), sizes(0, longest)
    prompts = st.tuples(number, sizes(1, limits.max_num_tokens), stride)
    late = st.tuples(sizes(1, longest), st.booleans())
    kept = max_kv_tokens or kv_tokens(limits)
    decodes = st.tuples(number, sizes(1, min(kept, limits.max_num_seqs * longest)), stride)

    def made(prompts: _Divided | None, decodes: _Divided | None, late: tuple[int, bool] | None) -> Batch:
        requests = itertools.chain(_decodes(*decodes) if decodes else (), _prompts(*prompts, late) if prompts else ())
        return _fitted(requests, limits, kept)

    none = st.none()
    return st.one_of(
        st.builds(made, prompts, none, none),
        st.builds(made, none, decodes, none),
        st.builds(made, prompts, none, late),
        st.builds(made, prompts, decodes, none | late),
    )


def sweep_points(signature: Signature, limits: Limits) -> SearchStrategy[SweepPoint]:
    """Points at which an operation may be asked for."""
    from hypothesis import strategies as st

    if signature.swept == "batch":
        return batches(limits).map(lambda batch: SweepPoint(batch=batch))
    if signature.swept == "num_reqs":
        return sizes(1, limits.max_num_seqs).map(lambda num: SweepPoint(num_reqs=num))
    tokens = sizes(1, min(limits.max_num_tokens, limits.max_model_len - 1))
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


def sizes(first: int, last: int) -> SearchStrategy[int]:
    """Whole numbers, half of them small; the first is the simplest.

    Both ranges begin with the first, so that the smallest number that fails is found by bisection within one of them;
    ranges of one magnitude each would end the search where the next one begins.

    Args:
        first: smallest, from 0 on.
        last: largest; where it is smaller than the first, that is all there is.
    """
    from hypothesis import strategies as st

    if last <= first:
        return st.just(first)
    return st.integers(first, min(last, first + _SMALL)) | st.integers(first, last)


def _prompts(number: int, tokens: int, stride: int, late: tuple[int, bool] | None) -> Iterator[tuple[int, int]]:
    """So many tokens or fewer, divided among prompts; `late`: what went before, and if all share it."""
    before, of_all = late or (0, False)
    query_lens = list(_divided(number, tokens, stride))
    for place, query_len in enumerate(query_lens):
        yield query_len, before // len(query_lens) if of_all else 0 if place else before


def _decodes(number: int, tokens: int, stride: int) -> Iterator[tuple[int, int]]:
    """One token each; so many or fewer in the KV cache, divided among them, as of requests that came in turn."""
    for context_len in _divided(number, tokens, stride):
        yield 1, context_len


def _divided(number: int, total: int, stride: int) -> Iterator[int]:
    """Sizes that add up to a total at most, a stride apart, from an equal share down and over again, none below 1."""
    number = min(number, total)
    for place in range(number):
        yield total // number - place * stride % (total // number)


def _fitted(requests: Iterable[tuple[int, int]], limits: Limits, kept: int) -> Batch:
    """The first of the requests, as many as a step takes and the KV cache keeps, the last of them cut off."""
    fitting, tokens = list[tuple[int, int]](), limits.max_num_tokens
    for query_len, context_len in itertools.islice(requests, limits.max_num_seqs):
        query_len = min(query_len, tokens, kept, max(1, limits.max_model_len - 1))
        if query_len < 1:
            break
        context_len = min(context_len, limits.max_model_len - query_len, kept - query_len)
        fitting.append((query_len, context_len))
        tokens, kept = tokens - query_len, kept - query_len - context_len
    return Batch.of(fitting)
