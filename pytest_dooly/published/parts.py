"""The latency of an operation as the sum of its parts'."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.core.signature import engines_of
from pytest_dooly.core.work import Work
from pytest_dooly.published.another_precision import KernelModel
from pytest_dooly.published.basis import Basis, BasisKind, Foundation
from pytest_dooly.published.estimate import EXPECTED_ERROR, Estimate
from pytest_dooly.published.family import Columns, Part, columns_of, rest_of, running
from pytest_dooly.published.graphs import padded
from pytest_dooly.published.transfer import Transferred

__all__ = ["PartsModel", "basis_at"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PartsModel:
    """The latency of an operation as the sum of its parts'; half the estimate at least, where one is taken off.

    Attributes:
        parts: each with the regressor of its family.
        estimate: of the operation.
        mixed: in place of the parts where a step has prompts and decodes; None for the sum of both.
        captured_tokens: most tokens of a step that is padded to a captured size; 0 where none is.
    """

    parts: tuple[tuple[Part, KernelModel], ...]
    estimate: Estimate
    mixed: tuple[Part, KernelModel] | None = None
    captured_tokens: int = 0

    @cached_property
    def rest(self) -> Estimate | None:
        """Estimate of what the operation does besides its parts; None where they are all."""
        besides = rest_of(self.estimate.signature)
        return None if besides is None else replace(self.estimate, signature=besides)

    @property
    def grounds(self) -> str:
        """What it was fitted to, for people."""
        families = dict.fromkeys(regressor.family for _, regressor in self.parts)
        rows = {regressor.family: sum(regressor.rows.values()) for _, regressor in self.parts}
        return ", ".join(f"{rows[family]:,} published latencies of {family}" for family in families)

    def predict_s(self, points: Sequence[SweepPoint] | Work) -> Array:
        """Latencies in seconds, shape (points,)."""
        return self.predict(points)[0]

    def predict(self, points: Sequence[SweepPoint] | Work) -> tuple[Array, Array]:
        """Latencies in seconds and their expected relative errors, each of shape (points,)."""
        work = points if isinstance(points, Work) else Work.of(points)
        total, squares = np.zeros(len(work)), np.zeros(len(work))
        for part, regressor, columns, runs in self._asked(work):
            latency_s, error = regressor.predict(columns)
            total[runs] += part.sign * latency_s
            squares[runs] += (latency_s * error) ** 2
        if self.rest is not None:
            rest_s = self.rest.predict_s(work)
            total += rest_s
            squares += (rest_s * EXPECTED_ERROR) ** 2
        if any(part.sign < 0 for part, _ in self.parts):
            total = np.maximum(total, self.estimate.predict_s(work) / 2)
        return total, np.sqrt(squares) / np.maximum(total, 1e-12)

    def most_of(self, points: Sequence[SweepPoint] | Work) -> KernelModel:
        """What the part is predicted by that takes most of the latency at some points."""
        work = points if isinstance(points, Work) else Work.of(points)
        spent = [(float(each.predict(columns)[0].sum()), each) for part, each, columns, _ in self._asked(work)]
        return max(spent, key=lambda each: each[0])[1]

    def out_of_range(self, points: SweepPoint | Work) -> str | None:
        """One line on what lies furthest outside of the published latencies, or None."""
        work = points if isinstance(points, Work) else Work.of([points])
        lines = (regressor.out_of_range(columns) for _, regressor, columns, _ in self._asked(work))
        return next((line for line in lines if line is not None), None)

    def beyond(self, points: Sequence[SweepPoint] | Work) -> float:
        """Relative error that distance adds, of the part that it adds most to; the furthest point counts."""
        work = points if isinstance(points, Work) else Work.of(points)
        return max((regressor.beyond(columns) for _, regressor, columns, _ in self._asked(work)), default=0.0)

    def _asked(self, work: Work) -> Iterator[tuple[Part, KernelModel, Columns, npt.NDArray[np.bool_]]]:
        """Each part with its regressor, the columns of the points that run it, and which points those are."""
        mixed = np.zeros(len(work), dtype=bool)
        if self.mixed is not None:
            mixed = running(columns_of(self.mixed[0], work), len(work))
        if self.captured_tokens:
            work = self._padded(work)
        for part, regressor in (*self.parts, *([self.mixed] if self.mixed else [])):
            columns = columns_of(part, work)
            runs = running(columns, len(work)) & (mixed == (part.family.kernel == "mixed"))
            if runs.any():
                yield part, regressor, {name: values[runs] for name, values in columns.items()}, runs

    def _padded(self, work: Work) -> Work:
        """The same with the tokens that fill a captured size up, at each of the engines that share experts."""
        gathered = work.gathered
        if gathered is not None:
            engines = engines_of(self.estimate.signature)
            gathered = engines * padded(gathered / engines, self.captured_tokens)
        return replace(work, query_lens=padded(work.query_lens, self.captured_tokens), gathered=gathered)


def basis_at(foundation: Foundation, points: Sequence[SweepPoint] | Work) -> Basis:
    """What the prediction of some points rests on: their own expected error, and latencies near them or far away.

    An operation's own sizes may be published with all their latencies elsewhere: prompts alone, or short contexts.

    Args:
        foundation: of an operation.
        points: that are predicted.
    """
    model, basis = foundation.model, foundation.basis
    if isinstance(model, Transferred):
        return model.basis(basis_at(model.foundation, points))
    if not isinstance(model, PartsModel):
        return basis
    latencies_s, errors = model.predict(points)
    if not latencies_s.any():
        return basis
    beyond = model.beyond(points)
    kind: BasisKind = "across sizes" if beyond and basis.kind == "published" else basis.kind
    return replace(basis, kind=kind, error=float(np.hypot(np.average(errors, weights=latencies_s), beyond)))
