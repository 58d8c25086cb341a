"""Two models' plans -> which operations they share, which differ and in what, and the profiling time saved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pytest_dooly.core.signature import ModelOperation, Signature
from pytest_dooly.sweep.plan import Case, Plan

__all__ = ["Difference", "Pair", "diff"]


@dataclass(frozen=True)
class Pair:
    """Operations of two models that do the same with other sizes or attributes.

    Attributes:
        first: of the first model.
        second: of the second model.
        changes: one line for each tensor or attribute that differs.
    """

    first: ModelOperation
    second: ModelOperation
    changes: tuple[str, ...]


@dataclass(frozen=True)
class Difference:
    """What two models share.

    Attributes:
        shared: operations of equal signature, as the second model uses them.
        differing: operations of one kind and name that differ.
        only_first: operations without a counterpart in the second model.
        only_second: operations without a counterpart in the first model.
        total_s: about what profiling the second model alone takes, in seconds.
        saved_s: what of it profiling the first model has done already, in seconds.
    """

    shared: tuple[ModelOperation, ...]
    differing: tuple[Pair, ...]
    only_first: tuple[ModelOperation, ...]
    only_second: tuple[ModelOperation, ...]
    total_s: float
    saved_s: float

    @property
    def share_saved(self) -> float:
        """Share of the second model's profiling time that the first one saves, 1 for all."""
        return self.saved_s / self.total_s if self.total_s else 0.0


def diff(first: Plan, second: Plan) -> Difference:
    """What the second plan's model shares with the first one's.

    Args:
        first: of one model.
        second: of another one.
    """
    mine, theirs = ({op.signature: op for op in plan.models[0].operations} for plan in (first, second))
    lacking = [op for signature, op in mine.items() if signature not in theirs]
    differing, only_second = [], []
    for signature, op in theirs.items():
        if signature in mine:
            continue
        other = min(
            (each for each in lacking if _same(each.signature, signature)),
            key=lambda each: len(list(_changes(each.signature, signature))),
            default=None,
        )
        if other is None:
            only_second.append(op)
        else:
            lacking.remove(other)
            differing.append(Pair(other, op, tuple(_changes(other.signature, signature))))
    done = {(case.operation.signature, case.point) for case in _taken(first)}
    return Difference(
        shared=tuple(op for signature, op in theirs.items() if signature in mine),
        differing=tuple(differing),
        only_first=tuple(lacking),
        only_second=tuple(only_second),
        total_s=sum(case.spent_s for case in _taken(second)),
        saved_s=sum(case.spent_s for case in _taken(second) if (case.operation.signature, case.point) in done),
    )


def _taken(plan: Plan) -> tuple[Case, ...]:
    """The cases of a sweep, without those that may turn out not to be needed."""
    return plan.new + plan.reused


def _same(first: Signature, second: Signature) -> bool:
    return (first.kind, first.name) == (second.kind, second.name)


def _changes(first: Signature, second: Signature) -> Iterator[str]:
    for before, after in (
        (_tensors(first), _tensors(second)),
        (dict(first.attributes), dict(second.attributes)),
    ):
        for name in sorted({*before, *after}):
            if before.get(name) != after.get(name):
                yield f"{name}: {before.get(name, 'none')} -> {after.get(name, 'none')}"


def _tensors(signature: Signature) -> dict[str, str | int | float | bool]:
    return {role: f"{dtype} [{', '.join(map(str, shape))}]" for role, dtype, shape in signature.tensors}
