import dataclasses

import pytest

from pytest_dooly.core.device import DEVICES, Device, device_named, device_of
from pytest_dooly.errors import ConfigurationError


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
def test_a_device_is_found_by_its_name_and_by_its_product(device: Device) -> None:
    assert device_named(device.name) is device
    assert device_named(device.product) is device
    assert device_of(device.product) is device
    assert device_of(device.name) is None


def test_an_unknown_device_is_named_with_those_that_are_known() -> None:
    with pytest.raises(
        ConfigurationError, match="unknown device 'h300': name one of a100_sxm, b200_sxm, h100_sxm, h200_sxm, l40s"
    ):
        device_named("h300")
    assert device_of("AMD EPYC") is None


def test_names_and_products_are_sorted_and_each_stands_for_one_device() -> None:
    names = [device.name for device in DEVICES]
    assert names == sorted(names)
    assert len({*names, *(device.product for device in DEVICES)}) == 2 * len(DEVICES)


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
def test_figures_are_in_bytes_and_operations_per_second(device: Device) -> None:
    assert all(value > 0 for value in dataclasses.astuple(device)[2:])
    assert device.link_bytes_per_s < device.memory_bytes_per_s < device.flops_per_s
    assert 100 < device.flops_per_s / device.memory_bytes_per_s < 500  # operations a byte: the ridge of a roofline
