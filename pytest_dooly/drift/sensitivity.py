"""How much more or less than the others an operation notices what slows all of them down, learnt from earlier runs.

A machine in another state takes longer for everything, but not for everything alike: what waits for memory notices a
crowded cache, what computes a lower clock. How an operation stands beside the others is then a line through what all
have in common, whose slope is near 0. Earlier runs since the baseline say what it is, the less surely the less those
had in common; a prior stands for a machine that has always been in one state (ridge regression: Hoerl and Kennard 1970,
with Huber's weights).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pytest_dooly.drift.change import ITERATIONS, TAILS, UNEQUAL, Change, huber_weights

__all__ = ["Earlier", "Slope", "at_one_state", "slopes"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Earlier:
    """What an earlier run has found against the same baseline.

    Attributes:
        common: what all operations have changed by alike, as a logarithm.
        apart: change of each operation beside the others, by name; those that had drifted are left out.
    """

    common: float
    apart: Mapping[str, Change]


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
        pairs = [(run.common, run.apart[name].log, run.apart[name].error) for run in earlier if name in run.apart]
        found[name] = _slope(*np.array(pairs).T) if pairs else Slope()
    return found


def at_one_state(found: Mapping[str, Change], common: float, slopes: Mapping[str, Slope]) -> dict[str, Change]:
    """Changes beside the others, as they would be with the machine in the state that it was in at the baseline.

    Args:
        found: by name.
        common: what all have in common, as a logarithm.
        slopes: by name.
    """
    return {
        name: replace(change, log=change.log - slopes[name].value * common).less_sure(
            abs(slopes[name].error * common), slopes[name].freedom
        )
        for name, change in found.items()
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
