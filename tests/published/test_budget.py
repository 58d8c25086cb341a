"""What profiling would still take, operation by operation, before a GPU is rented."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from pytest_dooly.core.batch import Limits
from pytest_dooly.core.signature import Signature
from pytest_dooly.published.basis import Basis, BasisKind, Foundation
from pytest_dooly.published.budget import SET_UP_S, Budget, Verdict, budget_of
from pytest_dooly.published.estimate import Estimate
from pytest_dooly.sweep.grid import refinements, sweep
from pytest_dooly.sweep.plan import case_cost_s
from tests.samples import LIMITS, served, uses
from tests.traced import DEVICE, NORM, attention, collective, linear

LINEARS = tuple(linear(n, 1024) for n in (1024, 2048, 3072, 4096))
KINDS: tuple[BasisKind, ...] = ("measured", "published", "across sizes", "estimate")


def founded(bases: Mapping[Signature, Basis]) -> dict[str, Foundation]:
    return {each.key: Foundation(Estimate(each, DEVICE), basis) for each, basis in bases.items()}


def unknown(*signatures: Signature) -> dict[str, Foundation]:
    return founded(dict.fromkeys(signatures, Basis("estimate", 0, (), None)))


def verdicts(budget: Budget) -> list[Verdict]:
    return [need.verdict for need in budget.needs]


def test_only_what_is_not_known_well_enough_is_to_be_timed() -> None:
    bases = [Basis(kind, 10, ("somewhere",), None if kind == "estimate" else 0.04) for kind in KINDS]
    model = served(*map(uses, LINEARS))
    foundations = [founded(dict(zip(LINEARS, bases, strict=True)))]
    (budget,) = budget_of([model], foundations, DEVICE, target=0.05)
    assert verdicts(budget) == ["in the DB", "in the DB", "predicted", "to time"]
    (stricter,) = budget_of([model], foundations, DEVICE, target=0.03)
    assert verdicts(stricter) == ["in the DB", "in the DB", "to time", "to time"]
    assert [stricter.count(each) for each in ("in the DB", "predicted", "shared", "to time")] == [2, 0, 0, 2]
    assert all(need.cases == need.most_cases == need.device_s == need.most_device_s == 0 for need in budget.needs[:3])


def test_what_is_timed_takes_its_sweep_and_at_most_every_refinement() -> None:
    signature = LINEARS[0]
    (budget,) = budget_of([served(uses(signature))], [unknown(signature)], DEVICE)
    (need,) = budget.needs
    coarse, finer = sweep(signature, LIMITS), refinements(signature, LIMITS)
    assert (need.cases, need.most_cases) == (len(coarse), len(coarse) + len(finer))
    assert need.device_s == pytest.approx(sum(case_cost_s(signature, point, gpu=True) for point in coarse))
    assert need.most_device_s == pytest.approx(
        sum(case_cost_s(signature, point, gpu=True) for point in (*coarse, *finer))
    )
    assert budget.device_s == SET_UP_S + need.device_s
    assert budget.most_device_s == SET_UP_S + need.most_device_s


def test_a_model_of_which_all_is_known_needs_no_engine() -> None:
    (budget,) = budget_of([served(uses(NORM))], [founded({NORM: Basis("measured", 9, (), None)})], DEVICE)
    assert budget.set_up_s == budget.device_s == budget.most_device_s == 0


def test_what_models_share_is_timed_for_the_first() -> None:
    cpu, gpu = attention(32, 8, 128), attention(32, 8, 128, backend="FLASH_ATTN")
    models = [served(uses(cpu), uses(LINEARS[0])), served(uses(gpu), uses(LINEARS[1]))]
    first, second = budget_of(models, [unknown(cpu, LINEARS[0]), unknown(gpu, LINEARS[1])], DEVICE)
    assert verdicts(first) == ["to time", "to time"]
    assert verdicts(second) == ["shared", "to time"]
    (_, timed) = second.needs
    assert second.device_s == SET_UP_S + timed.device_s


def test_a_later_model_with_larger_limits_times_only_what_lies_beyond() -> None:
    signature = LINEARS[0]
    models = [served(uses(signature)), served(uses(signature), limits=Limits(2048, 8, 2048))]
    first, second = budget_of(models, [unknown(signature)] * 2, DEVICE)
    assert verdicts(second) == ["to time"]
    assert second.needs[0].cases == 2  # of 1,024 and of 2,048 tokens
    both = {*sweep(signature, models[1].limits), *refinements(signature, models[1].limits)}
    assert first.needs[0].most_cases + second.needs[0].most_cases == len(both)


def test_a_collective_takes_every_rank() -> None:
    two, four = (collective("all_reduce", 4096, ranks) for ranks in (2, 4))
    (budget,) = budget_of([served(uses(two), uses(four))], [unknown(two, four)], DEVICE)
    assert budget.needs[1].device_s == pytest.approx(2 * budget.needs[0].device_s)
    assert budget.needs[1].cases == budget.needs[0].cases


def test_a_budget_as_json() -> None:
    model = served(uses(LINEARS[0], 3), uses(NORM))
    bases = {LINEARS[0]: Basis("estimate", 0, (), None), NORM: Basis("published", 7, ("there",), 0.1)}
    (budget,) = budget_of([model], [founded(bases)], DEVICE)
    document = json.loads(json.dumps(budget.to_json()))
    assert document["model"] == "small"
    assert document["device"] == "toy"
    assert document["set_up_s"] + sum(o["device_s"] for o in document["operations"]) == document["device_s"]
    timed, known = document["operations"]
    assert (timed["label"], timed["multiplicity"], timed["verdict"]) == (LINEARS[0].label, 3, "to time")
    assert timed["most_cases"] > timed["cases"] > 0
    assert document["most_device_s"] == document["set_up_s"] + timed["most_device_s"]
    assert known["basis"] == {"kind": "published", "num_rows": 7, "sources": ["there"], "error": 0.1, "reliable": True}
