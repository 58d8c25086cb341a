"""Operations alone beside the same operations within a real step: how far isolation can be trusted."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_dooly.core.document import Document

__all__ = ["InSitu", "InSituRow", "InSituStep"]


@dataclass(frozen=True)
class InSituRow:
    """One operation at one batch.

    Attributes:
        label: readable signature.
        kind: what it is.
        batch: what the step works on, as text.
        multiplicity: how often the step runs it.
        isolated_s: median latency alone, in seconds.
        in_situ_s: median latency within the step, in seconds.
        noise: relative noise of the latency within the step, 0.05 for 5 %.
    """

    label: str
    kind: str
    batch: str
    multiplicity: int
    isolated_s: float
    in_situ_s: float
    noise: float

    @property
    def error(self) -> float:
        """Signed relative error of the isolated latency, positive where it is too high."""
        return self.isolated_s / self.in_situ_s - 1


@dataclass(frozen=True)
class InSituStep:
    """All operations of one batch.

    Attributes:
        batch: what the step works on, as text.
        rows: those that take most of the step first.
    """

    batch: str
    rows: tuple[InSituRow, ...]

    @property
    def isolated_s(self) -> float:
        """Latency of all operations together, each as often as the step runs it, as timed alone; in seconds."""
        return sum(row.multiplicity * row.isolated_s for row in self.rows)

    @property
    def in_situ_s(self) -> float:
        """The same as timed within the step, in seconds."""
        return sum(row.multiplicity * row.in_situ_s for row in self.rows)

    @property
    def error(self) -> float:
        """Signed relative error of the isolated latencies' sum."""
        return self.isolated_s / self.in_situ_s - 1

    def share(self, row: InSituRow) -> float:
        """Share of the operation in the latency of all within the step, 0.05 for 5 %."""
        return row.multiplicity * row.in_situ_s / self.in_situ_s


@dataclass(frozen=True)
class InSitu(Document):
    """Operations of a model at several batches, alone and within a step.

    Attributes:
        rows: one an operation and batch, in any order.
    """

    rows: tuple[InSituRow, ...]

    @property
    def steps(self) -> tuple[InSituStep, ...]:
        """The rows by batch, in the order in which batches first occur."""
        batches = dict.fromkeys(row.batch for row in self.rows)
        return tuple(
            InSituStep(batch, tuple(sorted((row for row in self.rows if row.batch == batch), key=_cost, reverse=True)))
            for batch in batches
        )


def _cost(row: InSituRow) -> float:
    return row.multiplicity * row.in_situ_s
