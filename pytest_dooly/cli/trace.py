"""`dooly trace`: the operations of a model, or what two models share."""

from __future__ import annotations

import argparse
import dataclasses

from pytest_dooly.cli.answer import Answer, progress
from pytest_dooly.cli.opening import Opened, opened
from pytest_dooly.core.configuration import resolve
from pytest_dooly.core.language_model import left_out
from pytest_dooly.core.operation import Coverage
from pytest_dooly.core.signature import ServedModel
from pytest_dooly.errors import DoolyError
from pytest_dooly.report.text import format_coverage, format_diff, format_operations
from pytest_dooly.serving import coverage_of
from pytest_dooly.sweep.diff import diff
from pytest_dooly.sweep.plan import make_plan

__all__ = ["trace"]


def trace(arguments: argparse.Namespace) -> Answer:
    """Every operation with the origin of its dimensions, and what share of a real forward pass they are."""
    if arguments.diff is not None:
        return _diff(arguments)
    with opened(arguments) as work:
        model = work.served()
        absent = work.engine.absent_device(work.configuration)
        others = left_out(work.configuration.document)
        coverage, line = None, "coverage not counted"
        if absent is not None:
            line += f": no {absent} is here to run the architecture in small"
        elif not arguments.no_coverage:
            coverage, line = _covered(work, model)
    operations = [
        {
            "label": operation.signature.label,
            "multiplicity": operation.multiplicity,
            "signature": operation.signature.to_json(),
            "origins": [{"tensor": r, "dtype": d, "shape": list(shape)} for r, d, shape in operation.origins],
            "layers": list(operation.layers),
        }
        for operation in model.operations
    ]
    document = {
        "model": model.name,
        "architecture": model.architecture,
        "left_out": list(others),
        "absent_device": absent,
        "limits": dataclasses.asdict(model.limits),
        "coverage": coverage and {"share": coverage.share, **coverage.to_json()},
        "operations": operations,
    }
    return Answer(document, [format_operations(model, others, absent), "", line])


def _covered(work: Opened, model: ServedModel) -> tuple[Coverage | None, str]:
    """What the trace covers, and a line on it; a model that cannot run in small is traced all the same."""
    try:
        coverage = coverage_of(work.engine, work.configuration, model, work.db, work.environment, progress=progress)
    except DoolyError as error:
        return None, f"coverage not counted: {error}"
    return coverage, format_coverage(coverage)


def _diff(arguments: argparse.Namespace) -> Answer:
    with opened(arguments) as work:
        model, environment = work.served(), work.environment
        other = work.served(resolve(arguments.diff, work.configuration.options))
        plans = [make_plan([each], environment, work.db) for each in (model, other)]
    difference = diff(*plans)
    document = {
        "models": [model.name, other.name],
        "shared": [operation.signature.label for operation in difference.shared],
        "differing": [
            {"from": pair.first.signature.label, "to": pair.second.signature.label, "changes": list(pair.changes)}
            for pair in difference.differing
        ],
        "only": [
            [operation.signature.label for operation in only]
            for only in (difference.only_first, difference.only_second)
        ],
        "total_s": difference.total_s,
        "saved_s": difference.saved_s,
        "share_saved": difference.share_saved,
    }
    return Answer(document, [format_diff(model, other, difference)])
