"""Whether more work is ever predicted to take less time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import Phase, find, settings, target
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

from pytest_dooly.core.batch import Batch, Request
from pytest_dooly.report.text import format_latency
from pytest_dooly.simulation.predicted_model import PredictedModel
from pytest_dooly.strategies import batches
from pytest_dooly.sweep.grid import within

__all__ = ["MORE", "Faster", "faster_with_more"]

_EXAMPLES = 500
"""Pairs that are drawn."""


@dataclass(frozen=True)
class Faster:
    """Two batches, of which the larger one is predicted to be faster.

    Attributes:
        batch: the smaller one.
        larger: the same and something more.
        batch_s: predicted seconds of the smaller one.
        larger_s: predicted seconds of the larger one.
        error: relative error that is stated of the two together, 0.05 for 5 %.
    """

    batch: Batch
    larger: Batch
    batch_s: float
    larger_s: float
    error: float

    def __str__(self) -> str:
        return (
            f"--batch {self.larger} is predicted to take {format_latency(self.larger_s)}, less than the "
            f"{format_latency(self.batch_s)} of --batch {self.batch}, {1 - self.larger_s / self.batch_s:.1%} where "
            f"{self.error:.1%} are the stated error"
        )


def _with_tokens(batch: Batch, more: int) -> Batch:
    *others, last = batch.requests
    return Batch((*others, Request(last.query_len + more, last.context_len)))


def _with_context(batch: Batch, more: int) -> Batch:
    *others, last = batch.requests
    return Batch((*others, Request(last.query_len, last.context_len + more)))


def _with_requests(batch: Batch, more: int) -> Batch:
    return Batch(batch.requests + batch.requests[-1:] * more)


MORE: dict[str, Callable[[Batch, int], Batch]] = {
    "tokens": _with_tokens,
    "context": _with_context,
    "requests": _with_requests,
}
"""What there may be more of: in the last request of a batch, or of its like."""


def faster_with_more(model: PredictedModel, what: str, *, examples: int = _EXAMPLES) -> Faster | None:
    """A batch, shrunk, that is predicted to be faster with more in it, by more than the stated error.

    Args:
        model: that serves.
        what: there is more of, one of `MORE`.
        examples: pairs that are drawn.

    Returns:
        None where none was found.
    """

    def is_faster(pair: tuple[Batch, int]) -> bool:
        found = _compared(model, what, *pair)
        if found is None:
            return False
        gained = 1 - found.larger_s / found.batch_s
        target(gained)
        return gained > found.error

    pairs = st.tuples(batches(model), st.integers(1, 16) | st.integers(1, 1024))
    asked = settings(max_examples=examples, database=None, derandomize=True, deadline=None, phases=list(Phase))
    try:
        return _compared(model, what, *find(pairs, is_faster, settings=asked))
    except NoSuchExample:
        return None


def _compared(model: PredictedModel, what: str, batch: Batch, more: int) -> Faster | None:
    """Both, or None where the larger one is beyond the limits."""
    larger = MORE[what](batch, more)
    if not within(larger, model.limits):
        return None
    steps = model.step(batch), model.step(larger)
    return Faster(batch, larger, steps[0].latency_s, steps[1].latency_s, max(map(model.stated_error, steps)))
