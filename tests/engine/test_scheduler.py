"""An engine without a scheduler of its own."""

from __future__ import annotations

import pytest

from pytest_dooly.core.batch import Limits
from pytest_dooly.engine import load_engine
from pytest_dooly.errors import EngineError
from pytest_dooly.scheduling.scheduler import SchedulerOptions


def test_the_fake_engine_names_those_that_schedule() -> None:
    with pytest.raises(EngineError, match="use the native one, or the engine vllm"):
        load_engine("fake").scheduler(SchedulerOptions(Limits(64, 4, 64), num_blocks=64))
