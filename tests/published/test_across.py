"""Regressors across sizes learn a known function, know how well, and come back from JSON as they were."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest

from pytest_dooly.errors import MissingExtraError
from pytest_dooly.published.across import FEWEST_ROWS, AcrossSizes

Array = npt.NDArray[np.float64]

TOKENS = [2.0**i for i in range(12)]


def features(width: Array, tokens: Array) -> Array:
    return np.column_stack([np.log2(width), np.log2(tokens), np.ceil(tokens / 64), tokens % 8])


def roofline_s(width: Array, tokens: Array) -> Array:
    return 1e-10 * np.maximum(width * tokens, 40 * width)


def latency_s(width: Array, tokens: Array) -> Array:
    """A kernel that starts up, and pays for whole tiles of 64 tokens."""
    return 3e-6 + 1.4e-10 * width * np.maximum(64 * np.ceil(tokens / 64), 64)


def rows(widths: npt.ArrayLike, tokens: Sequence[float] = TOKENS) -> tuple[Array, Array, Array, npt.NDArray[np.intp]]:
    """Features, roofline and latency of each width at each number of tokens, and which width it is."""
    width, each = (values.ravel() for values in np.meshgrid(widths, tokens, indexing="ij"))
    groups = np.repeat(np.arange(np.size(widths)), len(tokens))
    return features(width, each), roofline_s(width, each), latency_s(width, each), groups


@cache
def learnt(least: float = 1024.0, most: float = 32_768.0) -> AcrossSizes:
    return AcrossSizes.fit(*rows(np.geomspace(least, most, 30)), 2)


def test_it_learns_a_function_of_sizes_between_those_it_has_seen() -> None:
    matrix, roofline, latencies, _ = rows(np.geomspace(1500.0, 25_000.0, 17))
    predicted, expected = learnt().predict(matrix, roofline)
    errors = np.abs(predicted / latencies - 1)
    assert np.median(errors) < 0.03
    assert np.quantile(errors, 0.95) < 0.12
    assert predicted.shape == expected.shape == latencies.shape
    assert (expected > 0).all()
    assert errors.mean() < expected.mean() < 0.1  # the widest and the narrowest of the fit count when they are left out


def test_what_was_found_out_where_sizes_and_rows_were_left_out() -> None:
    for median, tail in filter(None, (learnt().unseen_sizes, learnt().unseen_rows)):
        assert 0 < median < tail < 0.3
    assert learnt().unseen_sizes is not None
    assert learnt().unseen_rows is not None


def noisy(seed: int) -> AcrossSizes:
    """Fitted to latencies that follow no rule above a width of 8,192."""
    matrix, roofline, latencies, groups = rows(np.geomspace(1024.0, 32_768.0, 40))
    wild = np.random.default_rng(seed).lognormal(0, 0.5, len(latencies))
    return AcrossSizes.fit(matrix, roofline, np.where(matrix[:, 0] > 13, wild, 1) * latencies, groups, 2)


def test_the_error_is_expected_where_it_is() -> None:
    regressor = noisy(0)
    calm, wild = (regressor.predict(*rows([width])[:2])[1].mean() for width in (2100.0, 20_000.0))
    assert wild > 3 * calm


def test_more_error_is_expected_the_farther_a_size_is_from_measured_ones() -> None:
    # Sizes by threes and singly in turn, of a law that bends between them: nearer sizes say more.
    exponents = [
        power + beside for power in range(6, 22) for beside in ((-0.06, 0.0, 0.06) if power % 2 == 0 else (0.0,))
    ]
    matrix, roofline, latencies, groups = rows(2.0 ** np.array(exponents))
    regressor = AcrossSizes.fit(matrix, roofline, latencies * (1 + 0.4 * np.sin(4 * matrix[:, 0])), groups, 2)
    threes = np.arange(8.0, 20.0, 2.0)
    seen, near, far = (regressor.predict(*rows(2.0 ** (threes + away))[:2])[1].mean() for away in (0.0, 0.03, 0.5))
    assert 4 * seen < near < 0.8 * far


def test_json_gives_back_the_same_predictions_bit_by_bit() -> None:
    document = json.dumps(learnt().to_json(), allow_nan=False)
    again = AcrossSizes.from_json(json.loads(document))
    assert again == learnt()
    matrix, roofline, *_ = rows(np.geomspace(700.0, 60_000.0, 9), [float(i) for i in range(1, 50)])
    for one, other in zip(learnt().predict(matrix, roofline), again.predict(matrix, roofline), strict=True):
        assert np.array_equal(one, other)
    assert set(json.loads(document)) == {field.name for field in dataclasses.fields(AcrossSizes)}


def test_what_is_stored_is_text_and_numbers() -> None:
    def kinds(value: object) -> set[type]:
        if isinstance(value, dict):
            return set().union(*map(kinds, value.values()))
        if isinstance(value, list | tuple):
            return set().union(*map(kinds, value))
        return {type(value)}

    assert kinds(learnt().to_json()) <= {str, float, int}
    assert all(text.startswith("tree\n") for text in (*learnt().trees, learnt().error_trees))  # LightGBM's own format


def test_fitting_again_gives_the_same_regressor() -> None:
    learning = rows(np.geomspace(1024.0, 32_768.0, 10))
    assert AcrossSizes.fit(*learning, 2) == AcrossSizes.fit(*learning, 2)


def test_a_few_rows_of_one_size_are_fitted_too() -> None:
    matrix, roofline, latencies, groups = rows([4096.0], [16.0 * i for i in range(1, FEWEST_ROWS + 1)])
    regressor = AcrossSizes.fit(matrix, roofline, latencies, groups, 2)
    predicted, expected = regressor.predict(matrix, roofline)
    assert np.abs(predicted / latencies - 1).max() < 0.25
    assert (expected >= 0).all()
    assert regressor.unseen_sizes is None
    assert regressor.unseen_rows is not None
    assert AcrossSizes.from_json(json.loads(json.dumps(regressor.to_json(), allow_nan=False))) == regressor


def test_where_every_size_has_one_row_all_that_is_known_is_of_new_sizes() -> None:
    regressor = AcrossSizes.fit(*rows(np.geomspace(64.0, 65_536.0, 40), [16.0]), 2)
    assert regressor.unseen_sizes is not None
    assert regressor.unseen_rows is None
    assert AcrossSizes.from_json(regressor.to_json()) == regressor


def test_without_lightgbm_there_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(MissingExtraError, match=r"needs lightgbm: run pip install 'pytest-dooly\[public-data\]'"):
        AcrossSizes.fit(*rows([1024.0, 2048.0]), 2)
