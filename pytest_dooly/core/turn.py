"""One turn of a gate: every operation of a few steps, and references that are the same in every run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pytest_dooly.core.batch import Batch, Routing, SweepPoint
from pytest_dooly.core.document import Document
from pytest_dooly.core.operation import ADMISSION, OperationKind
from pytest_dooly.core.routing import RoutingDistribution, busiest_between
from pytest_dooly.core.signature import Signature

__all__ = ["Place", "Turn", "point_within"]


_CALM = 0.9
"""Share of a turn that a processor must be held in."""


@dataclass(frozen=True, order=True)
class Place:
    """One operation at one sweep point.

    Attributes:
        signature: key of the operation's.
        point: sweep point, as text.
    """

    signature: str
    point: str

    @classmethod
    def parse(cls, text: str) -> Place:
        """The inverse of `str`."""
        signature, _, point = text.partition(" ")
        return cls(signature, point)

    def __str__(self) -> str:
        return f"{self.signature} {self.point}"


@dataclass(frozen=True)
class Turn(Document):
    """What a turn has timed: of every place and every reference the fastest call, in seconds.

    What disturbs a call makes it slower, never faster, so that the fastest of some is what the machine itself allows.

    Attributes:
        references_s: by name of the reference.
        latencies_s: by place, as text.
        spent_s: wall time of the turn.
        held: share of that in which the thread that takes it had a processor; less where other processes want it.
        others: share of all processors that other processes had, 0.5 for one of two.
        start: number of the engine's start that it is of, which its memory's layout follows; 0 where that is drawn.
    """

    references_s: Mapping[str, float]
    latencies_s: Mapping[str, float]
    spent_s: float
    held: float = 1.0
    others: float = 0.0
    start: int = 0

    @property
    def is_calm(self) -> bool:
        """Whether nothing else had the processor: what does makes long calls slower than any reference tells."""
        return self.held >= _CALM


def point_within(signature: Signature, batch: Batch) -> SweepPoint:
    """What an operation sees of a step; of an admission, the longest prompt.

    Args:
        signature: of the operation.
        batch: what the step works on.
    """
    if signature.swept == "batch":
        return SweepPoint(batch=batch)
    if signature.swept == "num_reqs":
        return SweepPoint(num_reqs=batch.num_reqs)
    if signature.kind is OperationKind.OVERHEAD and signature.name == ADMISSION:
        return SweepPoint(num_tokens=max(request.query_len for request in batch.requests))
    if signature.kind is not OperationKind.MOE:
        return SweepPoint(num_tokens=batch.num_tokens)
    attributes = dict(signature.attributes)
    top_k = int(attributes["top_k"])
    expected = RoutingDistribution().expected(batch.num_tokens, int(attributes["num_local_experts"]), top_k)
    even, _ = busiest_between(batch.num_tokens, top_k, expected.activated)
    return SweepPoint(num_tokens=batch.num_tokens, routing=Routing(expected.activated, max(even, expected.busiest)))
