"""What a candidate has come to."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_dooly.core.document import Document
from pytest_dooly.searching.candidate import Candidate
from pytest_dooly.searching.limit import Limit

__all__ = ["Outcome"]


@dataclass(frozen=True)
class Outcome(Document):
    """One candidate: its goodput, or why it has none.

    Attributes:
        candidate: that was tried.
        excluded: why it was not simulated; None where it was.
        rate: highest requests per second of one replica that meet the objective; 0 where none does.
        offered: requests per second that arrived where that many were served, which figures are of.
        low: the same where steps take as long as the interval around TPOT allows.
        high: the same where they are as short.
        bound: requests per second that a replica keeps up with at most: what it serves with room for no more requests,
            or what the best batch comes to if it never waits, where the rate is far from that.
        ratios: each bound's statistic as a multiple of the bound, at that rate, or at the lowest that was tried.
        ttft_s: mean at that rate.
        tpot_s: mean at that rate; 0 where no request has one.
        tokens: mean of a request, prompt and output.
        output_tokens: mean of a request.
        estimated: share of a decode step that is an estimate.
        by_another: share of it that rests on another GPU's latencies.
        limit: what keeps the rate from being higher; None where no rate that was tried misses the objective.
        remark: what is to be known of the figures; empty for nothing.
        at_most: whether the true rate may be lower: no rate that was tried misses the objective, so that it is what the
            engine keeps up with, or the requests are too few to show what they come to in the long run.
        simulations: how many there were.
        spent_s: seconds that it took, its share of the step times not counted.
    """

    candidate: Candidate
    excluded: str | None = None
    rate: float = 0.0
    offered: float = 0.0
    low: float = 0.0
    high: float = 0.0
    bound: float = 0.0
    ratios: tuple[float, ...] = ()
    ttft_s: float = 0.0
    tpot_s: float = 0.0
    tokens: float = 0.0
    output_tokens: float = 0.0
    estimated: float = 0.0
    by_another: float = 0.0
    limit: Limit | None = None
    remark: str = ""
    at_most: bool = False
    simulations: int = 0
    spent_s: float = 0.0

    @property
    def missed_by(self) -> float:
        """By what factor the objective is missed where it is nearest; at most 1 where it is met."""
        return max(self.ratios, default=float("inf"))
