"""What GPUs cost, and what a rate comes to on them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pytest_dooly.core.device import device_named
from pytest_dooly.core.document import Document
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.searching.outcome import Outcome

__all__ = ["Bill", "bill_of", "check_prices", "parse_prices"]

_PER = 1e6
"""Tokens that a cost is told of."""


@dataclass(frozen=True)
class Bill(Document):
    """What serving at a rate takes.

    Attributes:
        replicas: engines side by side.
        gpus: of all of them.
        rate: requests per second that are served: those required, or the goodput of one replica.
        tokens_per_s_per_gpu: prompt and output.
        cost: of a million tokens, prompt and output, in the currency of the price; None without a price.
        output_cost: of a million output tokens, all costs counted; None without a price.
        cost_low: of a million tokens where the goodput is at the high end of its interval.
        cost_high: where it is at the low end; None where that is none.
    """

    replicas: int
    gpus: int
    rate: float
    tokens_per_s_per_gpu: float
    cost: float | None = None
    output_cost: float | None = None
    cost_low: float | None = None
    cost_high: float | None = None

    @property
    def price(self) -> float:
        """What is to be small: the cost, or GPU-seconds a token where there is none."""
        return 1 / self.tokens_per_s_per_gpu if self.cost is None else self.cost


def parse_prices(text: str) -> dict[str, float]:
    """Prices of one GPU for an hour, written as `h100_sxm=2.5,h200_sxm=3.5`.

    Raises:
        ConfigurationError: one cannot be read, is not above 0, or is of an unknown device.
    """
    prices: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        try:
            price = float(value)
        except ValueError:
            price = 0.0
        if not 0 < price < math.inf:
            raise ConfigurationError(f"cannot read {part.strip()!r} as a price: write it as h100_sxm=2.5,h200_sxm=3.5")
        device = device_named(name).name
        if device in prices:
            raise ConfigurationError(f"--price names {device} twice: name one price of each GPU")
        prices[device] = price
    return prices


def check_prices(prices: Mapping[str, float], devices: Iterable[str]) -> None:
    """Checks that each device has a price, where there are any.

    Raises:
        ConfigurationError: some have none; names them.
    """
    missing = [device for device in dict.fromkeys(devices) if device not in prices]
    if prices and missing:
        raise ConfigurationError(f"--price names none of {', '.join(missing)}: name it, as in {missing[0]}=2.5")


def bill_of(outcome: Outcome, prices: Mapping[str, float], required: float | None = None) -> Bill:
    """What a candidate takes at its goodput, or for a required rate.

    Args:
        outcome: with a goodput.
        prices: of a GPU for an hour, by device; of all or of none.
        required: requests per second; None for what one replica serves.
    """
    ranks = outcome.candidate.num_ranks
    price = prices.get(outcome.candidate.device)

    def gpus_for(goodput: float) -> int:
        return ranks * (1 if required is None else math.ceil(required / goodput))

    def cost_at(goodput: float) -> float | None:
        if price is None or not goodput:
            return None
        served = goodput if required is None else required
        return price * gpus_for(goodput) / (3600 * served * outcome.tokens) * _PER

    gpus, rate = gpus_for(outcome.rate), outcome.rate if required is None else required
    cost = cost_at(outcome.rate)
    return Bill(
        replicas=gpus // ranks,
        gpus=gpus,
        rate=rate,
        tokens_per_s_per_gpu=rate * outcome.tokens / gpus,
        cost=cost,
        output_cost=None if cost is None else cost * outcome.tokens / outcome.output_tokens,
        cost_low=cost_at(outcome.high),
        cost_high=cost_at(outcome.low),
    )
