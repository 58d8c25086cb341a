"""Options of serving in one text."""

from __future__ import annotations

import pytest

from pytest_dooly.core.configuration import ServingOptions
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.hosts.options import options_of


def test_options_are_read_with_the_simulator_s_ranks() -> None:
    assert options_of("", 1) is None
    assert options_of("", 2) == ServingOptions(tensor_parallel_size=2)
    assert options_of("max-num-tokens=8192, dtype=bfloat16,", 4) == ServingOptions(
        max_num_tokens=8192, dtype="bfloat16", tensor_parallel_size=4
    )


@pytest.mark.parametrize("text", ["tp=2", "max-num-token=8192", "8192"])
def test_what_is_no_option_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="is not one of .*max-num-tokens"):
        options_of(text, 1)
    with pytest.raises(ConfigurationError, match="must be a whole number, got 'many'"):
        options_of("max-num-tokens=many", 1)
