"""What older releases of vLLM do otherwise: the number decides, and the newest is beyond all."""

from __future__ import annotations

import pytest

from pytest_dooly.core.release import NEWEST, Release
from pytest_dooly.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "release"),
    [("0.10.2", (10, 2)), ("v0.14", (14, 0)), ("0.19.1rc1.dev339+gedc364896", (19, 1)), ("0.7.3.post1", (7, 3))],
)
def test_a_release_is_read_by_its_number(text: str, release: tuple[int, int]) -> None:
    assert Release.parse(text) == Release(*release) < NEWEST


@pytest.mark.parametrize("text", ["", "latest", "1.2.3", "10.2", "-0.10.2", "0.10.2garbage", "0.10x"])
def test_what_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="unknown release of vLLM .*: name it as in 0.10.2"):
        Release.parse(text)


def test_defaults_change_at_a_release() -> None:
    """Asynchronous scheduling by default in 0.14, a larger share of the memory in 0.21, a server an engine in 0.15."""
    ahead = {text: Release.parse(text).async_scheduling for text in ("0.13.0", "0.14.0", "0.14.1")}
    assert ahead == {"0.13.0": False, "0.14.0": True, "0.14.1": True}
    assert [Release(20, 2).memory_share, Release(21).memory_share, NEWEST.memory_share] == [0.9, 0.92, 0.92]
    assert [Release(14, 1).server_processes(8), Release(15, 1).server_processes(8)] == [1, 8]
    assert [Release(7, 3).is_v0, Release(8).is_v0] == [True, False]


def test_a_checkpoint_s_own_cache_was_not_followed() -> None:
    fp8 = {"quantization_config": {"kv_cache_quant_algo": "FP8"}}
    assert Release(12, 0).kv_cache_dtype(None, fp8) == "bfloat16"
    assert Release(12, 0).kv_cache_dtype("fp8", fp8) == "fp8"
    assert Release(12, 0).kv_cache_dtype(None, {}) is None
    assert Release(13, 0).kv_cache_dtype(None, fp8) is None


def test_attention_of_hopper_gained_nothing_from_fp8() -> None:
    asked = [("h100_sxm", "fp8"), ("h200_sxm", "fp8_e4m3"), ("h20", "fp8"), ("b200_sxm", "fp8"), ("h100_sxm", None)]
    assert [Release(11, 0).attends_in_two_bytes(*each) for each in asked] == [True, True, True, False, False]
    assert not any(Release(11, 1).attends_in_two_bytes(*each) for each in asked)


def test_a_release_is_told_as_it_is_written() -> None:
    assert [str(Release(10, 2)), str(NEWEST)] == ["0.10.2", "the newest"]
