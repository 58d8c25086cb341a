"""`dooly history`: the runs of the gate over time, with the points at which something changed."""

from __future__ import annotations

import argparse
from pathlib import Path

from pytest_dooly.cli.answer import Answer
from pytest_dooly.drift.history import histories
from pytest_dooly.errors import MissingMeasurements
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.report.figure import png_path
from pytest_dooly.report.history_report import history_document, history_lines, save_history

__all__ = ["history"]


def history(arguments: argparse.Namespace) -> Answer:
    """Every series of runs of a model; the picture is of the one that ran last."""
    png = None if arguments.png is None else png_path(arguments.png)
    with LatencyDB.open(Path(arguments.db), create=False) as db:
        found = histories(db, arguments.model)
        known = sorted({run.model for run in db.gate_runs()})
    if not found:
        others = f"; there are runs of {', '.join(known)}" if known else ""
        raise MissingMeasurements(
            f"no run of the gate of {arguments.model} has finished in {arguments.db}{others}: "
            f"run pytest --dooly-model={arguments.model} --dooly-gate"
        )
    if png is not None:
        save_history(found[-1], png, arguments.model)
    lines = [line for each in found for line in history_lines(each)]
    return Answer({"model": arguments.model, "series": [*map(history_document, found)], "png": arguments.png}, lines)
