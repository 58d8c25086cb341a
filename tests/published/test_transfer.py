"""Latencies of an operation of which nothing is published: of its weights as bf16, times what the data sheet says."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.core.signature import Signature
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.published.estimate import Estimate
from pytest_dooly.published.grounds import Grounds
from pytest_dooly.published.parts import basis_at
from pytest_dooly.published.transfer import OF_ANOTHER_PRECISION, unquantised
from tests.samples import LIMITS
from tests.traced import DEEPSEEK_MOE, DEVICE, GRID, KNOWN, linears, table


@pytest.fixture
def db(tmp_path: Path) -> Iterator[LatencyDB]:
    with LatencyDB.open(tmp_path / "latency.db") as opened:
        yield opened


def quantised(signature: Signature, dtype: str, method: str, precision: str, *scales: str) -> Signature:
    tensors = [
        (role, dtype if role.endswith("weight") and role != "gate.weight" else kept, shape)
        for role, kept, shape in signature.tensors
    ]
    attributes = dict(signature.attributes) | {"method": method, "precision": precision}
    return dataclasses.replace(
        signature,
        tensors=(*tensors, *((role, "fp32", (8, 8)) for role in scales)),
        attributes=tuple(sorted(attributes.items())),
    )


@pytest.mark.parametrize(
    ("dtype", "method", "precision", "scales"),
    [
        ("float8_e4m3fn", "fp8", "fp8_block", ["weight_scale_inv"]),
        ("float8_e4m3fn", "modelopt", "fp8", ["weight_scale", "input_scale"]),
        ("uint4", "autoawqmarlin", "int4", ["qzeros", "scales"]),
        ("uint4", "compressedtensors", "int4", ["weight_scale", "weight_zero_point", "weight_g_idx", "weight_shape"]),
        ("uint4", "modeloptnvfp4", "nvfp4", ["weight_scale", "weight_scale_2", "weight_global_scale", "input_scale"]),
    ],
)
def test_weights_as_bf16_are_those_of_the_model_that_is_not_quantised(
    dtype: str, method: str, precision: str, scales: list[str]
) -> None:
    for signature in (KNOWN, DEEPSEEK_MOE):
        assert unquantised(quantised(signature, dtype, method, precision, *scales)) == signature


def test_what_is_not_quantised_is_not_taken_for_anything_else() -> None:
    single = dataclasses.replace(KNOWN, tensors=(KNOWN.tensors[0], ("weight", "fp32", (256, 1024))))
    assert unquantised(KNOWN) is unquantised(DEEPSEEK_MOE) is unquantised(single) is None


def test_a_precision_without_latencies_takes_those_of_bf16_by_the_data_sheet(db: LatencyDB) -> None:
    four_bits = quantised(KNOWN, "uint4", "autoawqmarlin", "int4", "scales")
    db.publish(table(linears(GRID)))
    grounds = Grounds(db, DEVICE)
    wide, founded = grounds.foundation(KNOWN, LIMITS), grounds.foundation(four_bits, LIMITS)
    assert founded.basis.kind == "another precision"
    assert founded.basis.sources == ("tables 1, gemm.parquet, for int4 weights",)
    assert founded.basis.num_rows == wide.basis.num_rows
    assert not founded.basis.within(1.0)
    points = [SweepPoint(num_tokens=1), SweepPoint(num_tokens=4096)]
    few, many = founded.model.predict_s(points) / wide.model.predict_s(points)
    # One token waits for a quarter of 4 MB of weights and a launch; 4,096 compute as much as with any weights.
    assert few == pytest.approx(
        Estimate(four_bits, DEVICE).predict_s(points)[0] / Estimate(KNOWN, DEVICE).predict_s(points)[0]
    )
    assert 0.25 < few < 0.75
    assert many == pytest.approx(1)
    own, moved = basis_at(wide, points), basis_at(founded, points)
    assert moved.error == pytest.approx(np.hypot(own.error or 0, OF_ANOTHER_PRECISION))


def test_latencies_of_the_precision_itself_come_first(db: LatencyDB) -> None:
    eight_bits = quantised(KNOWN, "float8_e4m3fn", "modelopt", "fp8", "weight_scale")
    db.publish(table(linears(GRID)))
    of_eight = {
        (dataclasses.replace(signature, attributes=(("method", "fp8"),)), point): latency_s
        for (signature, point), latency_s in linears(GRID).items()
    }
    db.publish(table(of_eight, file="fp8"))
    founded = Grounds(db, DEVICE).foundation(eight_bits, LIMITS)
    assert founded.basis.kind == "published"
    assert founded.basis.sources == ("tables 1, fp8",)


def test_nothing_known_of_bf16_either_is_an_estimate(db: LatencyDB) -> None:
    four_bits = quantised(KNOWN, "uint4", "autoawqmarlin", "int4", "scales")
    assert Grounds(db, DEVICE).foundation(four_bits, LIMITS).model == Estimate(four_bits, DEVICE)
