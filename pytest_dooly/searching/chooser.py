"""Which candidate is tried next: all of a grid in turn, or as many as a budget allows, chosen by Optuna."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from pytest_dooly.errors import MissingExtraError
from pytest_dooly.searching.candidate import AXES, Trial
from pytest_dooly.searching.outcome import Outcome

if TYPE_CHECKING:
    import optuna

__all__ = ["Chooser", "InTurn", "Price", "Sampled", "chooser_for"]

Price = Callable[[Outcome], float]
"""What is to be small of an outcome that has a goodput, besides its TPOT."""

_MOST_REPEATS = 10
"""Proposals in a row of what is known already, after which the next candidate in turn is taken."""


class Chooser(Protocol):
    """Hands out candidates until there are none, and is told what they come to."""

    def next(self, liked: str | None = None) -> Trial | None:
        """A candidate that was not handed out before; None where there is none left.

        Args:
            liked: place, as `place_of` names it, whose step times are there already.
        """

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """What a candidate has come to."""


class InTurn:
    """All of them, those of one place together as far as somebody asks for it."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        """Nothing is handed out yet.

        Args:
            trials: to hand out.
        """
        self._left: dict[str, list[Trial]] = {}
        for trial in trials:
            self._left.setdefault(place_of(trial), []).append(trial)
        self._begun: set[str] = set()

    def next(self, liked: str | None = None) -> Trial | None:
        """See `Chooser.next`: of that place; else of one that nobody works on, else of the one with most left."""
        if not self._left:
            return None
        place = liked if liked in self._left else next((each for each in self._left if each not in self._begun), None)
        if place is None:
            place = max(self._left, key=lambda each: len(self._left[each]))
        self._begun.add(place)
        trial = self._left[place].pop(0)
        if not self._left[place]:
            del self._left[place]
        return trial

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """Changes nothing."""


class Sampled:
    """As many as a budget allows, by Optuna's multi-objective tree-structured Parzen estimators: price against TPOT."""

    def __init__(self, trials: Sequence[Trial], budget: int, price: Price, *, seed: int = 0) -> None:
        """Nothing is handed out yet.

        Args:
            trials: the whole grid.
            budget: how many to hand out.
            price: that is to be small.
            seed: of Optuna's chance.

        Raises:
            MissingExtraError: Optuna is not installed.
        """
        if importlib.util.find_spec("optuna") is None:
            raise MissingExtraError(
                f"a grid of {len(trials):,} candidates and {budget:,} --trials need Optuna: run "
                "pip install 'pytest-dooly[search]', or name more --trials"
            )
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._price, self._budget = price, budget
        self._by_values = {_values(trial): trial for trial in trials}
        self._distributions = {
            axis: optuna.distributions.CategoricalDistribution(
                list(dict.fromkeys(values[place] for values in self._by_values))
            )
            for place, axis in enumerate(AXES)
        }
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
        self._study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
        self._asked: dict[str, optuna.trial.Trial] = {}
        self._known: dict[str, Outcome] = {}

    def next(self, liked: str | None = None) -> Trial | None:
        """See `Chooser.next`; Optuna's choice comes before what is liked."""
        handed = self._known.keys() | self._asked.keys()
        if len(handed) >= min(self._budget, len(self._by_values)):
            return None
        for _ in range(_MOST_REPEATS):
            asked = self._study.ask(self._distributions)
            trial = self._by_values.get(tuple(asked.params[axis] for axis in AXES))
            if trial is not None and trial.key not in handed:
                self._asked[trial.key] = asked
                return trial
            self._refuse(asked, trial)
        trial = next(trial for trial in self._by_values.values() if trial.key not in handed)
        self._study.enqueue_trial(dict(zip(AXES, _values(trial), strict=True)))
        self._asked[trial.key] = self._study.ask(self._distributions)
        return trial

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """See `Chooser.tell`; what was known from before is told too."""
        self._known[trial.key] = outcome
        asked = self._asked.pop(trial.key, None)
        if asked is not None:
            self._study.tell(asked, self._told(outcome), state=self._state(outcome))
            return
        import optuna

        params = dict(zip(AXES, _values(trial), strict=True))
        self._study.add_trial(
            optuna.trial.create_trial(
                params=params, distributions=self._distributions, values=self._told(outcome), state=self._state(outcome)
            )
        )

    def _refuse(self, asked: optuna.trial.Trial, trial: Trial | None) -> None:
        """Tells Optuna what it has asked for again, or that there is no such candidate."""
        import optuna

        known = None if trial is None else self._known.get(trial.key)
        if known is None:
            self._study.tell(asked, state=optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(asked, self._told(known), state=self._state(known))

    def _told(self, outcome: Outcome) -> list[float] | None:
        return [self._price(outcome), outcome.tpot_s] if outcome.rate else None

    def _state(self, outcome: Outcome) -> Any:
        import optuna

        return optuna.trial.TrialState.COMPLETE if outcome.rate else optuna.trial.TrialState.FAIL


def chooser_for(trials: Sequence[Trial], known: Mapping[str, Outcome], budget: int, price: Price) -> Chooser:
    """All that are not known, or as many as the budget allows.

    Args:
        trials: the whole grid.
        known: outcomes by key.
        budget: how many to try at most, known ones included.
        price: that is to be small.

    Raises:
        MissingExtraError: the grid is larger than the budget, and Optuna is not installed.
    """
    if len(trials) <= budget:
        return InTurn([trial for trial in trials if trial.key not in known])
    sampled = Sampled(trials, budget, price)
    for trial in trials:
        if trial.key in known:
            sampled.tell(trial, known[trial.key])
    return sampled


def place_of(trial: Trial) -> str:
    """What names a trial's place."""
    place = trial.place
    return f"{place.model.key} {place.device.name} {place.model.limits.max_captured}"


def _values(trial: Trial) -> tuple[Any, ...]:
    return tuple(getattr(trial.candidate, axis) for axis in AXES)
