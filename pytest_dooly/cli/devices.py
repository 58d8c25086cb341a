"""`dooly compare` and `dooly plan`: several models on several GPUs that need not be here."""

from __future__ import annotations

import argparse
import dataclasses

from pytest_dooly.cli.answer import Answer, warn
from pytest_dooly.cli.opening import on_devices
from pytest_dooly.core.workload import Workload
from pytest_dooly.prediction.comparison import candidate
from pytest_dooly.published.budget import budget_of
from pytest_dooly.report.device_report import format_budgets, format_candidates, save_candidates
from pytest_dooly.report.figure import png_path

__all__ = ["compare", "plan"]


def compare(arguments: argparse.Namespace) -> Answer:
    """A workload on every model, GPU and tensor-parallel size asked for."""
    workload = Workload(arguments.prompt, arguments.output, arguments.concurrency, arguments.requests)
    png = None if arguments.png is None else png_path(arguments.png)
    candidates = [
        candidate(model, founded, on.device, workload, ranks=on.ranks, routing=arguments.routing)
        for on in on_devices(arguments)
        for model, founded in zip(on.models, on.founded, strict=True)
    ]
    if png is not None:
        save_candidates(candidates, png)
    document = {"workload": dataclasses.asdict(workload), "candidates": [each.to_json() for each in candidates]}
    outside: dict[str, dict[str, None]] = {}
    for each in candidates:
        for line in each.prediction.out_of_range:
            outside.setdefault(f"{each.model.name}: {line}", {})[each.device.name] = None
    warn([f"{line} ({', '.join(devices)})" for line, devices in outside.items()])
    return Answer(document, [format_candidates(candidates)])


def plan(arguments: argparse.Namespace) -> Answer:
    """What profiling the models would take, GPU by GPU."""
    documents, lines = [], list[str]()
    for on in on_devices(arguments):
        budgets = budget_of(on.models, on.founded, on.device, target=arguments.target)
        lines += ["", f"{on.device.name}, tp {on.ranks}"]
        lines += format_budgets(budgets, price=arguments.price).splitlines()
        documents += [budget.to_json() | {"tp": on.ranks, "price": arguments.price} for budget in budgets]
    return Answer({"target": arguments.target, "plans": documents}, lines[1:])
