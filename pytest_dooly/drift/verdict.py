"""What the gate decides: of every figure whether it drifted, of every operation whether it is to blame.

A figure drifts where it is slower than the limit with confidence, passes where a slowdown of the limit would have been
seen, and is undecided otherwise. An operation fails where it is slower with confidence, all operations considered
(Benjamini and Hochberg 1995), and what that does to a figure is worth a tenth of the limit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from pytest_dooly.core.signature import ServedModel
from pytest_dooly.core.turn import Place
from pytest_dooly.drift.change import Change
from pytest_dooly.drift.exposure import Exposure

__all__ = [
    "CONFIDENCE",
    "POWER",
    "WORTH",
    "FigureVerdict",
    "OperationVerdict",
    "Outcome",
    "Verdict",
    "case_id",
    "judged",
    "sums_of",
]

CONFIDENCE, POWER = 0.99, 0.95
"""Of what is said to be slower; and of a slowdown of the limit being seen."""

WORTH = 0.1
"""Share of the limit that an operation must be worth in a figure before it fails: 0.3 % of TPOT where that is 3 %."""


class Outcome(StrEnum):
    """What a run has come to."""

    PASSED = "passed"
    BASELINE = "baseline"
    ACCEPTED = "accepted"
    UNDECIDED = "undecided"
    DRIFT = "drift"
    BROKEN = "broken"


@dataclass(frozen=True)
class FigureVerdict:
    """One TTFT or TPOT.

    Attributes:
        exposure: what it consists of, in the baseline.
        change: of it.
        outcome: DRIFT, PASSED or UNDECIDED.
        limit: relative slowdown that is not to be exceeded.
    """

    exposure: Exposure
    change: Change
    outcome: Outcome
    limit: float

    @property
    def case_id(self) -> str:
        """Of its test case."""
        return case_id(self.exposure)

    @property
    def predicted_s(self) -> float:
        """The figure as this run has it."""
        return self.exposure.latency_s * math.exp(self.change.log)

    @property
    def is_faster(self) -> bool:
        """Whether it is faster by more than the limit, with confidence."""
        return self.change.bound(CONFIDENCE) < -self.limit

    @property
    def visible(self) -> float:
        """The smallest slowdown that would have been seen with POWER, as a relative change."""
        return _visible(self.change)


@dataclass(frozen=True)
class OperationVerdict:
    """One operation.

    Attributes:
        key: of its signature.
        label: of it.
        kind: of it.
        change: of its latency, over its points by their part in the figures.
        shares: of each figure that it takes, by the figure's name.
        q: false discovery rate at which it counts as slower.
        q_faster: likewise as faster.
        outcome: DRIFT or PASSED.
    """

    key: str
    label: str
    kind: str
    change: Change
    shares: Mapping[str, float]
    q: float
    q_faster: float
    outcome: Outcome

    @property
    def share(self) -> float:
        """Of the figure that it takes the largest part of."""
        return max(self.shares.values(), default=0.0)

    @property
    def worth(self) -> float:
        """What its change does to that figure, as a relative change."""
        return self.share * self.change.relative

    @property
    def is_faster(self) -> bool:
        """Whether it is faster with confidence."""
        return self.q_faster <= 1 - CONFIDENCE

    @property
    def is_slower(self) -> bool:
        """Whether it is slower with confidence, whatever that is worth."""
        return self.q <= 1 - CONFIDENCE

    @property
    def visible(self) -> float:
        """As of a figure."""
        return _visible(self.change)


@dataclass(frozen=True)
class Verdict:
    """What a run has found.

    Attributes:
        figures: of every workload.
        operations: all that are in the baseline and in this run, those that change a figure most first.
        unmatched: labels of operations that only one of both has, with which; figures are then undecided.
        disturbed: share of the time that other processes had the processor, where they left too few turns calm; nothing
            is decided then. None otherwise.
        crowded: share of the processors that other processes had, less what they had at the baseline, where that is
            much: nothing drifts then, or figures do not pass where it was the baseline's. None otherwise.
        alike: relative change that all operations have in common, which is no drift of an engine's unless engines take
            turns.
        limit: relative slowdown of a figure that is not to be exceeded.
        turns: that the run took.
        spent_s: wall time of those.
    """

    figures: tuple[FigureVerdict, ...]
    operations: tuple[OperationVerdict, ...]
    unmatched: tuple[str, ...]
    disturbed: float | None
    crowded: float | None
    alike: float
    limit: float
    turns: int
    spent_s: float

    def outcome(self, cases: frozenset[str] | None = None) -> Outcome:
        """The worst of the cases.

        Args:
            cases: ids of those that count; None for all.
        """
        outcomes = {each.outcome for each in self.figures if cases is None or each.case_id in cases}
        outcomes |= {each.outcome for each in self.operations if cases is None or each.label in cases}
        worst = (Outcome.DRIFT, Outcome.UNDECIDED, Outcome.PASSED)
        return next((each for each in worst if each in outcomes), Outcome.PASSED)

    @property
    def drifted(self) -> tuple[OperationVerdict, ...]:
        """Operations that fail."""
        return tuple(each for each in self.operations if each.outcome is Outcome.DRIFT)

    @property
    def faster(self) -> tuple[OperationVerdict, ...]:
        """Operations that are faster with confidence."""
        return tuple(each for each in self.operations if each.is_faster)

    def needed_turns(self) -> int | None:
        """How many turns would decide every undecided figure, noise and change staying as they are.

        None where no number of turns does: the change is too near to the limit, so that turns end as soon as a slowdown
        of the limit would be seen, all operations have changed alike, or one has no counterpart.
        """
        most = 0.0
        undecided = [figure for figure in self.figures if figure.outcome is Outcome.UNDECIDED]
        if all(figure.visible <= figure.limit for figure in undecided):
            return None
        for figure in undecided:
            apart = abs(math.log1p(figure.limit) - figure.change.log)
            confidence = POWER if figure.change.relative < figure.limit else CONFIDENCE
            error = apart / _quantile(confidence, figure.change.freedom)
            ratio = (figure.change.error / error) ** 2 if error else math.inf
            most = max(most, ratio)
        turns = math.ceil(most * self.turns) if most < _MOST_TIMES else None
        hopeless = self.unmatched or abs(self.alike) > self.limit  # more of the same turns say no more of either
        return None if hopeless or self.disturbed is not None or self.crowded is not None else turns


_MOST_TIMES = 100.0
"""As many turns as there were, beyond which nobody waits for more."""


def case_id(exposure: Exposure) -> str:
    """Of a figure's test case: `tpot-128+32x4`."""
    return f"{exposure.figure}-{exposure.workload}"


def sums_of(
    exposures: Sequence[Exposure], levels_s: Mapping[Place, float]
) -> tuple[dict[str, dict[Place, float]], dict[str, dict[Place, float]]]:
    """The weighted sums of latencies that figures and operations are, by case id and by signature key.

    Args:
        exposures: what figures consist of, in seconds.
        levels_s: latency of each place in the baseline, as the gate times it; a place without one is left out.
    """
    figures = {
        case_id(exposure): {p: s / levels_s[p] for p, s in exposure.seconds.items() if p in levels_s}
        for exposure in exposures
    }
    operations: dict[str, dict[Place, float]] = {}
    for exposure in exposures:
        for place, seconds in exposure.seconds.items():
            if place in levels_s:
                of = operations.setdefault(place.signature, {})
                of[place] = of.get(place, 0.0) + seconds / exposure.latency_s / levels_s[place]
    return figures, operations


def judged(
    model: ServedModel,
    exposures: Sequence[Exposure],
    figures: Mapping[str, Change],
    operations: Mapping[str, Change],
    *,
    limit: float,
    unmatched: Sequence[str] = (),
    disturbed: float | None = None,
    crowded: float | None = None,
    alike: float = 0.0,
    turns: int,
    spent_s: float,
) -> Verdict:
    """The verdict on what has changed.

    Args:
        model: whose operations they are.
        exposures: what figures consist of.
        figures: changes by case id.
        operations: changes by signature key.
        limit: relative slowdown of a figure that is not to be exceeded.
        unmatched: what only one of baseline and run has.
        disturbed: as of a Verdict.
        crowded: likewise.
        alike: likewise.
        turns: that the run took.
        spent_s: wall time of those.
    """
    from scipy.stats import false_discovery_control

    may_drift = disturbed is None and (crowded is None or crowded < 0)
    signatures = {each.signature.key: each.signature for each in model.operations}
    keys = list(operations)
    slower = false_discovery_control([operations[key].p_slower for key in keys]) if keys else []
    faster = false_discovery_control([operations[key].p_faster for key in keys]) if keys else []
    found = []
    for key, q, q_faster in zip(keys, slower, faster, strict=True):
        shares = {each.name: each.share(key) for each in exposures}
        worth = max(shares.values(), default=0.0) * operations[key].relative
        fails = q <= 1 - CONFIDENCE and worth >= WORTH * limit and may_drift
        found.append(
            OperationVerdict(
                key,
                signatures[key].label,
                signatures[key].kind.value,
                operations[key],
                shares,
                float(q),
                float(q_faster),
                Outcome.DRIFT if fails else Outcome.PASSED,
            )
        )
    may_pass = disturbed is None and (crowded is None or crowded > 0) and not unmatched
    return Verdict(
        tuple(
            _figure(each, figures[case_id(each)], limit, may_pass=may_pass, may_drift=may_drift) for each in exposures
        ),
        tuple(sorted(found, key=lambda each: -abs(each.worth))),
        tuple(unmatched),
        disturbed,
        crowded,
        alike,
        limit,
        turns,
        spent_s,
    )


def _figure(exposure: Exposure, change: Change, limit: float, *, may_pass: bool, may_drift: bool) -> FigureVerdict:
    if change.bound(1 - CONFIDENCE) > limit and may_drift:
        outcome = Outcome.DRIFT
    elif change.bound(POWER) < limit and may_pass:
        outcome = Outcome.PASSED
    else:
        outcome = Outcome.UNDECIDED
    return FigureVerdict(exposure, change, outcome, limit)


def _visible(change: Change) -> float:
    return math.expm1(change.error * (_quantile(CONFIDENCE, change.freedom) + _quantile(POWER, change.freedom)))


def _quantile(confidence: float, freedom: float) -> float:
    from scipy.stats import t

    return float(t.ppf(confidence, freedom))
