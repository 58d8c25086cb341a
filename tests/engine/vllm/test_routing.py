"""Choices of experts: as a sweep point asks, and different experts for every token."""

from __future__ import annotations

import pytest
from hypothesis import given

from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.core.operation import OperationKind
from pytest_dooly.core.signature import Signature
from pytest_dooly.engine.vllm.routing import _spread
from pytest_dooly.errors import EngineError
from pytest_dooly.sweep.strategies import sweep_points
from tests.samples import LIMITS

EXPERTS = Signature(OperationKind.MOE, "moe", (), (("num_local_experts", 8), ("top_k", 2)), "routing")


@given(sweep_points(EXPERTS, LIMITS))
def test_tokens_spread_as_asked(point: SweepPoint) -> None:
    assert point.num_tokens is not None
    assert point.routing is not None
    chosen = _spread(point.num_tokens, 2, 8, point.routing.activated, point.routing.busiest)
    counts = chosen.flatten().bincount(minlength=8)
    assert chosen.shape == (point.num_tokens, 2)
    assert (chosen[:, 0] != chosen[:, 1]).all()
    assert int((counts > 0).sum()) == point.routing.activated
    assert int(counts.max()) == point.routing.busiest


@pytest.mark.parametrize(("activated", "busiest"), [(1, 4), (9, 1), (4, 5), (4, 1), (8, 2)])
def test_what_cannot_be_had_is_said(activated: int, busiest: int) -> None:
    with pytest.raises(EngineError, match=f"cannot activate {activated} with {busiest} tokens"):
        _spread(4, 2, 8, activated, busiest)
