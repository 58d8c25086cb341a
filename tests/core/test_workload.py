"""What a workload must be."""

from __future__ import annotations

import pytest

from pytest_dooly.core.workload import Workload
from pytest_dooly.errors import ConfigurationError


def test_a_workload_needs_something_to_do() -> None:
    with pytest.raises(ConfigurationError, match="at least 1"):
        Workload(0, 1, 1)
    with pytest.raises(ConfigurationError, match="2 requests in all cannot be 3 at once"):
        Workload(1, 1, 3, num_reqs=2)
