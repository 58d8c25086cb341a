"""Hooks of a session that profiles, for a project's conftest.py and for other plugins.

They are called where `--dooly-model` names a model, and take any of their arguments, as pytest's hooks do. A plugin
that must also work where pytest-dooly is missing marks them with `@pytest.hookimpl(optionalhook=True)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_dooly import Case, Failure, Measurement, Summary

__all__ = ["pytest_dooly_case_modifyitems", "pytest_dooly_measured", "pytest_dooly_summary"]


def pytest_dooly_case_modifyitems(
    config: pytest.Config, items: list[pytest.Item], cases: Mapping[pytest.Item, Case]
) -> None:
    """Called once the cases are collected and selected by `-k` and `-m`, before any is timed.

    What is taken out of `items` is deselected; they may be reordered and marked. The points of an operation come coarse
    grid first: what is moved ahead of it is timed even where the held-out error would not have asked for it. With
    pytest-xdist every worker calls it, and all must come to the same items.

    Args:
        config: of the session.
        items: that time a case, to be changed in place.
        cases: what each of them times.
    """


def pytest_dooly_measured(config: pytest.Config, case: Case, outcome: Measurement | Failure) -> None:
    """Called when a case has been timed and its outcome is in the latency DB.

    With pytest-xdist it is called in the worker that has timed the case, and nowhere else.

    Args:
        config: of the session; `config.workerinput["workerid"]` names a worker.
        case: operation, sweep point and model.
        outcome: latency statistics in seconds, or why there are none.
    """


def pytest_dooly_summary(config: pytest.Config, summary: Summary) -> None:
    """Called once, when regressors are fitted and reports written, before the summary is printed.

    With pytest-xdist it is called in the controller. A session that ends before, with a usage error, does not call it.

    Args:
        config: of the session.
        summary: what the run has come to: cases timed, regressors, predicted workloads, paths of the reports.
    """
