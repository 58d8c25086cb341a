"""Six numbers of llm-d-inference-sim: found again where steps are of its form, and how far they are off where not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pytest_dooly.core.batch import Limits
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.hosts.backend import Backend
from pytest_dooly.hosts.llm_d import fitted
from pytest_dooly.prediction.step_times import Shape
from tests.hosts.conftest import of_steps
from tests.samples import uses
from tests.traced import DEVICE, attention

LIMITS = Limits(max_num_tokens=100_000, max_num_seqs=11, max_model_len=8192)
KEPT = uses(attention(8, 2, 64), 4)
"""Keeps keys and values, 4 layers of them."""


def backend(step_s: object, limits: Limits = LIMITS) -> Backend:
    made = of_steps(step_s, limits)  # type: ignore[arg-type]
    made.model = replace(made.model, operations=(KEPT,))
    return made


def of_the_form(step: Shape) -> float:
    """Twice as long with 11 requests as with one."""
    factor = 1 + 0.1 * (step.num_decodes + len(step.chunks) - 1)
    return factor * sum((5e-3 + 1e-5 * query_len for query_len, _ in step.chunks), 0.0 if step.chunks else 7e-3)


def test_numbers_of_the_form_are_found(tmp_path: Path) -> None:
    found = fitted(backend(of_the_form), DEVICE, prompt_len=1000, output_len=100)
    assert found.prefill_overhead_s == pytest.approx(5e-3)
    assert found.prefill_time_per_token_s == pytest.approx(1e-5)
    assert found.inter_token_latency_s == pytest.approx(7e-3)
    assert found.time_factor_under_load == pytest.approx(2.0)
    assert found.kv_cache_transfer_time_per_token_s == pytest.approx(4 * 2 * 2 * (2 * 64) / DEVICE.link_bytes_per_s)
    assert found.ttft.worst == pytest.approx(0, abs=1e-6)
    assert found.itl.worst == pytest.approx(0, abs=1e-6)
    found.write(tmp_path / "latencies.yaml")
    lines = (tmp_path / "latencies.yaml").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        "latency-calculator: per-token",
        "prefill-overhead: 5000.000us",
        "prefill-time-per-token: 10.000us",
        "inter-token-latency: 7000.000us",
        "time-factor-under-load: 2.0000",
        "kv-cache-transfer-time-per-token: 0.020us",
        "max-num-seqs: 11",
    ]
    assert lines[: len(found.lines)] == [f"# {line}" for line in found.lines]
    assert "lawful on toy, prompts of 250 to 4,000 tokens, 1,050 in the KV cache of a request" in lines[0]
    assert "1 to 11 requests under way" in lines[1]


def test_what_the_form_has_no_place_for_is_told_as_its_error() -> None:
    flat = fitted(backend(lambda step: 1e-3), DEVICE, prompt_len=1000, output_len=100)
    assert flat.time_factor_under_load == pytest.approx(1.0, abs=1e-3)
    square = fitted(backend(lambda step: 1e-3 * step.num_tokens**2), DEVICE, prompt_len=1000, output_len=100)
    assert square.itl.mean > 0.1
    assert square.prefill_overhead_s >= 0
    assert square.time_factor_under_load >= 1


def test_one_request_at_a_time_has_no_load() -> None:
    found = fitted(backend(of_the_form, replace(LIMITS, max_num_seqs=1)), DEVICE, prompt_len=1000, output_len=1)
    assert found.most == 1
    assert found.inter_token_latency_s == pytest.approx(7e-3)


def test_long_prompts_take_several_steps() -> None:
    limits = replace(LIMITS, max_num_tokens=1024, max_num_seqs=1)
    found = fitted(backend(lambda step: 1e-3, limits), DEVICE, prompt_len=1024, output_len=2)
    assert found.ttft.worst > 0  # 1, 1, 1, 2 and 4 steps lie on no line


def test_requests_beyond_the_model_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="a request of 8,000 and 193 tokens is beyond max_model_len 8,192"):
        fitted(backend(of_the_form), DEVICE, prompt_len=8000, output_len=193)
