"""The command line `dooly`: parses, wires and prints; decides nothing.

Exits 0 when it did what was asked, 2 for wrong usage, 1 for the rest. With --json, standard output holds one document.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from pytest_dooly.arguments import parser, serving_flags
from pytest_dooly.configuration import ModelConfiguration, parse_options, resolve
from pytest_dooly.errors import ConfigurationError, DoolyError, OutOfRangeWarning, UnknownModelError

if TYPE_CHECKING:
    from pytest_dooly.basis import Foundation, Grounds
    from pytest_dooly.device import Device
    from pytest_dooly.engine.base import Engine
    from pytest_dooly.environment import Environment
    from pytest_dooly.latency_db import LatencyDB
    from pytest_dooly.prediction import Workload
    from pytest_dooly.regress import LatencyModel, Regressor
    from pytest_dooly.signature import ServedModel
    from pytest_dooly.workloads import Replacement

__all__ = ["main"]

_OK, _FAILED, _WRONG_USAGE = 0, 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status."""
    arguments = parser().parse_args(argv)
    with _clean_stdout() as out:
        try:
            document, lines = _COMMANDS[arguments.command](arguments)
        except (UnknownModelError, ConfigurationError) as error:
            return _complain(error, _WRONG_USAGE)
        except DoolyError as error:
            return _complain(error, _FAILED)
        except KeyboardInterrupt:
            return _complain("interrupted", _FAILED)
        text = json.dumps(document, indent=2) if arguments.json else "\n".join(lines)
        out.write(text + "\n")
    return int(document.get("status", _OK)) if isinstance(document, dict) else _OK


def _trace(arguments: argparse.Namespace) -> tuple[Any, list[str]]:
    from pytest_dooly.report import format_coverage, format_operations

    if arguments.diff is not None:
        return _diff(arguments)
    with _opened(arguments) as (engine, configuration, db):
        model, environment = _served(engine, configuration, db)
        coverage, line = None, "coverage not counted"
        if not arguments.no_coverage:
            from pytest_dooly.profiling import coverage_of

            try:
                coverage = coverage_of(engine, configuration, model, db, environment, progress=_progress)
                line = format_coverage(coverage)
            except DoolyError as error:
                line = f"coverage not counted: {error}"
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
        "limits": dataclasses.asdict(model.limits),
        "coverage": coverage and {"share": coverage.share, **coverage.to_json()},
    }
    return {**document, "operations": operations}, [format_operations(model), "", line]


def _diff(arguments: argparse.Namespace) -> tuple[Any, list[str]]:
    from pytest_dooly.diff import diff
    from pytest_dooly.plan import make_plan
    from pytest_dooly.report import format_diff

    with _opened(arguments) as (engine, configuration, db):
        model, environment = _served(engine, configuration, db)
        other, _ = _served(engine, resolve(arguments.diff, configuration.options), db)
        plans = [make_plan([each], environment, db) for each in (model, other)]
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
    return document, [format_diff(model, other, difference)]


def _predict(arguments: argparse.Namespace) -> tuple[Any, list[str]]:
    from pytest_dooly.basis import latency_models
    from pytest_dooly.prediction import Workload, predict_step, predict_workload
    from pytest_dooly.report import format_step
    from pytest_dooly.terminal import workload_line

    device = _gpu(arguments)
    workload = None
    if arguments.batch is None:
        workload = Workload(arguments.prompt, arguments.output, arguments.concurrency, arguments.requests)
    founded: Mapping[str, Foundation] = {}
    models: Mapping[str, LatencyModel]
    with _opened(arguments) as (engine, configuration, db):
        model, environment = _served(engine, configuration, db)
        if device is None:
            models = latency_models(model, db, environment, progress=_progress)
        else:
            founded = _grounds(db, device).of(model)
            models = {key: each.model for key, each in founded.items()}
    if workload is None:
        step = predict_step(model, models, arguments.batch, routing=arguments.routing)
        _warn(step.out_of_range)
        operations = [dataclasses.asdict(operation) for operation in step.operations]
        document = {"batch": str(step.batch), "latency_s": step.latency_s, "operations": operations}
        document |= {"out_of_range": step.out_of_range}
        if device is None:
            return document, [format_step(step)]
        from pytest_dooly.basis import shares_of
        from pytest_dooly.device_report import format_founded_step
        from pytest_dooly.prediction import step_operations

        bases = [dataclasses.asdict(founded[o.signature.key].basis) for o in step_operations(model)]
        document["operations"] = [each | {"basis": basis} for each, basis in zip(operations, bases, strict=True)]
        shares = dataclasses.asdict(shares_of(model, step, founded))
        return {**document, "device": device.name, "shares": shares}, [format_founded_step(model, step, founded)]
    if device is not None:
        from pytest_dooly.comparison import candidate
        from pytest_dooly.device_report import format_footprint, format_shares

        ranks = configuration.options.tensor_parallel_size
        found = candidate(model, founded, device, workload, ranks=ranks, routing=arguments.routing)
        _warn(found.prediction.out_of_range)
        decode = [f"a decode step {format_shares(found.shares)}"] if workload.output_len > 1 else []
        lines = [workload_line(found.prediction), *decode, format_footprint(found.footprint)]
        return found.to_json() | dataclasses.asdict(found.prediction), lines
    prediction = predict_workload(model, models, workload, routing=arguments.routing)
    _warn(prediction.out_of_range)
    return dataclasses.asdict(prediction), [workload_line(prediction)]


def _compare(arguments: argparse.Namespace) -> tuple[Any, list[str]]:
    from pytest_dooly.comparison import candidate
    from pytest_dooly.device_report import format_candidates, save_candidates
    from pytest_dooly.figure import png_path
    from pytest_dooly.prediction import Workload

    workload = Workload(arguments.prompt, arguments.output, arguments.concurrency, arguments.requests)
    png = None if arguments.png is None else png_path(arguments.png)
    candidates = []
    for device, ranks, models, founded in _on_devices(arguments):
        candidates += [
            candidate(model, known, device, workload, ranks=ranks, routing=arguments.routing)
            for model, known in zip(models, founded, strict=True)
        ]
    if png is not None:
        save_candidates(candidates, png)
    document = {"workload": dataclasses.asdict(workload), "candidates": [each.to_json() for each in candidates]}
    outside: dict[str, dict[str, None]] = {}
    for each in candidates:
        for line in each.prediction.out_of_range:
            outside.setdefault(f"{each.model.name}: {line}", {})[each.device.name] = None
    _warn([f"{line} ({', '.join(devices)})" for line, devices in outside.items()])
    return document, [format_candidates(candidates)]


def _plan(arguments: argparse.Namespace) -> tuple[Any, list[str]]:
    from pytest_dooly.budget import budget_of
    from pytest_dooly.device_report import format_budgets

    documents, lines = [], list[str]()
    for device, ranks, models, founded in _on_devices(arguments):
        budgets = budget_of(models, founded, device, target=arguments.target)
        lines += ["", f"{device.name}, tp {ranks}", *format_budgets(budgets, price=arguments.price).splitlines()]
        documents += [budget.to_json() | {"tp": ranks, "price": arguments.price} for budget in budgets]
    return {"target": arguments.target, "plans": documents}, lines[1:]


def _on_devices(
    arguments: argparse.Namespace,
) -> Iterator[tuple[Device, int, Sequence[ServedModel], Sequence[Mapping[str, Foundation]]]]:
    """Every device and tensor-parallel size asked for, with the models and the foundations of their operations."""
    from pytest_dooly.device import device_named

    devices = [device_named(name) for name in arguments.device or ()]
    if not devices:
        raise ConfigurationError("name the GPUs with --device, as in --device h200_sxm")
    asked = [parse_options({"tp": size}).tensor_parallel_size for size in arguments.tensor_parallel_size or ["1"]]
    first = argparse.Namespace(**vars(arguments))
    first.model, first.device, first.tensor_parallel_size = arguments.model[0], None, str(asked[0])
    with _opened(first) as (engine, configuration, db):
        for device in devices:
            grounds = _grounds(db, device)
            for ranks in asked:
                options = dataclasses.replace(configuration.options, tensor_parallel_size=ranks)
                models = [_served(engine, resolve(name, options), db)[0] for name in arguments.model]
                yield device, ranks, models, [grounds.of(model) for model in models]


def _gpu(arguments: argparse.Namespace) -> Device | None:
    """The GPU that is to be predicted for, taken out of the options that the engine here gets."""
    from pytest_dooly.device import device_named

    if arguments.device in (None, "cpu", "cuda"):
        return None
    device = device_named(arguments.device)
    arguments.device = None
    return device


def _grounds(db: LatencyDB, device: Device) -> Grounds:
    from pytest_dooly.basis import Grounds

    grounds = Grounds(db, device, progress=_progress)
    if grounds.empty:
        _progress(
            f"nothing of {device.product} is in the latency DB: every figure is an estimate; "
            f"run dooly import aiconfigurator --system {device.name}"
        )
    return grounds


def _validate(arguments: argparse.Namespace) -> tuple[Any, list[str]]:
    from pytest_dooly.clock import Clocks
    from pytest_dooly.in_situ import measure_in_situ
    from pytest_dooly.prediction import regressors_of
    from pytest_dooly.profiling import model_report, standard_batches
    from pytest_dooly.report import format_validation, write_report
    from pytest_dooly.validate import validate

    if arguments.repeats < 2:
        raise ConfigurationError(f"--repeats must be at least 2 to show the noise floor, got {arguments.repeats}")
    with _opened(arguments) as (engine, configuration, db):
        model, environment = _served(engine, configuration, db)
        regressors = regressors_of(db, environment)
        workloads, replaced = _workloads(arguments, model, regressors)
        _progress(f"starting {engine.name} {engine.version} for {len(workloads)} workloads")
        session = engine.open(
            configuration, kv_tokens=max(w.concurrency * (w.prompt_len + w.output_len) for w in workloads)
        )
        how = {"repeats": arguments.repeats, "seed": arguments.seed, "replaced": replaced}
        try:
            validation = validate(session, model, regressors, workloads, **how, progress=_progress)
            db.save_finding("validation", model.key, environment, validation.to_json())
            in_situ = None
            if not arguments.no_in_situ:
                batches = standard_batches(model.limits)
                in_situ = measure_in_situ(session, model, batches, Clocks(environment), progress=_progress)
                db.save_finding("in_situ", model.key, environment, in_situ.to_json())
        finally:
            session.close()
        report = model_report(model, db, environment, regressors)
        path = write_report(report, Path(arguments.reports) / f"{configuration.slug}-{environment.slug}")
    passed = validation.passes()
    document = {
        "model": model.name,
        **validation.to_json(),
        "ttft": dataclasses.asdict(validation.ttft),
        "tpot": validation.tpot and dataclasses.asdict(validation.tpot),
        "in_situ": in_situ and in_situ.to_json(),
        "passed": passed,
        "report": str(path),
        "status": _OK if passed else _FAILED,
    }
    alone = [
        f"operations alone, together, against within a pass over {step.batch}: {step.error:+.1%}"
        for step in (in_situ.steps if in_situ is not None else ())
    ]
    return document, [format_validation(validation), *alone, f"report: {path}"]


def _workloads(
    arguments: argparse.Namespace, model: ServedModel, regressors: Mapping[str, Regressor]
) -> tuple[Sequence[Workload], Sequence[Replacement]]:
    """The grid that is asked for, or workloads that are drawn within the budget."""
    from pytest_dooly.workloads import draw, grid, prefills_beside_decodes

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
    _progress(
        f"drew {len(drawn.workloads)} workloads: {mixed} prefill in chunks beside decodes, "
        f"{len(drawn.replaced)} shrunk to fit the budget; "
        f"about {rounds * drawn.cost_s:.0f} s of {arguments.budget:.0f} s for {rounds} rounds"
    )
    if len(drawn.workloads) < arguments.points:
        _progress(f"limits and budget leave room for no more, {arguments.points} were asked for")
    return drawn.workloads, drawn.replaced


def _report(arguments: argparse.Namespace) -> tuple[Any, list[str]]:
    from pytest_dooly.figure import png_path
    from pytest_dooly.plots import save_overview
    from pytest_dooly.prediction import regressors_of
    from pytest_dooly.profiling import model_report
    from pytest_dooly.report import write_report

    png = None if arguments.png is None else png_path(arguments.png)
    with _opened(arguments) as (engine, configuration, db):
        model, environment = _served(engine, configuration, db)
        report = model_report(model, db, environment, regressors_of(db, environment))
    path = write_report(report, Path(arguments.reports) / f"{configuration.slug}-{environment.slug}")
    if png is not None:
        save_overview(report, png)
    document = {
        "report": str(path),
        "png": arguments.png,
        "validation": report.validation and report.validation.to_json(),
        "in_situ": report.in_situ and report.in_situ.to_json(),
    }
    return document, [f"report: {path}"]


def _import(arguments: argparse.Namespace) -> tuple[Any, list[str]]:
    from pytest_dooly.aiconfigurator import read_tables
    from pytest_dooly.latency_db import LatencyDB
    from pytest_dooly.terminal import import_lines

    # All of them before any is kept: what cannot be read leaves the latency DB as it is.
    tables = [
        table
        for system in arguments.system
        for table in read_tables(system, engine=arguments.engine, engine_version=arguments.engine_version)
    ]
    with LatencyDB.open(Path(arguments.db)) as db:
        files = [(table, db.publish(table)) for table in tables]
    document = [
        {
            "file": table.source.file,
            "source": table.source.name,
            "licence": table.source.licence,
            "environments": [str(environment) for environment in table.rows],
            "latencies": table.num_rows,
            "new": new,
            "unmapped": dict(table.unmapped),
        }
        for table, new in files
    ]
    return {"files": document, "new": sum(new for _, new in files)}, import_lines(files)


def _models(arguments: argparse.Namespace) -> tuple[Any, list[str]]:
    from pytest_dooly.configuration import aliases
    from pytest_dooly.terminal import model_lines

    return {"shipped": list(aliases())}, model_lines()


def _export(arguments: argparse.Namespace) -> tuple[Any, list[str]]:
    from pytest_dooly.export import export
    from pytest_dooly.latency_db import LatencyDB

    with LatencyDB.open(Path(arguments.db), create=False) as db:
        written = export(db, Path(arguments.out), file_format=arguments.format, environment=arguments.environment)
    document = {"file": str(written.path), "rows": written.rows, "environments": [*map(str, written.environments)]}
    return document, [f"{written.rows:,} latencies of {len(written.environments)} environments: {written.path}"]


def _merge(arguments: argparse.Namespace) -> tuple[Any, list[str]]:
    from pytest_dooly.merge import merge
    from pytest_dooly.terminal import merge_lines

    into = Path(arguments.into)
    merged = merge(into, [Path(source) for source in arguments.sources])
    documents = [{**dataclasses.asdict(each), "source": str(each.source)} for each in merged]
    return {"into": str(into), "merged": documents}, merge_lines(into, merged)


def _browse(arguments: argparse.Namespace) -> tuple[Any, list[str]]:
    from pytest_dooly.browse import browse

    address = browse(Path(arguments.db), port=arguments.port, open_browser=not arguments.no_open, announce=_progress)
    return {"address": address}, ["closed"]


def _served(engine: Engine, configuration: ModelConfiguration, db: LatencyDB) -> tuple[ServedModel, Environment]:
    from pytest_dooly.profiling import serve

    environment = engine.environment(configuration)
    return serve(engine, configuration, db, environment, progress=_progress), environment


@contextlib.contextmanager
def _opened(arguments: argparse.Namespace) -> Iterator[tuple[Engine, ModelConfiguration, LatencyDB]]:
    from pytest_dooly.engine import load_engine
    from pytest_dooly.latency_db import LatencyDB

    options = parse_options(serving_flags(arguments))
    configuration = resolve(arguments.model, options)
    engine = load_engine(arguments.engine)
    with LatencyDB.open(Path(arguments.db)) as db:
        yield engine, configuration, db


@contextlib.contextmanager
def _clean_stdout() -> Iterator[TextIO]:
    """Standard output for our own lines; what an engine writes there goes to standard error."""
    try:
        kept = os.dup(sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):  # captured: there is no file to redirect
        yield sys.stdout
        return
    sys.stdout.flush()
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        with os.fdopen(os.dup(kept), "w") as out:
            yield out
    finally:
        sys.stdout.flush()
        os.dup2(kept, sys.stdout.fileno())
        os.close(kept)


def _progress(line: str) -> None:
    sys.stderr.write(f"dooly: {line}\n")


def _warn(out_of_range: Sequence[str]) -> None:
    for line in out_of_range:
        sys.stderr.write(f"{OutOfRangeWarning.__name__}: {line}\n")


def _complain(error: object, status: int) -> int:
    sys.stderr.write(f"dooly: {error}\n")
    return status


_COMMANDS: dict[str, Callable[[argparse.Namespace], tuple[Any, list[str]]]] = {
    "browse": _browse,
    "compare": _compare,
    "export": _export,
    "import": _import,
    "merge": _merge,
    "models": _models,
    "plan": _plan,
    "predict": _predict,
    "report": _report,
    "trace": _trace,
    "validate": _validate,
}
"""What runs each command: the document that --json prints, and lines for people."""


if __name__ == "__main__":
    sys.exit(main())
