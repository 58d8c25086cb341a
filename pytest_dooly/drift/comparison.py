"""A run of the gate beside the runs of its baseline: what figures and operations have changed by, and all alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_dooly.drift.change import Change, Timed, Weights, changes, common_change, less_sure
from pytest_dooly.drift.sensitivity import Earlier, as_unsteady, at_one_state, slopes

__all__ = ["Comparison", "compared", "seen_by"]


@dataclass(frozen=True)
class Comparison:
    """What has changed.

    Attributes:
        figures: by name.
        operations: beside the others, with the machine in the state that it was in at the baseline; by name.
        common: what all operations have changed by alike, as a logarithm.
    """

    figures: Mapping[str, Change]
    operations: Mapping[str, Change]
    common: float


def compared(
    new: Timed,
    baseline: Sequence[Timed],
    figures: Mapping[str, Weights],
    operations: Mapping[str, Weights],
    earlier: Sequence[Earlier] = (),
) -> Comparison:
    """Changes from the runs of the baseline to a new one.

    Args:
        new: at least BLOCKS turns.
        baseline: likewise, at least one run.
        figures: weighted sums of latencies, by name.
        operations: likewise; operations are compared with each other.
        earlier: what other runs since the baseline have found.
    """
    seen = seen_by(new, baseline, operations)
    learnt = slopes(earlier, operations)
    of_operations = as_unsteady(at_one_state(seen.apart, seen.common, learnt), earlier, learnt)
    return Comparison(less_sure(changes(new, baseline, figures), seen.common), of_operations, seen.common)


def seen_by(
    run: Timed,
    baseline: Sequence[Timed],
    operations: Mapping[str, Weights],
    *,
    drifted: frozenset[str] = frozenset(),
) -> Earlier:
    """What a run finds of operations, as later runs learn from it.

    Args:
        run: at least BLOCKS turns.
        baseline: likewise, at least one run.
        operations: weighted sums of latencies, by name.
        drifted: operations that no machine has slowed down.
    """
    apart = changes(run, baseline, operations, apart=True)
    common = common_change(changes(run, baseline, operations))
    return Earlier(common, apart, drifted)
