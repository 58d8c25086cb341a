import dataclasses

import pytest

from pytest_dooly.core.batch import Limits
from pytest_dooly.core.configuration import ServingOptions
from pytest_dooly.core.device import DEVICES, Device, device_named, device_of, served_on, serving_limits
from pytest_dooly.errors import ConfigurationError
from tests.samples import served


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
def test_a_device_is_found_by_its_name_and_by_its_product(device: Device) -> None:
    assert device_named(device.name) is device
    assert device_named(device.product) is device
    assert device_of(device.product) is device
    assert device_of(device.name) is None


def test_an_unknown_device_is_named_with_those_that_are_known() -> None:
    with pytest.raises(
        ConfigurationError,
        match="unknown device 'h300': name one of a10, a100_pcie, a100_sxm, a100_sxm_40gb, a40, a800_sxm, b200_sxm",
    ):
        device_named("h300")
    assert device_of("AMD EPYC") is None


def test_names_and_products_are_sorted_and_each_stands_for_one_device() -> None:
    names = [device.name for device in DEVICES]
    assert names == sorted(names)
    assert len({*names, *(device.product for device in DEVICES)}) == 2 * len(DEVICES)


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
def test_figures_are_in_bytes_and_operations_per_second(device: Device) -> None:
    *figures, capability, _ = dataclasses.astuple(device)[2:]
    assert all(value > 0 for value in figures)
    assert (7, 0) <= capability <= (12, 0)
    assert device.link_bytes_per_s < device.memory_bytes_per_s < device.flops_per_s
    assert 30 < device.flops_per_s / device.memory_bytes_per_s < 500  # operations a byte: the ridge of a roofline


def test_what_stands_in_for_a_device_has_latencies_of_its_own() -> None:
    """Chains would scale by three data sheets; the RTX 4090 has tables of one model, and is like the L40S elsewhere."""
    for device in DEVICES:
        if device.like is not None:
            assert device_named(device.like).like is None
    assert device_named("rtx_4090").like == "l40s"
    assert device_named("h200_sxm").like is None


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a100_sxm", 81920),
        ("b200_sxm", 183359),
        ("b300_sxm", 275040),
        ("gb200", 189471),
        ("gb300", 284208),
        ("h100_sxm", 81559),
        ("h200_sxm", 143771),
        ("l40s", 46068),
        ("a100_sxm_40gb", 40960),
        ("h20", 97871),
        ("rtx_3090", 24576),
        ("rtx_5090", 32607),
        ("rtx_a6000", 49140),
        ("v100s_pcie_32gb", 32768),
    ],
)
def test_memory_is_a_little_less_than_nvidia_smi_shows(name: str, shown: int) -> None:
    assert 0.98 * shown < device_named(name).memory_bytes / 2**20 < shown


@pytest.mark.parametrize(
    ("name", "num_tokens", "num_seqs"),
    [
        ("a100_sxm", 2048, 256),
        ("b200_sxm", 16384, 1024),
        ("gb300", 16384, 1024),
        ("h100_sxm", 8192, 1024),
        ("h200_sxm", 8192, 1024),
        ("l40s", 2048, 256),
    ],
)
def test_a_server_takes_the_limits_of_its_device(name: str, num_tokens: int, num_seqs: int) -> None:
    device = device_named(name)
    assert serving_limits(device, ServingOptions(), 4096) == Limits(num_tokens, num_seqs, 4096)


def test_limits_that_are_named_stand_and_bound_the_others() -> None:
    h100 = device_named("h100_sxm")
    assert serving_limits(h100, ServingOptions(max_num_tokens=512), 4096) == Limits(512, 512, 4096)
    assert serving_limits(h100, ServingOptions(max_num_seqs=4), 1000) == Limits(4000, 4, 1000)
    assert serving_limits(h100, ServingOptions(max_num_tokens=9000, max_num_seqs=4), 1000) == Limits(9000, 4, 1000)


def test_a_model_is_found_under_its_key_whatever_serves_it() -> None:
    traced = served()
    moved = served_on(traced, device_named("l40s"), ServingOptions())
    assert (moved.key, moved.limits.max_model_len) == (traced.key, traced.limits.max_model_len)
    assert moved.limits != traced.limits
