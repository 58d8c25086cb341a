"""Which points are held out together, and what is tried for which features."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.model_selection import LeaveOneOut, PredefinedSplit

from pytest_dooly.core.signature import Signature
from pytest_dooly.regress.fit import work_frame
from pytest_dooly.regress.selection import feature_sets, folds_of, sets_with
from pytest_dooly.sweep.grid import sweep
from tests.samples import ADMISSION, ATTENTION, LIMITS, LINEAR, MIXTURE, SAMPLER, STEP


@pytest.mark.parametrize("count", [3, 7, 12, 13, 40])
def test_folds_are_a_predefined_split_that_never_leaves_the_extremes_out(count: int) -> None:
    latencies_s = np.random.default_rng(0).lognormal(size=count)
    folds = folds_of(latencies_s)
    of_fold = np.full(count, -1)
    for number, fold in enumerate(folds):
        of_fold[fold] = number
    assert set(np.flatnonzero(of_fold == -1)) == {latencies_s.argmin(), latencies_s.argmax()}
    held = [set(out) for _, out in PredefinedSplit(of_fold).split()]
    assert held == [set(fold) for fold in folds]
    assert sum(map(len, held)) == count - 2
    if count <= 12:
        assert len(held) == LeaveOneOut().get_n_splits(latencies_s) - 2
    else:
        ranks = latencies_s.argsort().argsort()
        assert all(np.diff(sorted(ranks[fold])).min() == len(folds) == 5 for fold in folds)  # neighbours stay


@pytest.mark.parametrize("count", [0, 1, 2])
def test_of_two_points_none_is_held_out(count: int) -> None:
    assert folds_of(np.ones(count)) == []


@pytest.mark.parametrize("signature", [LINEAR, SAMPLER, ATTENTION, MIXTURE, STEP, ADMISSION])
def test_an_operation_is_told_by_its_features(signature: Signature) -> None:
    columns = list(work_frame(signature, sweep(signature, LIMITS)))
    assert sets_with(columns[::-1]) == feature_sets(signature, routed=True)
    assert sets_with(columns[1:]) == {"columns": tuple(columns[1:])}
