"""How much something has changed from the turns of earlier runs to those of this one, and how surely.

Noise of a shared machine has heavy tails and comes in spells of seconds, so that rounds are not independent. Of every
turn there is one value, the fastest call; what the machine's references do in the same turns is taken out of it by
regression, for which outliers count little (Huber 1964) and no reference makes anything faster. What is left has its
median taken, and blocks of turns that follow each other say how sure that is (batch means: Schmeiser 1982). Where
several runs make the baseline, how far those are apart says by how much blocks understate it (Birge 1932).

Operations are compared with each other too, and what all of them have in common is not known to be the engine's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from pytest_dooly.core.turn import Place, Turn

__all__ = [
    "BLOCKS",
    "FEWEST_CALM",
    "ITERATIONS",
    "PROFILED",
    "TAILS",
    "UNEQUAL",
    "Change",
    "Timed",
    "changes",
    "common_change",
    "fewest_of_start",
    "huber_weights",
    "less_sure",
    "paired_changes",
    "profiled_changes",
    "spread",
]

Array = npt.NDArray[np.float64]

Weights = Mapping[Place, float]
"""Of places in a sum of latencies: a figure, or an operation at its points."""

BLOCKS = 8
"""Of turns that follow each other, each with a median of its own."""

FEWEST_CALM = 2 * BLOCKS
"""Calm turns that something can be decided from."""

_FLOOR, _FLOOR_APART = 0.003, 0.006
"""Standard error that no number of turns takes away, as a logarithm: where a process has put its memory, what the
linker did. Of figures, and of operations compared with each other, single ones of which llama-tiny's engine has up to
3 % faster or slower each time that it starts. Engines that take turns have started too, each where it did."""

_LAYOUT = 0.04
"""Standard error of sums whose turns are not of a layout that both have: what llama-tiny's operations are apart from
one session to another in the median, and its figures nearly as much, where Python draws its hash anew."""

_ALIKE = 0.5
"""Of what all operations have changed by alike, how much is taken for standard error of a figure: a machine does that
as well as an engine, so that no figure drifts by it."""

UNEQUAL = 0.25
"""Standard deviation over operations of how much each notices of what slows all of them down, the median being 1."""

TAILS = 4.0
"""Degrees of freedom of both: now and then an operation notices a machine three or four times as much as the others, as
llama-tiny's step does, which is the interpreter's work where the others are kernels'."""

PROFILED = 0.1
"""Standard error, at least, beside the regressors' own of what was profiled: that is a mean of rounds, one operation at
a time and at another time, where the gate has the fastest call of a turn. How far both are apart over all operations
says by how much more."""

_UNDERSTATED, _WORTH = 1.5, 3.0
"""By which factor the variance of blocks understates that of runs, until runs tell; how many runs that is worth."""

_FEWEST_OTHERS = 3
"""Sums whose median is not moved by one of them."""

_RELIABLE = 0.5
"""Reliability below which what the others do within runs says nothing."""

_TUNING, ITERATIONS = 1.345, 8
"""Huber's constant for 95 % efficiency where errors are normal, and iterations of reweighting."""


@dataclass(frozen=True)
class Timed:
    """The turns of one run, as arrays.

    Attributes:
        latencies_s: of each place, shape (turns,).
        references: logarithm of each reference, shape (turns, references).
        starts: number of the engine's start, shape (turns,).
        others: share of all processors that other processes had, in the median turn.
    """

    latencies_s: Mapping[Place, Array]
    references: Array
    starts: npt.NDArray[np.int_]
    others: float = 0.0

    @classmethod
    def of(cls, turns: Sequence[Turn]) -> Self:
        """The same as arrays; what a turn lacks is not a number. Of a start that has enough calm turns, those alone."""
        starts = [[turn for turn in turns if turn.start == number] for number in dict.fromkeys(t.start for t in turns)]
        fewest = fewest_of_start(len(starts))
        kept = list[Turn]()
        for of_start in starts:
            calm = [turn for turn in of_start if turn.is_calm]
            kept += calm if len(calm) >= fewest else of_start
        return cls._of(kept)

    @classmethod
    def of_pairs(cls, new: Sequence[Turn], old: Sequence[Turn]) -> tuple[Self, Self]:
        """Turns of two engines that took them by turns, beside each other: where enough pairs are calm, those alone."""
        pairs = list(zip(new, old, strict=True))
        calm = [pair for pair in pairs if all(turn.is_calm for turn in pair)]
        of_new, of_old = zip(*(calm if len(calm) >= BLOCKS else pairs), strict=True)
        return cls._of(of_new), cls._of(of_old)

    @classmethod
    def _of(cls, turns: Sequence[Turn]) -> Self:
        names = sorted(turns[0].references_s)
        places = {text: Place.parse(text) for turn in turns for text in turn.latencies_s}
        return cls(
            {place: np.array([turn.latencies_s.get(text, np.nan) for turn in turns]) for text, place in places.items()},
            np.log([[turn.references_s[name] for name in names] for turn in turns]),
            np.array([turn.start for turn in turns]),
            float(np.median([turn.others for turn in turns])),
        )

    def __len__(self) -> int:
        """Number of turns."""
        return len(self.references)

    @property
    def num_starts(self) -> int:
        """Starts whose layout is known."""
        return len(set(self.starts.tolist()) - {0})

    def has(self, place: Place) -> bool:
        """Whether enough turns of every start have timed a place to say how sure its median is."""
        if place not in self.latencies_s:
            return False
        known = np.isfinite(self.latencies_s[place])
        return all((known & (self.starts == number)).sum() >= BLOCKS / 2 for number in np.unique(self.starts))

    def of_start(self, number: int) -> Self:
        """The turns of one start of the engine."""
        own = self.starts == number
        latencies_s = {place: of[own] for place, of in self.latencies_s.items()}
        return replace(self, latencies_s=latencies_s, references=self.references[own], starts=self.starts[own])

    def log_of(self, weights: Weights) -> Array:
        """Logarithm of the weighted sum in every turn, shape (turns,)."""
        total = sum((weight * self.latencies_s[place] for place, weight in weights.items()), start=np.zeros(len(self)))
        return np.asarray(np.log(total))


@dataclass(frozen=True)
class Change:
    """A change as the logarithm of a factor.

    Attributes:
        log: of the factor; above 0 where it has become slower.
        error: standard error.
        freedom: degrees of freedom of the error.
    """

    log: float
    error: float
    freedom: float

    def less_sure(self, error: float, freedom: float) -> Self:
        """The same with another error beside its own, whose freedom is of both (Satterthwaite 1946).

        Args:
            error: standard error that is independent of its own.
            freedom: degrees of freedom of that.
        """
        if not error:
            return self
        both = self.error**2 + error**2
        told = both**2 / (self.error**4 / self.freedom + error**4 / freedom)
        return replace(self, error=math.sqrt(both), freedom=told)

    @property
    def relative(self) -> float:
        """0.05 for 5 % slower."""
        return math.expm1(self.log)

    def bound(self, confidence: float) -> float:
        """What the relative change lies below with that confidence; for 0.05, what it lies above with 95 %."""
        from scipy.stats import t

        return math.expm1(self.log + self.error * float(t.ppf(confidence, self.freedom)))

    @property
    def p_slower(self) -> float:
        """Probability of such a change, or a larger one, where nothing has become slower."""
        from scipy.stats import t

        return float(t.sf(self.log / self.error, self.freedom))

    @property
    def p_faster(self) -> float:
        """Likewise where nothing has become faster."""
        return 1 - self.p_slower


def fewest_of_start(starts: int) -> int:
    """Calm turns that each of so many starts needs, so that something can be decided from all of them."""
    return max(BLOCKS, FEWEST_CALM // starts)


def changes(
    new: Timed, baseline: Sequence[Timed], sums: Mapping[str, Weights], *, apart: bool = False
) -> dict[str, Change]:
    """Change of every sum from the runs of the baseline to a new one, by name: the mean over their starts.

    Starts of one number have the memory of the same layout (`engine_process`), as far as the engine is the same, and
    are compared with each other. How far the starts are apart then is an error as well. Where no start is of both, all
    turns are compared together, and what a layout does is an error.

    Args:
        new: at least BLOCKS turns.
        baseline: likewise, at least one run.
        sums: weighted sums of latencies, by name.
        apart: whether sums have nothing in common, as operations have not: what most of the others do is then the
            machine's doing, and a reference too. It is the best one there is, since it runs the engine's own code.
    """
    alike = _starts_of_both(new, baseline)
    starts, laid_out = (alike, 0.0) if alike else ([[*baseline, new]], _LAYOUT)
    levels = [_levels_at(runs, sums, apart=apart) for runs in starts]
    medians = np.array([[of_start[name][0] for of_start in levels] for name in sums])  # (sums, starts, runs)
    # What makes a run another one, its minutes' machine, all its starts have.
    of_runs = {
        name: (each.mean(axis=0), sum(of_start[name][1] for of_start in levels) / len(starts) ** 2)
        for name, each in zip(sums, medians, strict=True)
    }
    understated, number = _understated(of_runs), len(baseline)
    shifts = medians[:, :, -1] - medians[:, :, :-1].mean(axis=2)
    between, told = _between(shifts) if apart else _between_alike(shifts)
    found = {}
    for name, of, more in zip(sums, shifts, between / math.sqrt(len(starts)), strict=True):
        once = understated[name] * of_runs[name][1] + (_FLOOR_APART if apart else _FLOOR) ** 2
        error = math.sqrt(once * (1 + 1 / number))
        change = Change(float(of.mean()), error, (BLOCKS - 1.0) * (number + 1) * len(starts))
        found[name] = change.less_sure(float(more), told).less_sure(laid_out, TAILS)
    return found


def _starts_of_both(new: Timed, baseline: Sequence[Timed]) -> list[list[Timed]]:
    """The runs of the baseline and the new one, by each start that all have; the layout of start 0 nobody knows."""
    runs = [*baseline, new]
    enough = [{int(n) for n in np.unique(run.starts) if n and (run.starts == n).sum() >= BLOCKS} for run in runs]
    return [[run.of_start(number) for run in runs] for number in sorted(set.intersection(*enough))]


def _levels_at(runs: Sequence[Timed], sums: Mapping[str, Weights], *, apart: bool) -> dict[str, tuple[Array, float]]:
    """Of each sum what every run's would be at one speed of the machine, and the variance of such a one, by name."""
    values = {name: [run.log_of(weights) for run in runs] for name, weights in sums.items()}
    others = _others(values) if apart and len(values) > _FEWEST_OTHERS else {}
    told = {}
    for name, of_runs in values.items():
        references = [run.references for run in runs]
        if name in others:
            references = [np.column_stack(beside) for beside in zip(references, others[name].runs, strict=True)]
        told[name] = _levels(of_runs, references, follows=others[name].reliability if name in others else None)
    return told


def common_change(found: Mapping[str, Change]) -> float:
    """By what operations have changed alike, the median of their logarithms; 0 where they are few.

    Args:
        found: of every operation, not compared with each other.
    """
    return 0.0 if len(found) <= _FEWEST_OTHERS else float(np.median([each.log for each in found.values()]))


def less_sure(found: Mapping[str, Change], by: float) -> dict[str, Change]:
    """Changes of figures, where all operations have changed alike.

    Args:
        found: of figures.
        by: what `common_change` says.
    """
    return {name: each.less_sure(_ALIKE * by, TAILS) for name, each in found.items()}


@dataclass(frozen=True)
class _Others:
    """What the other sums do.

    Attributes:
        runs: the median of them in every turn of each run.
        reliability: share of its variance within runs that is the machine's, the rest being noise of each; 0 where that
            is less than half, and which half nobody knows.
    """

    runs: Sequence[Array]
    reliability: float


def _others(values: Mapping[str, Sequence[Array]]) -> dict[str, _Others]:
    """What the others of each sum do, by name."""
    usual = {name: float(np.nanmedian(np.concatenate(of_runs))) for name, of_runs in values.items()}
    # A turn that lacks one has it as usual.
    apart = {name: [np.nan_to_num(run - usual[name]) for run in of_runs] for name, of_runs in values.items()}
    return {name: _told_by([apart[other] for other in apart if other != name]) for name in apart}


def _told_by(others: Sequence[Sequence[Array]]) -> _Others:
    """The median of some sums in every turn, and its reliability: what two halves of them agree on (Spearman 1910)."""
    runs = [np.array(of_run) for of_run in zip(*others, strict=True)]
    medians = [np.median(of_run, axis=0) for of_run in runs]
    halves = [[np.median(of_run[start::2], axis=0) for of_run in runs] for start in (0, 1)]
    one, other = (np.concatenate([each - np.median(each) for each in half]) for half in halves)
    alike, apart = spread(one + other), spread(one - other)
    reliability = 1 - (apart / alike) ** 2 if alike else 0.0
    return _Others(medians, reliability if reliability > _RELIABLE else 0.0)


def paired_changes(
    pairs: Sequence[tuple[Timed, Timed]],
    new_first: Sequence[bool],
    sums: Mapping[str, Weights],
    *,
    apart: bool = False,
) -> dict[str, Change]:
    """Change of every sum between two engines that took turns, by name: the mean over their starts.

    How far the starts are apart is an error as well, but for what the order of opening does.

    Args:
        pairs: of every time that both were started, turns of the new one and as many of the other, each beside one of
            those.
        new_first: of the same times, whether the new one was opened before the other.
        sums: weighted sums of latencies, by name.
        apart: whether sums have nothing in common, as operations have not: each then has starts of its own. All figures
            have the same.
    """
    medians, within = [], []
    for weights in sums.values():
        found, variances = [], []
        for new, old in pairs:
            references = new.references - old.references
            values = new.log_of(weights) - old.log_of(weights)
            (median,), variance = _levels([values], [references], about=np.zeros(references.shape[1]))
            found.append(float(median))
            variances.append(_UNDERSTATED * variance)
        medians.append(found)
        within.append(np.mean(variances))
    of_starts, noise = np.array(medians), np.array(within)
    orders = np.zeros(len(pairs), dtype=bool) if apart else np.array(new_first)
    floor = 2 * (_FLOOR_APART if apart else _FLOOR) ** 2
    each, freedom = _variance_of_start(of_starts, noise, orders, floor, apart=apart)
    return {
        name: Change(float(of.mean()), math.sqrt(variance / len(pairs)), freedom)
        for name, of, variance in zip(sums, of_starts, each, strict=True)
    }


def _variance_of_start(
    medians: Array, noise: Array, orders: npt.NDArray[np.bool_], floor: float, *, apart: bool
) -> tuple[Array, float]:
    """Variance of what one start tells of each sum, and its freedom.

    How far starts are apart has the noise of their turns in it. A few starts tell little, so that it is counted beside
    what is to be expected: that noise, and what starts do to the usual operation (Smyth 2004), or to any figure.

    Args:
        medians: of the starts, shape (sums, starts).
        noise: variance of a start's median by its own turns, shape (sums,).
        orders: of which order of opening each start is, shape (starts,).
        floor: variance that a start has at least, beside that.
        apart: whether each sum has starts of its own; else all have the same.
    """
    if apart and len(medians) > _FEWEST_OTHERS:
        medians = medians - np.median(medians, axis=0)
    of_orders = [medians[:, orders == order] for order in np.unique(orders)]
    own = float(sum(of.shape[1] - 1 for of in of_orders))
    if not own:
        return noise + floor, TAILS
    found = sum((np.var(of, axis=1) * of.shape[1] for of in of_orders), start=np.zeros(len(medians))) / own
    if not apart:
        found = np.full(len(medians), found.mean())
    elif len(medians) > _FEWEST_OTHERS:
        floor = max(floor, _usual(found, own) - float(np.median(noise)))
    return (TAILS * (noise + floor) + own * found) / (TAILS + own), TAILS + own


def _between(medians: Array) -> tuple[Array, float]:
    """Standard deviation of each operation's starts, beside the other operations of the same start, and its freedom.

    A few starts tell little of one operation, so that what all of them tell counts beside it (Smyth 2004). Of few
    operations, or of one start, it is 0.

    Args:
        medians: shape (operations, starts).
    """
    own = medians.shape[1] - 1.0
    if own < 1 or len(medians) <= _FEWEST_OTHERS:
        return np.zeros(len(medians)), TAILS
    variances = np.var(medians - np.median(medians, axis=0), axis=1, ddof=1)
    return np.sqrt((TAILS * _usual(variances, own) + own * variances) / (TAILS + own)), TAILS + own


def _usual(variances: Array, freedom: float) -> float:
    """The variance whose samples have the median of these, shape (operations,), each of so much freedom."""
    from scipy.stats import chi2

    return float(np.median(variances)) * freedom / float(chi2.median(freedom))


def _between_alike(medians: Array) -> tuple[Array, float]:
    """Standard deviation of starts, the same for all figures, and its freedom; of a single start it is 0.

    Args:
        medians: shape (figures, starts).
    """
    freedom = medians.shape[1] - 1.0
    if not freedom:
        return np.zeros(len(medians)), TAILS
    return np.full(len(medians), math.sqrt(np.var(medians, axis=1, ddof=1).mean())), max(TAILS, freedom)


def profiled_changes(
    new: Timed, levels_s: Mapping[Place, float], errors: Mapping[str, float], sums: Mapping[str, Weights]
) -> dict[str, Change]:
    """Change of every sum from latencies that were profiled, by name: as unsure as those are.

    Args:
        new: at least BLOCKS turns.
        levels_s: what the baseline's regressors predict of each place.
        errors: expected relative error of the regressors, by name of the sum.
        sums: weighted sums of latencies, by name.
    """
    found = {}
    apart = np.array([np.nanmedian(new.log_of({place: 1.0})) - math.log(before) for place, before in levels_s.items()])
    profiled = max(PROFILED, spread(apart))
    for name, weights in sums.items():
        medians, variance = _levels([new.log_of(weights)], [new.references])
        before = math.log(sum(weight * levels_s[place] for place, weight in weights.items()))
        error = math.sqrt(variance + profiled**2 + errors[name] ** 2)
        found[name] = Change(float(medians[0]) - before, error, max(1.0, len(apart) - 1.0))
    return found


def _levels(
    values: Sequence[Array], references: Sequence[Array], *, about: Array | None = None, follows: float | None = None
) -> tuple[Array, float]:
    """What each run's values would be at one speed of the machine, their median; and the variance of such a one.

    Args:
        values: of each run, shape (turns,).
        references: of the same turns, shape (turns, references).
        about: that speed, shape (references,); None for the usual one of all runs.
        follows: reliability of the last reference, where that is what the other operations do.
    """
    kept = [np.isfinite(each) for each in values]
    values = [each[good] for each, good in zip(values, kept, strict=True)]
    references = [each[good] for each, good in zip(references, kept, strict=True)]
    usual = np.median(np.concatenate(references), axis=0) if about is None else about
    coefficients = _coefficients(values, references, follows=follows)
    adjusted = [each - (beside - usual) @ coefficients for each, beside in zip(values, references, strict=True)]
    medians = np.array([np.median(each) for each in adjusted])
    return medians, float(np.mean([_variance_of_median(each) for each in adjusted]))


def _coefficients(values: Sequence[Array], references: Sequence[Array], *, follows: float | None) -> Array:
    """How values follow the references within their runs, shape (references,); none is negative.

    With `follows` the last coefficient is 1 and the others are 0, give or take UNEQUAL, where the runs do not tell: in
    a run without spells nothing follows anything, and the next one may find the machine in another state. What is noise
    in that reference would pull its coefficient to 0, so that it counts as its reliability has it (regression
    calibration: Carroll et al. 2006).
    """
    from scipy.optimize import nnls

    y = np.concatenate([each - np.median(each) for each in values])
    x = np.concatenate([each - np.median(each, axis=0) for each in references])
    if follows is not None:
        x[:, -1] *= follows
    weights = np.ones(len(y))
    coefficients, scale = np.zeros(x.shape[1]), spread(y)
    for _ in range(ITERATIONS):
        root = np.sqrt(weights)
        prior = np.eye(x.shape[1]) * (scale / UNEQUAL) if follows is not None else np.empty((0, x.shape[1]))
        coefficients, _ = nnls(np.vstack([x * root[:, None], prior]), np.concatenate([y * root, prior[:, -1]]))
        rest = y - x @ coefficients
        scale = spread(rest)
        weights = huber_weights(rest, scale)
        if not scale:
            break
    return np.asarray(coefficients)


def huber_weights(rest: Array, scale: float | Array) -> Array:
    """How much what is left of values counts, 1 where it is no more than noise (Huber 1964).

    Args:
        rest: what is left, shape (values,).
        scale: its standard deviation, of all or of each.
    """
    return np.minimum(1.0, _TUNING * scale / np.maximum(np.abs(rest), 1e-12))


def spread(values: Array) -> float:
    """Standard deviation as the median absolute one tells it of normal values."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))


def _variance_of_median(values: Array) -> float:
    """Of the median over all turns, from those of blocks that follow each other."""
    number = min(BLOCKS, len(values))  # some turns may lack the place
    blocks = [np.median(block) for block in np.array_split(values, number)]
    return float(np.var(blocks, ddof=1)) / number


def _understated(levels: Mapping[str, tuple[Array, float]]) -> dict[str, float]:
    """By which factor blocks understate how far runs are apart, by name of the sum; never less than all tell together.

    Few runs tell little of one sum, so that its own factor counts beside that of all sums, as if that were worth some
    runs. The last run, which may have changed, is left out.
    """
    worth = len(next(iter(levels.values()))[0]) - 2
    if worth < 1:
        return dict.fromkeys(levels, _UNDERSTATED)
    own = {
        name: float(np.var(medians[:-1], ddof=1)) / max(variance, 1e-12) for name, (medians, variance) in levels.items()
    }
    every = (_WORTH * _UNDERSTATED + worth * float(np.median(list(own.values())))) / (_WORTH + worth)
    every = max(1.0, every)
    return {name: max(every, (_WORTH * every + worth * each) / (_WORTH + worth)) for name, each in own.items()}
