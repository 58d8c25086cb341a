"""Candidates in order: the cheapest first, those that intervals do not tell from it, the front of cost and TPOT."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_dooly.core.configuration import ServingOptions
from pytest_dooly.core.document import Document
from pytest_dooly.searching.candidate import AXES
from pytest_dooly.searching.cost import Bill, bill_of
from pytest_dooly.searching.objective import Objective
from pytest_dooly.searching.outcome import Outcome
from pytest_dooly.simulation.simulate import Engine

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Ranked", "Search", "rank"]


@dataclass(frozen=True)
class Ranked(Document):
    """A candidate that meets the objective.

    Attributes:
        number: its place, from 1.
        outcome: goodput and figures there.
        bill: GPUs and cost.
        equal: whether its interval overlaps with that of the first, so that the two are not told apart.
        on_front: whether no other is both cheaper and faster between tokens.
    """

    number: int
    outcome: Outcome
    bill: Bill
    equal: bool
    on_front: bool


@dataclass(frozen=True)
class Search:
    """What a search has found.

    Attributes:
        objective: that was to be met.
        required: requests per second; None where none was named.
        tolerance: of each rate.
        priced: whether costs are known; else candidates are in the order of tokens per second and GPU.
        ranked: candidates that meet the objective, the best first.
        missed: those that were simulated and meet it at no rate, the nearest first.
        excluded: those that were not simulated, with the reason.
        grid: number of candidates asked for.
        resumed: how many of them were known from before.
        seconds: that the search took.
        options: of serving, that are the same for all.
        engine: how each engine schedules, but for prefix caching.
    """

    objective: Objective
    required: float | None
    tolerance: float
    priced: bool
    ranked: tuple[Ranked, ...]
    missed: tuple[Outcome, ...]
    excluded: tuple[Outcome, ...]
    grid: int
    resumed: int
    seconds: float
    options: ServingOptions = field(default_factory=ServingOptions)
    engine: Engine = field(default_factory=Engine)

    @property
    def best(self) -> Ranked | None:
        """The first; None where nothing meets the objective."""
        return self.ranked[0] if self.ranked else None

    @property
    def front(self) -> tuple[Ranked, ...]:
        """Candidates of which no other is both cheaper and faster between tokens, the cheapest first."""
        return tuple(each for each in self.ranked if each.on_front)

    @property
    def reasons(self) -> Mapping[str, int]:
        """How many candidates were excluded for what, without the figures of each."""
        return Counter(_kind(each.excluded or "") for each in self.excluded)

    def frame(self) -> pd.DataFrame:
        """A row for each candidate; rates in requests per second, times in seconds."""
        import pandas as pd

        rows = [
            _row(each.outcome) | dataclasses.asdict(each.bill) | {"number": each.number, "equal": each.equal}
            for each in self.ranked
        ]
        return pd.DataFrame([*rows, *map(_row, self.missed), *map(_row, self.excluded)])


def rank(
    outcomes: Sequence[Outcome],
    *,
    objective: Objective,
    prices: Mapping[str, float],
    tolerance: float,
    required: float | None = None,
    grid: int | None = None,
    resumed: int = 0,
    seconds: float = 0.0,
) -> Search:
    """The outcomes in order.

    Args:
        outcomes: of all candidates.
        objective: that was to be met.
        prices: of a GPU for an hour, by device; of all or of none.
        tolerance: of each rate.
        required: requests per second that are to be served.
        grid: number of candidates asked for; as many as there are outcomes where it is None.
        resumed: how many were known from before.
        seconds: that the search took.
    """
    met = [(each, bill_of(each, prices, required)) for each in outcomes if each.rate]
    met.sort(key=lambda pair: (pair[1].price, pair[0].tpot_s, str(pair[0].candidate)))
    front = _front([(bill.price, outcome.tpot_s) for outcome, bill in met])
    ranked = [
        Ranked(place + 1, outcome, bill, equal=_low(met[place]) <= _high(met[0]), on_front=front[place])
        for place, (outcome, bill) in enumerate(met)
    ]
    missed = [each for each in outcomes if each.excluded is None and not each.rate]
    return Search(
        objective,
        required,
        tolerance,
        bool(prices),
        tuple(ranked),
        tuple(sorted(missed, key=lambda each: each.missed_by)),
        tuple(each for each in outcomes if each.excluded is not None),
        len(outcomes) if grid is None else grid,
        resumed,
        seconds,
    )


def _kind(reason: str) -> str:
    """What a reason has in common with others: its words before the figures."""
    for kind in ("does not fit", "do not hold one request", "misses the SLO already"):
        if kind in reason:
            return _KINDS[kind]
    return reason


_KINDS = {
    "does not fit": "weights do not fit in memory",
    "do not hold one request": "the KV cache does not hold one request of max_model_len",
    "misses the SLO already": "a request that meets no other misses the SLO already",
}


def _low(pair: tuple[Outcome, Bill]) -> float:
    outcome, bill = pair
    return bill.price * outcome.rate / outcome.high if bill.cost_low is None else bill.cost_low


def _high(pair: tuple[Outcome, Bill]) -> float:
    outcome, bill = pair
    if not outcome.low:
        return float("inf")
    return bill.price * outcome.rate / outcome.low if bill.cost_high is None else bill.cost_high


def _front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which points, ascending in the first value, no earlier one is at most as large as in the second."""
    least, found = float("inf"), []
    for _, second in points:
        found.append(second < least)
        least = min(least, second)
    return found


def _row(outcome: Outcome) -> dict[str, Any]:
    row: dict[str, Any] = {axis: getattr(outcome.candidate, axis) for axis in AXES}
    row |= {
        "goodput": outcome.rate,
        "at_most": outcome.at_most,
        "goodput_low": outcome.low,
        "goodput_high": outcome.high,
        "ttft_s": outcome.ttft_s,
        "tpot_s": outcome.tpot_s,
        "missed_by": outcome.missed_by if outcome.ratios else None,
        "limit": outcome.limit.causes[0].name if outcome.limit and outcome.limit.causes else None,
        "excluded": outcome.excluded,
    }
    return row
