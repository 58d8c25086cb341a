"""Points that hypothesis draws: within the engine's limits, of every kind, and none that a regressor may see."""

from __future__ import annotations

import pytest
from hypothesis import given

from pytest_dooly.core.batch import Batch
from pytest_dooly.core.operation import OperationKind
from pytest_dooly.core.signature import Signature
from pytest_dooly.sweep.grid import refinements, sweep, within
from pytest_dooly.sweep.strategies import batches, held_out_points, sweep_points
from tests.samples import ATTENTION, LIMITS, LINEAR, SAMPLER

EXPERTS = Signature(OperationKind.MOE, "moe", (), (("num_local_experts", 8), ("top_k", 2)), "routing")


@given(batches(LIMITS))
def test_a_batch_is_within_the_limits(batch: Batch) -> None:
    assert within(batch, LIMITS)


def test_attention_meets_ragged_decodes_chunks_and_mixtures() -> None:
    drawn = [point.batch for point in held_out_points(ATTENTION, LIMITS, 24) if point.batch]
    kinds = [{request.query_len > 1 for request in batch.requests} for batch in drawn]
    assert {True} in kinds
    assert {False} in kinds
    assert {True, False} in kinds
    assert any(len({request.context_len for request in batch.requests}) > 2 for batch in drawn)


@given(sweep_points(EXPERTS, LIMITS))
def test_a_routing_can_be_had(point: object) -> None:
    num_tokens, routing = point.num_tokens, point.routing  # type: ignore[attr-defined]
    assert 2 <= routing.activated <= 8
    assert routing.busiest * routing.activated >= 2 * num_tokens
    assert routing.busiest <= num_tokens
    assert routing.activated - 1 <= 2 * num_tokens - routing.busiest


@pytest.mark.parametrize("signature", [LINEAR, SAMPLER, ATTENTION, EXPERTS])
def test_held_out_points_are_always_the_same_and_never_those_of_the_sweep(signature: Signature) -> None:
    points = held_out_points(signature, LIMITS, 6)
    assert points == held_out_points(signature, LIMITS, 6)
    assert not set(points) & {*sweep(signature, LIMITS), *refinements(signature, LIMITS)}
    assert len(points) == (2 if signature is SAMPLER else 6)
