"""What a run of the gate has come to, with all that a report says of it."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_dooly.core.environment import Environment
from pytest_dooly.drift.verdict import Outcome, Verdict

__all__ = ["Found"]


@dataclass(frozen=True)
class Found:
    """A verdict, and what it is a verdict on.

    Attributes:
        model: its name.
        environment: that the run was in.
        baseline: what it was compared with, for people; None where there was nothing.
        before: environment of that; None likewise.
        verdict: on every figure and operation; on nothing but noise where there was no baseline.
        outcome: of the whole run.
        is_profiled: whether the baseline is latencies that were profiled, which are much less sure.
        interleaved: whether the baseline took turns with this run.
        is_own: whether the baseline is the latency DB's own, and not another engine or a file that was named.
        accepted: why the run is the baseline from now on; None where it was not accepted.
        commit: that it ran at; empty where none is known.
    """

    model: str
    environment: Environment
    baseline: str | None
    before: Environment | None
    verdict: Verdict
    outcome: Outcome
    is_profiled: bool
    interleaved: bool
    is_own: bool
    accepted: str | None
    commit: str

    def outcome_of(self, case: str) -> Outcome:
        """Of one figure or operation, by the id of its case; what is in no step passes.

        A run that is the baseline itself decides nothing, so that all of its cases pass.
        """
        if self.outcome in (Outcome.BASELINE, Outcome.ACCEPTED):
            return Outcome.PASSED
        return self.verdict.outcome(frozenset({case}))

    def outcome_over(self, cases: frozenset[str]) -> Outcome:
        """Of the run as far as some cases are concerned: those that were selected."""
        if self.outcome in (Outcome.BASELINE, Outcome.ACCEPTED):
            return self.outcome
        return self.verdict.outcome(cases)
