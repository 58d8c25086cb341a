"""Sweep grids: up to the engine's limits, never beyond, shared between limits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dooly.core.batch import Limits
from pytest_dooly.core.operation import OperationKind
from pytest_dooly.core.signature import Signature
from pytest_dooly.sweep.grid import kv_tokens, refinements, sweep
from tests.samples import ADMISSION, ATTENTION, LIMITS, LINEAR, SAMPLER, STEP

EVERY = [LINEAR, SAMPLER, ATTENTION, STEP, ADMISSION]
limits_of_engines = st.builds(Limits, st.integers(8, 20_000), st.integers(1, 8), st.integers(8, 140_000))


def test_tokens_grow_fourfold_up_to_the_limit_itself_and_double_where_refined() -> None:
    assert [str(point) for point in sweep(LINEAR, Limits(12, 2, 64))] == ["T1", "T4", "T12"]
    assert [str(point) for point in refinements(LINEAR, Limits(12, 2, 64))] == ["T2", "T8", "T3", "T6", "T10"]


def test_requests_grow_fourfold_up_to_the_limit_itself() -> None:
    assert [str(point) for point in sweep(SAMPLER, LIMITS)] == ["R1", "R4", "R8"]


def test_experts_are_few_or_many_and_evenly_or_unevenly_met() -> None:
    experts = Signature(OperationKind.MOE, "moe", (), (("num_local_experts", 8), ("top_k", 2)), "routing")
    points = {str(point) for point in sweep(experts, Limits(16, 4, 64))}
    assert points == {"T1E2M1", "T4E2M4", "T4E8M1", "T16E2M16", "T16E8M4", "T16E8M16"}


def test_attention_is_swept_over_prefills_decodes_and_mixtures() -> None:
    batches = [point.batch for point in sweep(ATTENTION, LIMITS) if point.batch]
    assert any(b.num_reqs == 1 and b.requests[0].query_len == 512 for b in batches)
    assert any(b.num_reqs == 1 and b.requests[0].query_len > 1 and b.requests[0].context_len for b in batches)
    assert any(b.num_reqs == 8 and b.num_tokens == 8 and b.requests[0].context_len == 1023 for b in batches)
    assert any({r.query_len > 1 for r in b.requests} == {True, False} for b in batches)
    assert any(b.num_tokens == b.num_reqs and len({r.context_len for r in b.requests}) == 2 for b in batches)


@pytest.mark.parametrize("signature", EVERY)
@given(limits=limits_of_engines)
def test_no_point_exceeds_a_limit_and_none_comes_twice(signature: Signature, limits: Limits) -> None:
    assert sweep(signature, limits)
    points = sweep(signature, limits) + refinements(signature, limits)
    assert len(points) == len(set(points))
    for point in points:
        assert (point.num_tokens or 1) <= limits.max_num_tokens
        assert (point.num_reqs or 1) <= limits.max_num_seqs
        if point.batch:
            assert point.batch.num_tokens <= limits.max_num_tokens
            assert point.batch.num_reqs <= limits.max_num_seqs
            assert all(request.seq_len <= limits.max_model_len for request in point.batch.requests)
            assert sum(request.seq_len for request in point.batch.requests) <= kv_tokens(limits)


@pytest.mark.parametrize("signature", [LINEAR, SAMPLER])
def test_larger_limits_share_the_points_of_smaller_ones(signature: Signature) -> None:
    larger = Limits(2048, 32, 4096)
    assert set(sweep(signature, Limits(512, 8, 1024))) <= {*sweep(signature, larger), *refinements(signature, larger)}
