"""The workloads that a validation runs: an explicit grid, or a draw whose cost the predictor itself bounds."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pytest_dooly.core.batch import Limits
from pytest_dooly.core.signature import ServedModel
from pytest_dooly.core.workload import Workload
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.prediction.step_times import StepTimes
from pytest_dooly.prediction.workload import predict_workload
from pytest_dooly.regress.regressor import Regressor
from pytest_dooly.scheduling.clock import run
from pytest_dooly.scheduling.native import NativeScheduler
from pytest_dooly.scheduling.scheduler import Scheduled, SchedulerOptions, room_for_all

__all__ = ["Draw", "Replacement", "draw", "grid", "prefills_beside_decodes"]

_PROMPTS, _CONCURRENCIES, _OUTPUTS = (32, 2048), (1, 32), (1, 128)
"""Shortest and longest, as far as the engine's limits allow."""

_MOST_PLACES = 4
"""Places that are looked at for each workload that is wanted."""

_HALVINGS = 12
"""Steps of the search for how far a workload shrinks: the last is finer than one token in 2,048."""


_Place = tuple[float, ...]
"""Prompt, concurrency and output, each from 0 for the shortest to 1 for the longest."""


@dataclass(frozen=True)
class Replacement:
    """A workload that a budget excluded.

    Attributes:
        asked: as it was drawn.
        ran: the cheaper one in its place, the same proportions nearer to the smallest workload.
    """

    asked: Workload
    ran: Workload


@dataclass(frozen=True)
class Draw:
    """Workloads within a budget.

    Attributes:
        workloads: all distinct; the corners come first.
        replaced: those among them that stand for a dearer one.
        cost_s: predicted seconds of engine time that each of them takes once, all together.
    """

    workloads: tuple[Workload, ...]
    replaced: tuple[Replacement, ...]
    cost_s: float


def grid(
    limits: Limits,
    prompts: Sequence[int],
    concurrencies: Sequence[int],
    outputs: Sequence[int],
    *,
    num_reqs: int | None = None,
) -> tuple[Workload, ...]:
    """Every combination that the engine's limits allow, each of `num_reqs` requests in all."""
    return tuple(
        Workload(prompt, output, concurrency, num_reqs)
        for prompt in prompts
        for concurrency in concurrencies
        for output in outputs
        if prompt + output <= limits.max_model_len and concurrency <= min(limits.max_num_seqs, num_reqs or concurrency)
    )


def draw(
    model: ServedModel, regressors: Mapping[str, Regressor], *, points: int = 24, budget_s: float, seed: int = 0
) -> Draw:
    """Workloads from all over what the engine serves: prompt 32 to 2,048, 1 to 32 at once, output 1 to 128.

    The eight corners, then a scrambled Halton sequence (Halton 1960, Owen 2017), uniform in the logarithm of each
    size. The cheapest corners stay as they are, as many as a third of the budget pays for. The rest of it is divided
    among all others, where what a cheap one leaves goes to the dear ones; one that is dearer than its part shrinks
    towards the smallest workload, its sizes in proportion to each other.

    Args:
        model: what is served.
        regressors: by signature key; their predictions are the costs.
        points: number of workloads; fewer where limits and budget leave room for fewer distinct ones.
        budget_s: engine time in seconds that all the workloads may take together, each once, as predicted.
        seed: of the sequence.

    Raises:
        ConfigurationError: not even the smallest workload fits the budget.
        MissingMeasurements: an operation has no regressor; names all of them.
    """
    times = StepTimes(model, regressors)

    @functools.cache
    def cost_s(workload: Workload) -> float:
        return predict_workload(times, workload).duration_s

    def whole_s(place: _Place) -> float:
        return cost_s(space.at(place))

    space = _Space(model.limits)
    places = list(itertools.islice(space.places(seed), _MOST_PLACES * points))
    kept = _affordable([place for place in places[:points] if set(place) <= {0.0, 1.0}], whole_s, budget_s / 3)
    others = [place for place in places[:points] if place not in kept]
    cap_s = _water_level([whole_s(place) for place in others], budget_s - sum(map(whole_s, kept)))
    chosen: dict[Workload, Workload] = {}
    total_s = 0.0
    # Places beyond the first `points` only stand in for those that coincide with another, or that nothing is left for.
    for place in places:
        workload = space.at(place) if place in kept else space.shrunk(place, cost_s, cap_s)
        if workload not in chosen and total_s + cost_s(workload) <= budget_s:
            chosen[workload] = space.at(place)
            total_s += cost_s(workload)
        if len(chosen) == points:
            break
    if not chosen:
        least_s = cost_s(space.at((0.0, 0.0, 0.0)))
        raise ConfigurationError(
            f"the smallest workload takes {least_s:.2g} s, more than the {budget_s:.2g} s that it may"
        )
    replaced = tuple(Replacement(asked, workload) for workload, asked in chosen.items() if asked != workload)
    return Draw(tuple(chosen), replaced, total_s)


def prefills_beside_decodes(workload: Workload, limits: Limits) -> bool:
    """Whether a chunk of one request's prompt runs in the same step as another's decode."""
    steps = _Steps()
    run(workload.traffic(), NativeScheduler(SchedulerOptions(limits, room_for_all(limits))), steps)
    return any(step.num_decodes and step.chunks for step in steps)


class _Steps(list[Scheduled]):
    """Keeps what a clock asks the time of."""

    def step_s(self, step: Scheduled) -> float:
        self.append(step)
        return 1.0


class _Space:
    """Workloads at places of the unit cube, along logarithmic axes of prompt, concurrency and output."""

    def __init__(self, limits: Limits) -> None:
        longest = limits.max_model_len - 1
        self._max_model_len = limits.max_model_len
        self._low = np.array([min(_PROMPTS[0], max(1, longest // 2)), _CONCURRENCIES[0], _OUTPUTS[0]])
        self._high = np.array(
            [min(_PROMPTS[1], longest), min(_CONCURRENCIES[1], limits.max_num_seqs), min(_OUTPUTS[1], longest)]
        )

    def places(self, seed: int) -> Iterator[_Place]:
        """The corners, then a low-discrepancy sequence."""
        from scipy.stats import qmc  # a second that nothing else needs

        yield from itertools.product((0.0, 1.0), repeat=3)
        sequence = qmc.Halton(3, rng=np.random.default_rng(seed))
        while True:
            yield tuple(map(float, sequence.random(1)[0]))

    def at(self, place: Sequence[float]) -> Workload:
        """The workload at a place; the output is cut off where prompt and output exceed what one request may take."""
        prompt, concurrency, output = np.rint(self._low * (self._high / self._low) ** np.array(place)).astype(int)
        return Workload(int(prompt), int(min(output, self._max_model_len - prompt)), int(concurrency))

    def shrunk(self, place: Sequence[float], cost_s: Callable[[Workload], float], cap_s: float) -> Workload:
        """The largest workload on the way to the smallest one that costs no more than the cap, or the smallest."""
        if cost_s(self.at(place)) <= cap_s:
            return self.at(place)
        low, high = 0.0, 1.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            within = cost_s(self.at([middle * part for part in place])) <= cap_s
            low, high = (middle, high) if within else (low, middle)
        return self.at([low * part for part in place])


def _affordable(places: Sequence[_Place], cost_s: Callable[[_Place], float], budget_s: float) -> set[_Place]:
    """The cheapest of the places, as many as the budget pays for."""
    ascending = sorted(places, key=cost_s)
    spent_s = itertools.accumulate(map(cost_s, ascending))
    return {place for place, so_far_s in zip(ascending, spent_s, strict=True) if so_far_s <= budget_s}


def _water_level(costs_s: Sequence[float], budget_s: float) -> float:
    """The cap at which costs that are cut off at it add up to the budget; infinite where all fit."""
    left_s = budget_s
    ascending = sorted(costs_s)
    for i, cost in enumerate(ascending):
        if cost * (len(ascending) - i) > left_s:
            return left_s / (len(ascending) - i)
        left_s -= cost
    return float("inf")
