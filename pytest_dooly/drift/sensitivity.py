"""How operations differ from each other without a change, learnt from earlier runs and from the run itself.

A machine in another state takes longer for everything, but not for everything alike: what waits for memory notices a
crowded cache, what computes a lower clock. How an operation stands beside the others is then a line through what all
have in common, whose slope is near 0. Earlier runs since the baseline say what it is, the less surely the less those
had in common; a prior stands for a machine that has always been in one state (ridge regression: Hoerl and Kennard 1970,
with Huber's weights).

Nor does a state have one dimension: on a virtual processor whose sibling thread is somebody else's, single products
take 10 to 25 % more or less for minutes, whatever the others do. So a change is as unsure, at least, as operations are
apart from each other in the same run, and as the operation itself was from run to run. Both are told by medians of
deviations, which neither an operation that drifts nor a run that it does so in moves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pytest_dooly.drift.change import ITERATIONS, TAILS, UNEQUAL, Change, huber_weights, spread

__all__ = ["Earlier", "Slope", "as_unsteady", "at_one_state", "slopes"]

Array = npt.NDArray[np.float64]


_FEWEST = 3
"""Runs, or operations, that have a spread."""

_WORTH = 3.0
"""Runs that the spread of all operations counts for beside an operation's own."""


@dataclass(frozen=True)
class Earlier:
    """What an earlier run has found against the same baseline.

    Attributes:
        common: what all operations have changed by alike, as a logarithm.
        apart: change of each operation beside the others, by name.
        drifted: names of those that were slower, which is nothing to learn a slope from.
    """

    common: float
    apart: Mapping[str, Change]
    drifted: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Slope:
    """Of an operation's place beside the others over what all have in common.

    Attributes:
        value: 0 where it notices as much as the others, in the median.
        error: standard error.
        freedom: degrees of freedom of that.
    """

    value: float = 0.0
    error: float = UNEQUAL
    freedom: float = TAILS


def slopes(earlier: Sequence[Earlier], names: Iterable[str]) -> dict[str, Slope]:
    """The slope of each operation, by name.

    Args:
        earlier: runs; none for what is assumed of any machine.
        names: of the operations.
    """
    found = {}
    for name in names:
        runs = [run for run in earlier if name in run.apart.keys() - run.drifted]
        pairs = [(run.common, run.apart[name].log, run.apart[name].error) for run in runs]
        found[name] = _slope(*np.array(pairs).T) if pairs else Slope()
    return found


def at_one_state(found: Mapping[str, Change], common: float, slopes: Mapping[str, Slope]) -> dict[str, Change]:
    """Changes beside the others, as they would be with the machine in the state that it was in at the baseline.

    What is slower only beside others that are all faster may simply not have noticed what made them so: until earlier
    runs tell its slope, it is as unsure as those have changed.

    Args:
        found: by name.
        common: what all have in common, as a logarithm.
        slopes: by name.
    """
    told = {}
    for name, change in found.items():
        slope = slopes[name]
        at_one = replace(change, log=change.log - slope.value * common)
        unknown = (slope.error / UNEQUAL) ** 2 if at_one.log * common < 0 else 0.0  # the prior's part of the slope
        told[name] = at_one.less_sure(math.hypot(slope.error, unknown) * abs(common), slope.freedom)
    return told


def as_unsteady(
    found: Mapping[str, Change], earlier: Sequence[Earlier], slopes: Mapping[str, Slope]
) -> dict[str, Change]:
    """Changes from the middle one, as unsure as operations are apart from each other, in this run and from run to run.

    Args:
        found: of all operations beside the others, at one state, by name.
        earlier: other runs.
        slopes: of the operations, by name.
    """
    logs = np.array([change.log for change in found.values()])
    middle, now = (float(np.median(logs)), spread(logs)) if len(found) > _FEWEST else (0.0, 0.0)
    over_runs = _over_runs(earlier, found, slopes)
    return {
        name: replace(change, log=change.log - middle).less_sure(
            max(0.0, max(now, over_runs[name]) ** 2 - change.error**2) ** 0.5, TAILS
        )
        for name, change in found.items()
    }


def _over_runs(earlier: Sequence[Earlier], names: Iterable[str], slopes: Mapping[str, Slope]) -> dict[str, float]:
    """How far an operation is from itself from run to run, by name; of few runs what all are."""
    of_each = {
        name: [run.apart[name].log - slopes[name].value * run.common for run in earlier if name in run.apart]
        for name in names
    }
    own = {name: spread(np.array(logs)) for name, logs in of_each.items() if len(logs) >= _FEWEST}
    every = float(np.median(list(own.values()))) if own else 0.0
    return {
        name: ((_WORTH * every**2 + len(logs) * own.get(name, every) ** 2) / (_WORTH + len(logs))) ** 0.5
        for name, logs in of_each.items()
    }


def _slope(common: Array, apart: Array, errors: Array) -> Slope:
    """Least squares over runs, each of shape (runs,), and over the prior."""
    weights = np.ones(len(common))
    for _ in range(ITERATIONS):
        known = float((weights * (common / errors) ** 2).sum())
        told = known + UNEQUAL**-2
        value = float((weights * common * apart / errors**2).sum()) / told
        weights = huber_weights(apart - value * common, errors)
    return Slope(value, told**-0.5, TAILS * told * UNEQUAL**2)
