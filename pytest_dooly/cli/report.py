"""`dooly report` and `dooly models`: what the latency DB has of a model; the models that are shipped."""

from __future__ import annotations

import argparse
from pathlib import Path

from pytest_dooly.cli.answer import Answer
from pytest_dooly.cli.opening import opened
from pytest_dooly.core.configuration import aliases
from pytest_dooly.regress.stored import regressors_of
from pytest_dooly.report.figure import png_path
from pytest_dooly.report.findings import model_report
from pytest_dooly.report.page import write_report
from pytest_dooly.report.plots import save_overview
from pytest_dooly.report.terminal import model_lines

__all__ = ["models", "report"]


def report(arguments: argparse.Namespace) -> Answer:
    """The report of a model again."""
    png = None if arguments.png is None else png_path(arguments.png)
    with opened(arguments) as work:
        model, environment = work.served(), work.environment
        found = model_report(model, work.db, environment, regressors_of(work.db, environment))
    path = write_report(found, Path(arguments.reports) / f"{work.configuration.slug}-{environment.slug}")
    if png is not None:
        save_overview(found, png)
    document = {
        "report": str(path),
        "png": arguments.png,
        "validation": found.validation and found.validation.to_json(),
        "in_situ": found.in_situ and found.in_situ.to_json(),
    }
    return Answer(document, [f"report: {path}"])


def models(arguments: argparse.Namespace) -> Answer:
    """The shipped models."""
    return Answer({"shipped": list(aliases())}, model_lines())
