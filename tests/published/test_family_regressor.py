"""A regressor across sizes: where it applies."""

from __future__ import annotations

import dataclasses
from typing import cast

import numpy as np
import numpy.typing as npt

from pytest_dooly.published.across import AcrossSizes
from pytest_dooly.published.family import Family, Part, parts_of
from pytest_dooly.published.family_regressor import FamilyRegressor
from tests.traced import (
    DEVICE,
    KNOWN,
)

Array = npt.NDArray[np.float64]


class Constant:
    """A learner that always says the same."""

    def __init__(self, latency_s: float, error: float) -> None:
        self.latency_s, self.error = latency_s, error

    def predict(self, matrix: Array, roofline_s: Array) -> tuple[Array, Array]:
        return np.full(len(matrix), self.latency_s), np.full(len(matrix), self.error)


def regressor(family: Family, latency_s: float, error: float = 0.1, **ranges: tuple[float, float]) -> FamilyRegressor:
    return FamilyRegressor(family, DEVICE, cast("AcrossSizes", Constant(latency_s, error)), ranges, {}, ())


def test_the_column_that_lies_furthest_outside_is_named() -> None:
    outside = regressor(Family("gemm", "bf16"), 1e-3, k=(512.0, 1000.0), n=(512.0, 1024.0), num_tokens=(1.0, 32.0))
    columns = {"k": np.array([1024.0]), "n": np.array([2048.0]), "num_tokens": np.array([33.0])}
    assert outside.out_of_range(columns) == "n 2,048 is outside of the published 512 to 1,024"
    assert not outside.spans(parts_of(KNOWN)[0])


def test_a_size_in_a_gap_is_not_between_sizes_that_say_much_of_it() -> None:
    family = Family("gemm", "bf16")
    known = regressor(family, 1e-3, k=(512.0, 2048.0), n=(512.0, 16_384.0), num_tokens=(1.0, 32.0))
    known = dataclasses.replace(
        known, rows={(("k", k), ("n", n)): 4 for k in (512, 1024, 2048) for n in (512, 1024, 16_384)}
    )

    def spans(n: int, k: int = 1024) -> bool:
        return known.spans(Part(family, (("k", k), ("n", n))))

    assert spans(1024)
    assert spans(2048)
    assert spans(8192, 700)
    assert not spans(4096)  # two doublings from the next
    assert not spans(256)


def test_a_prompt_of_one_token_is_within_the_range_of_the_shortest_decodes() -> None:
    family = regressor(Family("decode", "auto"), 1e-3, batch_size=(1.0, 8.0), context_len=(1.0, 1024.0))
    assert family.out_of_range({"batch_size": np.array([1.0]), "context_len": np.array([0.0])}) is None
    longer = regressor(Family("decode", "auto"), 1e-3, batch_size=(1.0, 8.0), context_len=(64.0, 1024.0))
    assert longer.out_of_range({"batch_size": np.array([1.0]), "context_len": np.array([0.0])}) is not None


def test_part_of_a_prompt_is_within_the_range_of_whole_ones() -> None:
    family = regressor(Family("prefill", "auto"), 1e-3, batch_size=(1.0, 8.0), prompt_len=(16.0, 1024.0))
    assert family.out_of_range({"batch_size": np.array([0.2]), "prompt_len": np.array([100.0])}) is None
    assert family.out_of_range({"batch_size": np.array([9.0]), "prompt_len": np.array([100.0])}) is not None
