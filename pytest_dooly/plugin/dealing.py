"""A scheduler of pytest-xdist that gives all cases of an operation to one worker, so that its sweep can be refined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling, LoadGroupScheduling, LoadScopeScheduling

from pytest_dooly.sweep.plan import Case

__all__ = ["OperationScheduling"]

_OTHERS = {"loadfile": LoadFileScheduling, "loadgroup": LoadGroupScheduling, "loadscope": LoadScopeScheduling}
"""How items that time no case are dealt, by --dist; one by one for any other."""


class OperationScheduling(LoadScopeScheduling):
    """Deals whole operations, the longest first; a worker keeps to its model while that has any left.

    Another model means another start of the engine. What times no case is dealt as `--dist` says, after the cases.
    """

    def __init__(self, config: pytest.Config, log: Any, *, cases: Sequence[Case]) -> None:
        """Knows the cases by their ids.

        Args:
            config: of the session.
            log: xdist's.
            cases: of the plan.
        """
        super().__init__(config, log)
        self._operations: Mapping[str, str] = {case.id: f"operation {case.operation.signature.key}" for case in cases}
        self._models = {self._operations[case.id]: case.model.key for case in cases}
        self._seconds = dict.fromkeys(self._models, 0.0)
        for case in cases:
            self._seconds[self._operations[case.id]] += case.spent_s
        others = _OTHERS.get(config.getoption("dist"))
        self._others = None if others is None else others(config, log)
        self._model_of: dict[Any, str | None] = {}

    def _split_scope(self, nodeid: str) -> str:
        """The unit that an item is dealt with: its case's operation, or what --dist makes of it."""
        _, _, name = nodeid.partition("[")
        operation = self._operations.get(name.partition("]@")[0].removesuffix("]"))
        if operation is not None:
            return operation
        return nodeid if self._others is None else self._others._split_scope(nodeid)

    def _assign_work_unit(self, node: Any) -> None:
        """Gives a worker the unit that is best done next."""
        scope = min(self.workqueue, key=partial(self._rank, node))
        self._model_of[node] = self._models.get(scope, self._model_of.get(node))
        self.workqueue.move_to_end(scope, last=False)
        super()._assign_work_unit(node)

    def _rank(self, node: Any, scope: str) -> tuple[bool, bool, float]:
        others_model = self._model_of.get(node) not in (None, self._models.get(scope))
        return scope not in self._models, others_model, -self._seconds.get(scope, 0.0)
