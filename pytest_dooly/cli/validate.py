"""`dooly validate`: predictions against the real engine, over many workloads."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from pytest_dooly.cli.answer import Answer, progress
from pytest_dooly.cli.opening import Opened, opened
from pytest_dooly.cli.validate_traffic import STATUSES, validate_traffic
from pytest_dooly.core.in_situ import InSitu
from pytest_dooly.core.signature import ServedModel
from pytest_dooly.core.workload import Workload
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.prediction.draw import Replacement, draw, grid, prefills_beside_decodes
from pytest_dooly.prediction.standard import standard_batches
from pytest_dooly.prediction.validation import Validation, Verdict
from pytest_dooly.regress.regressor import Regressor
from pytest_dooly.regress.stored import regressors_of
from pytest_dooly.report.findings import model_report
from pytest_dooly.report.page import write_report
from pytest_dooly.report.text import format_validation
from pytest_dooly.timing.clock import Clocks
from pytest_dooly.timing.in_situ import measure_in_situ
from pytest_dooly.validate import validate as measure

__all__ = ["validate"]


def validate(arguments: argparse.Namespace) -> Answer:
    """How far TTFT and TPOT are off, and operations alone; into the latency DB and a report."""
    if arguments.repeats < 2:
        raise ConfigurationError(f"--repeats must be at least 2 to show the noise floor, got {arguments.repeats}")
    if arguments.traffic:
        return validate_traffic(arguments)
    if any(isinstance(tokens, str) for tokens in (*(arguments.prompt or ()), *(arguments.output or ()))):
        raise ConfigurationError("a grid takes numbers of tokens: laws of lengths go with --traffic")
    with opened(arguments) as work:
        model, environment = work.served(), work.environment
        regressors = regressors_of(work.db, environment)
        workloads, replaced = _workloads(arguments, model, regressors)
        validation, in_situ = _measured(arguments, work, model, regressors, workloads=workloads, replaced=replaced)
        report = model_report(model, work.db, environment, regressors)
        path = write_report(report, Path(arguments.reports) / f"{work.configuration.slug}-{environment.slug}")
    verdict = validation.verdict()
    status = STATUSES[verdict]
    document = {
        "model": model.name,
        **validation.to_json(),
        "ttft": dataclasses.asdict(validation.ttft),
        "tpot": validation.tpot and dataclasses.asdict(validation.tpot),
        "in_situ": in_situ and in_situ.to_json(),
        "passed": verdict is Verdict.MEETS,
        "verdict": verdict,
        "report": str(path),
        "status": status,
    }
    alone = [
        f"operations alone, together, against within a pass over {step.batch}: {step.error:+.1%}"
        for step in (in_situ.steps if in_situ is not None else ())
    ]
    return Answer(document, [format_validation(validation), *alone, f"report: {path}"], status)


def _measured(
    arguments: argparse.Namespace,
    work: Opened,
    model: ServedModel,
    regressors: Mapping[str, Regressor],
    *,
    workloads: Sequence[Workload],
    replaced: Sequence[Replacement],
) -> tuple[Validation, InSitu | None]:
    """Both comparisons in one session of the engine, each kept as it ends."""
    engine, environment = work.engine, work.environment
    progress(f"starting {engine.name} {engine.version} for {len(workloads)} workloads")
    session = engine.open(
        work.configuration, kv_tokens=max(w.concurrency * (w.prompt_len + w.output_len) for w in workloads)
    )
    how = {"repeats": arguments.repeats, "seed": arguments.seed, "replaced": replaced}
    try:
        validation = measure(session, model, regressors, workloads, **how, progress=progress)
        work.db.save_finding("validation", model.key, environment, validation.to_json())
        if arguments.no_in_situ:
            return validation, None
        batches = standard_batches(model.limits)
        in_situ = measure_in_situ(session, model, batches, Clocks(environment), progress=progress)
        work.db.save_finding("in_situ", model.key, environment, in_situ.to_json())
        return validation, in_situ
    finally:
        session.close()


def _workloads(
    arguments: argparse.Namespace, model: ServedModel, regressors: Mapping[str, Regressor]
) -> tuple[Sequence[Workload], Sequence[Replacement]]:
    """The grid that is asked for, or workloads that are drawn within the budget."""
    asked = arguments.prompt, arguments.batch, arguments.output
    if any((*asked, arguments.requests)):
        usual = [32, 128, 512, 1024], [1, 4, 8], [16]
        sizes = (given or default for given, default in zip(asked, usual, strict=True))
        workloads = grid(model.limits, *sizes, num_reqs=arguments.requests)
        if not workloads:
            raise ConfigurationError(f"no workload of that grid fits {model.limits}")
        return workloads, ()
    rounds = arguments.repeats + 1
    drawn = draw(model, regressors, points=arguments.points, budget_s=arguments.budget / rounds, seed=arguments.seed)
    mixed = sum(prefills_beside_decodes(workload, model.limits) for workload in drawn.workloads)
    progress(
        f"drew {len(drawn.workloads)} workloads: {mixed} prefill in chunks beside decodes, "
        f"{len(drawn.replaced)} shrunk to fit the budget; "
        f"about {rounds * drawn.cost_s:.0f} s of {arguments.budget:.0f} s for {rounds} rounds"
    )
    if len(drawn.workloads) < arguments.points:
        progress(f"limits and budget leave room for no more, {arguments.points} were asked for")
    return drawn.workloads, drawn.replaced
