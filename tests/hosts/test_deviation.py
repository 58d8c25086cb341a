"""How far a simple form is off."""

from __future__ import annotations

import pytest

from pytest_dooly.hosts.deviation import Deviation


def test_it_is_relative_to_what_the_form_stands_for() -> None:
    found = Deviation.of([(11.0, 10.0), (1.0, 1.0), (0.7, 1.0)])
    assert (found.mean, found.worst, found.bias, found.points) == pytest.approx((0.4 / 3, 0.3, -0.2 / 3, 3))
    assert str(found) == "13.3% in the mean (-6.7% with its sign), 30.0% at the worst"
    assert Deviation.of([]) == Deviation(0.0, 0.0, 0.0, 0)
