"""The arrays that Dynamo's mocker reads, against the steps that they stand for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pytest_dooly.core.batch import Limits
from pytest_dooly.hosts.dynamo import step_tables
from tests.hosts.conftest import Steps, of_steps


def test_each_time_is_that_of_a_step_with_as_many_tokens(tmp_path: Path) -> None:
    backend = of_steps(lambda step: 1e-3 + 1e-6 * step.num_tokens + 1e-9 * step.decode_tokens)
    tables = step_tables(backend)
    tables.write(tmp_path / "new" / "times.npz")
    with np.load(tmp_path / "new" / "times.npz") as read:
        arrays = {name: read[name] for name in read.files}
    lengths, contexts, tokens = (
        arrays[name] for name in ("prefill_isl", "decode_context_length", "decode_active_kv_tokens")
    )
    assert arrays["prefill_ttft_ms"] == pytest.approx(1 + 1e-3 * lengths)
    limits = backend.model.limits
    assert (lengths[0], lengths[-1]) == (1, limits.max_num_tokens)
    assert (contexts[0], contexts[-1]) == (16, limits.max_model_len - 1)
    assert (tokens[0], tokens[-1]) == (16, limits.max_num_seqs * (limits.max_model_len - 1))
    assert all((np.diff(axis) > 0).all() for axis in (lengths, contexts, tokens))
    assert arrays["decode_itl"].shape == (len(tokens), len(contexts))
    numbers = np.clip(np.rint(tokens[:, None] / contexts), 1, limits.max_num_seqs)
    assert arrays["decode_itl"] == pytest.approx(1 + 1e-3 * numbers + 1e-6 * numbers * contexts)


@pytest.mark.parametrize(
    ("step_s", "off"), [(lambda step: 1e-6 * step.num_tokens, 0.0), (lambda step: 1e-3, 1.0)], ids=["sum", "once"]
)
def test_what_mixed_steps_are_off_by_is_told(step_s: Steps, off: float) -> None:
    found = step_tables(of_steps(step_s)).mixed
    assert (found.mean, found.worst, found.bias) == pytest.approx((off, off, off), abs=1e-12)
    assert found.points > 5


@pytest.mark.parametrize("limits", [Limits(2, 1, 3), Limits(8, 1, 9), Limits(512, 1, 100)])
def test_the_smallest_models_have_tables(limits: Limits) -> None:
    tables = step_tables(of_steps(lambda step: 1.0, limits))
    assert all(np.isfinite(array).all() and len(array) > 1 for array in tables.arrays.values())
    assert tables.mixed.points == 0  # one request at a time
