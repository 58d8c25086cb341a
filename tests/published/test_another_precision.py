"""Latencies of a precision of which nothing is published, or nothing near: of another one, and what data sheets say."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.core.device import Device
from pytest_dooly.core.signature import Signature
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.published.another_precision import OF_ANOTHER_PRECISION, like
from pytest_dooly.published.estimate import Estimate
from pytest_dooly.published.family import Family, parts_of
from pytest_dooly.published.grounds import Grounds
from pytest_dooly.published.kernels import estimated_s, speedup
from pytest_dooly.published.parts import basis_at
from tests.samples import LIMITS
from tests.traced import DEEPSEEK_MOE, DEVICE, GRID, KNOWN, linear, linears, table

FEW, MANY = SweepPoint(num_tokens=1), SweepPoint(num_tokens=4096)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[LatencyDB]:
    with LatencyDB.open(tmp_path / "latency.db") as opened:
        yield opened


def publish(
    db: LatencyDB, precision: str, sizes: tuple[tuple[int, int], ...] = GRID, factor: float = 1.0, noise: float = 0.0
) -> None:
    """Tables of products with weights in a precision, in a file of that name."""
    rng = np.random.default_rng(0)
    found = {
        (dataclasses.replace(signature, attributes=(("method", precision),)), point): latency_s
        * (1 + noise * rng.random())
        for (signature, point), latency_s in linears(sizes, factor=factor).items()
    }
    db.publish(table(found, file=precision))


def quantised(precision: str, n: int = 2048, k: int = 1024) -> Signature:
    dtype = "uint4" if precision == "int4" else "int8" if precision.startswith("int8") else "float8_e4m3fn"
    return linear(n, k, precision, dtype)


def test_what_the_data_sheet_says_of_both_precisions_is_added(db: LatencyDB) -> None:
    publish(db, "unquantized", factor=2.0)
    grounds = Grounds(db, DEVICE)
    wide, founded = grounds.foundation(KNOWN, LIMITS), grounds.foundation(quantised("int4"), LIMITS)
    assert founded.basis.kind == "another precision"
    assert founded.basis.sources == ("tables 1, unquantized, for int4 weights",)
    assert founded.basis.num_rows == wide.basis.num_rows
    assert not founded.basis.within(1.0)
    of_four, of_sixteen = (each.model.predict_s([FEW, MANY]) for each in (founded, wide))
    # One token waits for 1.5 bytes less of two million weights, at 80 % of 1 TB/s.
    fewer_bytes = 1.5 * 2048 * 1024
    assert of_sixteen[0] - of_four[0] == pytest.approx(fewer_bytes / 0.8e12)
    assert of_four[1] == pytest.approx(of_sixteen[1])  # 4,096 compute as much: there are no cores for 4 bits beside 16
    own, moved = basis_at(wide, [FEW, MANY]), basis_at(founded, [FEW, MANY])
    assert moved.error == pytest.approx(np.hypot(own.error or 0, OF_ANOTHER_PRECISION), rel=0.05)


def test_what_computes_gains_where_there_are_cores_for_it(db: LatencyDB) -> None:
    publish(db, "unquantized")
    old = dataclasses.replace(DEVICE, compute_capability=(8, 0))
    for device, eight_bits, gains in ((DEVICE, "fp8", True), (old, "fp8", False), (old, "int8", True)):
        grounds = Grounds(db, device)
        wide, founded = (
            grounds.foundation(s, LIMITS).model.predict_s([MANY])[0] for s in (KNOWN, quantised(eight_bits))
        )
        saved = wide - founded
        assert saved == pytest.approx(2 * 4096 * 2048 * 1024 / 0.7e14 / 2 if gains else 0), (device, eight_bits)
        assert speedup(eight_bits, device) == (2 if gains else 1)


def test_it_takes_no_less_than_the_data_sheet_says(db: LatencyDB) -> None:
    publish(db, "unquantized", factor=0.5)
    (part,) = parts_of(quantised("int4"))
    found = Grounds(db, DEVICE).foundation(quantised("int4"), LIMITS).model.predict_s([FEW])[0]
    columns = {"k": np.array([1024.0]), "n": np.array([2048.0]), "num_tokens": np.array([1.0])}
    assert found == pytest.approx(estimated_s(part.family, columns, DEVICE)[0])
    assert found == pytest.approx(Estimate(quantised("int4"), DEVICE).predict_s([FEW])[0], rel=0.01)


def test_latencies_of_the_precision_itself_come_first(db: LatencyDB) -> None:
    publish(db, "unquantized")
    publish(db, "fp8")
    founded = Grounds(db, DEVICE).foundation(quantised("fp8"), LIMITS)
    assert (founded.basis.kind, founded.basis.sources) == ("published", ("tables 1, fp8",))
    between = Grounds(db, DEVICE).foundation(quantised("fp8", 3072, 1536), LIMITS)
    assert (between.basis.kind, between.basis.sources) == ("across sizes", ("tables 1, fp8",))


def test_latencies_of_far_sizes_do_not_come_before_near_ones_of_another_precision(db: LatencyDB) -> None:
    publish(db, "unquantized")
    publish(db, "int4", tuple((n, k) for n in (16, 32, 64) for k in (16, 32, 64)), noise=1.0)
    grounds = Grounds(db, DEVICE)
    assert grounds.foundation(quantised("int4", 64, 32), LIMITS).basis.kind == "published"
    founded = grounds.foundation(quantised("int4"), LIMITS)
    assert founded.basis.sources == ("tables 1, unquantized, for int4 weights",)


def test_one_value_of_a_size_says_nothing_of_values_far_away(db: LatencyDB) -> None:
    """How latencies change with it is not known, however well they agree with each other."""
    publish(db, "unquantized")
    publish(db, "int4", tuple((n, 256) for n in (512, 1024, 2048, 4096)))
    grounds = Grounds(db, DEVICE)
    assert grounds.foundation(quantised("int4", 3000, 256), LIMITS).basis.sources == ("tables 1, int4",)
    assert grounds.foundation(quantised("int4", 2048, 384), LIMITS).basis.sources == ("tables 1, int4",)
    founded = grounds.foundation(quantised("int4", 2048, 1024), LIMITS)
    assert founded.basis.sources == ("tables 1, unquantized, for int4 weights",)


def test_a_precision_whose_kernels_do_as_much_comes_before_bf16_wherever_it_has_the_sizes(db: LatencyDB) -> None:
    publish(db, "unquantized")
    publish(db, "fp8", noise=0.5)
    for n, k in ((2048, 1024), (3072, 1536)):
        founded = Grounds(db, DEVICE).foundation(quantised("int8", n, k), LIMITS)
        assert founded.basis.sources == ("tables 1, fp8, for int8 weights",)
    publish(db, "fp8_block", ((512, 512), (724, 512)))
    assert Grounds(db, DEVICE).foundation(quantised("fp8_block", 4096, 8192), LIMITS).basis.sources == (
        "tables 1, fp8, for fp8_block weights",
    )


def test_each_part_of_a_mixture_rests_on_what_is_known_of_it(db: LatencyDB) -> None:
    """A router that is quantised as its experts are takes these nothing of what is published of them."""
    publish(db, "unquantized")
    experts = dataclasses.replace(
        DEEPSEEK_MOE,
        tensors=tuple(t for t in DEEPSEEK_MOE.tensors if "shared" not in t[0] and t[0] != "gate.weight"),
        attributes=tuple(sorted({**dict(DEEPSEEK_MOE.attributes), "method": "int4"}.items())),
    )
    points = [SweepPoint(num_tokens=round(2 ** (n / 4))) for n in range(8, 45)]
    db.publish(table({(experts, point): 1e-3 * (point.num_tokens or 0) ** 0.5 for point in points}, file="experts"))
    attributes = experts.attributes
    gates = {
        dtype: dataclasses.replace(
            experts, tensors=(*experts.tensors, ("gate.weight", dtype, (64, 2048))), attributes=attributes
        )
        for dtype in ("bf16", "uint4")
    }
    founded = {dtype: Grounds(db, DEVICE).foundation(each, LIMITS) for dtype, each in gates.items()}
    assert founded["bf16"].basis.sources == ("tables 1, experts", "tables 1, unquantized")
    assert founded["uint4"].basis.sources == ("tables 1, experts", "tables 1, unquantized, for int4 weights")
    assert {each.basis.kind for each in founded.values()} == {"across sizes"}  # as the experts, which take most of it
    ours = founded["uint4"].model.predict_s([SweepPoint(num_tokens=64)])[0]
    assert 0.8 < ours / founded["bf16"].model.predict_s([SweepPoint(num_tokens=64)])[0] <= 1
    assert (
        basis_at(founded["uint4"], [points[-1]]).error or 1
    ) < OF_ANOTHER_PRECISION / 2  # most of it is the experts'


def test_nothing_known_of_any_precision_is_an_estimate(db: LatencyDB) -> None:
    assert Grounds(db, DEVICE).foundation(quantised("int4"), LIMITS).model == Estimate(quantised("int4"), DEVICE)


@pytest.mark.parametrize(
    ("asked", "capability", "expected"),
    [
        ("fp8_block", (9, 0), ["fp8", "bf16"]),
        ("int8", (9, 0), ["fp8", "bf16"]),
        ("int8", (8, 0), ["bf16"]),  # which has no cores for fp8
        ("int8_weights", (8, 0), ["fp8", "bf16"]),
        ("int4", (9, 0), ["mxfp4", "bf16"]),
        ("nvfp4", (10, 0), ["bf16"]),
        ("bf16", (9, 0), []),
    ],
)
def test_precisions_whose_kernels_do_as_much_come_before_bf16(
    asked: str, capability: tuple[int, int], expected: list[str]
) -> None:
    device: Device = dataclasses.replace(DEVICE, compute_capability=capability)
    known = [Family("experts", each) for each in ("bf16", "mxfp4", "fp8")]
    other = [Family("gemm", "bf16"), Family("experts", "fp8 auto"), Family("experts", "bf16", "FLASH_ATTN")]
    found = like(Family("experts", asked), [*known, *other, Family("experts", asked)], device)
    assert [each.precision for each in found] == expected
