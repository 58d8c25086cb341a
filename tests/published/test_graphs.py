"""Captured sizes against vLLM's own list of them, launches against the step that they hide behind."""

from __future__ import annotations

import bisect
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pytest_dooly.core.batch import Batch, Limits, SweepPoint
from pytest_dooly.core.operation import GAP, OperationKind
from pytest_dooly.core.signature import ServedModel, Signature
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.prediction.step import predict_step, step_operations
from pytest_dooly.prediction.step_times import StepTimes
from pytest_dooly.published.graphs import COMPILED_S, KERNEL_S, LayerLaunches, kernels_of, layer_launches, padded
from pytest_dooly.published.grounds import Grounds
from tests.samples import served, uses
from tests.traced import DEVICE, GRID, KNOWN, MAMBA, MIXTRAL_MOE, NORM, attention, linear, linears, table

CAPTURED = [1, 2, 4, *range(8, 256, 8), *range(256, 513, 16)]
"""vLLM's default (`_set_cudagraph_sizes` of vllm/config/vllm.py, 0.32)."""

LAYER = Signature(OperationKind.OVERHEAD, GAP, (), (), "num_tokens")
LIMITS = Limits(max_num_tokens=8192, max_num_seqs=256, max_model_len=4096)


@pytest.mark.parametrize("largest", [0, 8, 64, 512])
def test_a_step_is_padded_to_the_next_size_that_is_captured(largest: int) -> None:
    sizes = [size for size in CAPTURED if size <= largest]
    tokens = np.arange(1, 700)
    expected = [sizes[bisect.bisect_left(sizes, n)] if n <= largest else n for n in tokens]
    assert padded(tokens.astype(float), largest).tolist() == expected


@pytest.mark.parametrize(
    ("limits", "captured"),
    [
        (Limits(8192, 1024, 4096), 512),
        (Limits(8192, 4, 4096), 8),
        (Limits(256, 1024, 4096), 256),
        (Limits(8192, 1024, 4096, 2048), 2048),
        (Limits(8192, 1024, 4096, 0), 0),
    ],
)
def test_the_largest_captured_step_is_vllms_where_nothing_is_said(limits: Limits, captured: int) -> None:
    assert limits.captured_tokens == captured


def test_a_captured_step_launches_nothing_and_a_longer_one_all_of_its_layers() -> None:
    launches = LayerLaunches(launch_s=1e-4, captured_tokens=512)
    points = [SweepPoint(num_tokens=n) for n in (1, 512, 513, 8192)]
    assert launches.predict_s(points).tolist() == [0, 0, 1e-4, 1e-4]
    assert launches.out_of_range(points[-1]) is None


@dataclass(frozen=True)
class Prompt:
    """A step that works on one prompt."""

    num_tokens: int
    num_decodes: int = 0
    decode_tokens: int = 0

    @property
    def chunks(self) -> Sequence[tuple[int, int]]:
        return [(self.num_tokens, 0)]


def small() -> ServedModel:
    """Four layers of a product, a norm and attention: two compiled kernels, and two that Python launches."""
    return ServedModel(
        "small", "small", "Small", LIMITS, tuple(uses(each, 4) for each in (KNOWN, NORM, attention(8, 8, 64), LAYER))
    )


def test_an_operation_of_several_kernels_launches_each() -> None:
    assert [kernels_of(each) for each in (NORM, linear(64, 64), attention(8, 8, 64), MIXTRAL_MOE)] == [1, 1, 2, 8]
    assert kernels_of(MAMBA) == 4 + 2  # both projections, and convolution, recurrence, gate and norm between them


def test_launches_of_a_layer_are_those_of_its_operations() -> None:
    launches = layer_launches(small())
    assert launches.launch_s == pytest.approx(2 * COMPILED_S + 2 * KERNEL_S)
    assert launches.captured_tokens == 512


def test_a_gpus_launches_are_seen_as_far_as_they_exceed_the_work(tmp_path: Path) -> None:
    model = small()
    with LatencyDB.open(tmp_path / "latency.db") as db:
        db.publish(table(linears(GRID)))
        models = {key: each.model for key, each in Grounds(db, DEVICE).of(model).items()}
    for tokens in (512, 600, 4096):
        step = predict_step(model, models, Batch.uniform(1, tokens))
        *forward, launched = (operation.latency_s for operation in step.operations)
        expected_s = max(0.0, 4 * (2 * COMPILED_S + 2 * KERNEL_S) - sum(forward)) if tokens > 512 else 0.0
        assert launched == pytest.approx(expected_s)
        simulated_s = StepTimes(model, models).step_s(Prompt(tokens))
        assert simulated_s == pytest.approx(step.latency_s, rel=0.02)
    assert len(step_operations(model)) == 4


def test_operations_on_tokens_are_padded_and_attention_is_not(tmp_path: Path) -> None:
    model = served(uses(KNOWN))
    with LatencyDB.open(tmp_path / "latency.db") as db:
        db.publish(table(linears(GRID)))
        latencies = Grounds(db, DEVICE).of(model)[KNOWN.key].model
    alone, full, beyond = latencies.predict_s([SweepPoint(num_tokens=n) for n in (9, 16, 17)])
    assert alone == full < beyond


@pytest.mark.skipif(importlib.util.find_spec("aiconfigurator_core") is None, reason="needs the extra public-data")
def test_what_a_launch_takes_is_half_of_a_published_floor() -> None:
    import aiconfigurator_core
    import pandas as pd

    tables = Path(aiconfigurator_core.__path__[0]) / "systems/data"
    for device in ("h100_sxm", "h200_sxm"):
        rows = pd.read_parquet(
            tables / device / "gemm/vllm/0.24.0/gemm_perf.parquet", columns=["kernel_source", "latency"]
        )
        floor_ms = rows[rows.kernel_source == "DeepGemmFp8BlockScaledMMKernel"].latency.quantile(0.05)
        assert pytest.approx(floor_ms / 2e3, rel=0.01) == KERNEL_S
