"""Prices, and what a rate costs."""

from __future__ import annotations

import dataclasses

import pytest

from pytest_dooly.errors import ConfigurationError
from pytest_dooly.searching.cost import bill_of, check_prices, parse_prices
from tests.searching.samples import candidate, outcome


def test_prices_are_read() -> None:
    assert parse_prices("h100_sxm=2.5, h200_sxm=3") == {"h100_sxm": 2.5, "h200_sxm": 3.0}


@pytest.mark.parametrize("text", ["h100_sxm", "h100_sxm=", "h100_sxm=0", "h100_sxm=-1", "h100_sxm=inf", "2.5"])
def test_prices_that_are_none(text: str) -> None:
    with pytest.raises(ConfigurationError, match="as a price: write it as"):
        parse_prices(text)


def test_a_device_has_one_price() -> None:
    with pytest.raises(ConfigurationError, match="names h100_sxm twice"):
        parse_prices("h100_sxm=1,h100_sxm=3")


def test_a_device_is_unknown_or_has_no_price() -> None:
    with pytest.raises(ConfigurationError, match="unknown device 'tpu'"):
        parse_prices("tpu=1")
    with pytest.raises(ConfigurationError, match="names none of l40s"):
        check_prices({"h100_sxm": 2.5}, ["h100_sxm", "l40s"])
    check_prices({}, ["l40s"])


def test_one_replica_at_its_goodput() -> None:
    """4 requests of 250 tokens a second on 2 GPUs of 3.6 an hour: 2 thousandths a second for 1,000 tokens."""
    bill = bill_of(outcome(4.0, of=candidate(ranks=2)), {"h200_sxm": 3.6})
    assert (bill.replicas, bill.gpus, bill.rate) == (1, 2, 4.0)
    assert bill.tokens_per_s_per_gpu == pytest.approx(500)
    assert bill.cost == pytest.approx(2.0)
    assert bill.output_cost == pytest.approx(10.0)
    assert bill.cost_low == pytest.approx(2.0 / 1.2)
    assert bill.cost_high == pytest.approx(2.0 * 1.2)


def test_engines_that_share_experts_are_one_replica() -> None:
    shared = dataclasses.replace(candidate(ranks=2), data_parallel_size=4)
    assert str(shared).startswith("small on h200_sxm, tp 2 dp 4, ")
    bill = bill_of(outcome(4.0, of=shared), {}, required=9.0)
    assert (bill.replicas, bill.gpus) == (3, 24)


def test_whole_replicas_for_a_required_rate() -> None:
    bill = bill_of(outcome(4.0, of=candidate(ranks=2)), {"h200_sxm": 3.6}, required=9.0)
    assert (bill.replicas, bill.gpus, bill.rate) == (3, 6, 9.0)
    assert bill.cost == pytest.approx(6e-3 / (9 * 250) * 1e6)


def test_without_a_price_there_is_no_cost_and_without_a_low_end_no_highest() -> None:
    assert bill_of(outcome(), {}).cost is None
    assert bill_of(outcome(low=0.0), {"h200_sxm": 1.0}).cost_high is None
