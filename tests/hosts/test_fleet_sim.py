"""A GPU of the fleet simulator, by its protocol as recorded, and within itself where it is named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Protocol, runtime_checkable

import pytest

import pytest_dooly
from pytest_dooly.core.device import device_named
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.hosts.fleet_sim import GpuProfile, gpu_profile
from pytest_dooly.prediction.step_times import Shape
from pytest_dooly.published.footprint import cache_room
from tests.hosts.conftest import of_steps, planned

CLONE, PYTHON = os.environ.get("DOOLY_FLEET_SIM"), os.environ.get("DOOLY_HOSTS_PYTHON", sys.executable)


@runtime_checkable
class Recorded(Protocol):
    """`GpuProfile` of vllm-sr-sim 0.1."""

    name: str
    cost_per_hr: float

    def iter_latency(self, n_active: int, mean_seq_len: float | None = None) -> float: ...
    def prefill_iter_latency(
        self, chunk_tokens: int, kv_history_tokens: float, n_active: int, mean_seq_len: float | None = None
    ) -> float: ...
    def n_slots(self, max_ctx: int) -> int: ...
    def service_time(self, l_in: int, l_out: int, max_ctx: int) -> float: ...
    def throughput(self, max_ctx: int, mean_l_in: float, mean_l_out: float) -> float: ...


@pytest.fixture
def gpu() -> GpuProfile:
    """Steps of a second, a thousandth a new token and a millionth a token before; 512 tokens and 8 requests a step."""
    return GpuProfile("toy", 2.0, of_steps(_law), total_kv_blks=100, chunk=64)


def _law(step: Shape) -> float:
    before = step.decode_tokens + sum(context_len for _, context_len in step.chunks)
    return float(1 + 1e-3 * step.num_tokens + 1e-6 * before)


def test_it_has_the_simulator_s_form(gpu: GpuProfile) -> None:
    assert isinstance(gpu, Recorded)
    assert (gpu.chunk, gpu.blk_size) == (64, 16)


def test_steps_are_those_that_the_simulator_means(gpu: GpuProfile) -> None:
    assert gpu.iter_latency(4, 100.5) == pytest.approx(1 + 4e-3 + 400e-6)
    assert gpu.iter_latency(0, 100) == gpu.iter_latency(1, 100)
    assert gpu.iter_latency(1) == pytest.approx(1 + 1e-3 + 1023e-6)  # no longer than the model's longest request
    assert gpu.prefill_iter_latency(64, 32.0, 3, 100) == pytest.approx(1 + 66e-3 + 232e-6)
    assert gpu.prefill_iter_latency(64, 32.0, 0, 100) == pytest.approx(1 + 64e-3 + 32e-6)
    assert gpu.prefill_iter_latency(9999, 0.0, 3, 100) == pytest.approx(1 + 512e-3 + 200e-6)
    assert gpu.prefill_iter_latency(64, 1e9, 1, 100) == pytest.approx(1 + 64e-3 + 960e-6)


def test_slots_are_what_blocks_and_engine_hold(gpu: GpuProfile) -> None:
    assert [gpu.n_slots(length) for length in (16, 200, 400, 1601)] == [8, 7, 4, 1]


def test_a_request_takes_its_chunks_and_its_tokens(gpu: GpuProfile) -> None:
    expected_s = 2 * gpu.prefill_iter_latency(64, 50, 8, 110) + 10 * gpu.iter_latency(8, 110)
    assert gpu.service_time(100, 10, 110) == pytest.approx(expected_s)
    assert gpu.throughput(110, 100.0, 10.0) == pytest.approx(8 / expected_s)


def test_a_model_of_a_latency_db(db: Path) -> None:
    gpu = gpu_profile("planned", device="h200_sxm", cost_per_hr=3.5, db=db)
    assert gpu.total_kv_blks == cache_room(planned(), device_named("h200_sxm")).num_blocks
    backend = pytest_dooly.backend("planned", device="h200_sxm", db=db)
    assert gpu.iter_latency(3, 300) == backend.step_s([(1, 300)] * 3)
    with pytest.raises(ConfigurationError, match="chunk must be at least 1, got 0"):
        gpu_profile("planned", device="h200_sxm", cost_per_hr=3.5, db=db, chunk=0)


@pytest.mark.skipif(CLONE is None, reason="DOOLY_FLEET_SIM names no directory that holds fleet_sim")
def test_the_fleet_simulator_itself(db: Path) -> None:
    code = (
        "from fleet_sim.gpu_profiles.protocol import GpuProfile; from pytest_dooly.hosts.fleet_sim import gpu_profile; "
        f"gpu = gpu_profile('planned', device='h200_sxm', cost_per_hr=3.5, db={str(db)!r}); "
        "assert isinstance(gpu, GpuProfile)"
    )
    path = os.pathsep.join([str(Path(pytest_dooly.__path__[0]).parent), str(CLONE)])
    subprocess.run([PYTHON, "-c", code], check=True, env={**os.environ, "PYTHONPATH": path})
