"""`dooly import`, `export`, `merge` and `browse`: what goes into the file of a latency DB, and out of it."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from pytest_dooly.cli.answer import Answer, progress
from pytest_dooly.cli.hosts import export_for
from pytest_dooly.core.configuration import ServingOptions, resolve
from pytest_dooly.core.published_latency import PublishedTable
from pytest_dooly.engine import load_engine
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.latency_db.browse import browse as show
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.latency_db.export import export as write
from pytest_dooly.latency_db.merge import merge as bring
from pytest_dooly.published.aiconfigurator import read_tables
from pytest_dooly.published.llmservingsim import Bundle
from pytest_dooly.report.terminal import import_lines, merge_lines
from pytest_dooly.serving import serve

__all__ = ["browse", "export", "import_tables", "merge"]


def import_tables(arguments: argparse.Namespace) -> Answer:
    """Published latencies into the latency DB."""
    # All of them before any is kept: what cannot be read leaves the latency DB as it is.
    tables = _package(arguments) if arguments.package == "aiconfigurator" else _bundle(arguments)
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
    return Answer({"files": document, "new": sum(new for _, new in files)}, import_lines(files))


def _package(arguments: argparse.Namespace) -> list[PublishedTable]:
    """The tables of aiconfigurator of the systems that are named."""
    if not arguments.system or arguments.directory is not None or arguments.model is not None:
        raise ConfigurationError("aiconfigurator's tables are in its package: name systems, as in --system h200_sxm")
    return [
        table
        for system in arguments.system
        for table in read_tables(system, engine=arguments.engine, engine_version=arguments.engine_version)
    ]


def _bundle(arguments: argparse.Namespace) -> list[PublishedTable]:
    """The tables of a bundle of LLMServingSim; its model is traced for their sizes."""
    if arguments.directory is None or arguments.system:
        raise ConfigurationError(
            "LLMServingSim's tables are in its repository: name a directory of a clone, "
            "as in profiler/perf/RTX4090/meta-llama/Llama-3.1-8B/bf16/tp1"
        )
    bundle = Bundle.open(Path(arguments.directory))
    options = ServingOptions(dtype="bfloat16", tensor_parallel_size=bundle.ranks)
    configuration, engine = resolve(arguments.model or bundle.model, options), load_engine("vllm")
    with LatencyDB.open(Path(arguments.db)) as db:
        model = serve(engine, configuration, db, engine.environment(configuration), progress=progress)
    return list(bundle.tables(model))


def export(arguments: argparse.Namespace) -> Answer:
    """Every latency, as CSV or Parquet, or a model's as another simulator reads them."""
    if arguments.host is not None:
        return export_for(arguments)
    if arguments.model is not None:
        raise ConfigurationError(f"{arguments.model}: name the simulator that the file is for, as in --for llm-d")
    with LatencyDB.open(Path(arguments.db), create=False) as db:
        written = write(db, Path(arguments.out), file_format=arguments.format, environment=arguments.environment)
    document = {"file": str(written.path), "rows": written.rows, "environments": [*map(str, written.environments)]}
    line = f"{written.rows:,} latencies of {len(written.environments)} environments: {written.path}"
    return Answer(document, [line])


def merge(arguments: argparse.Namespace) -> Answer:
    """Other latency DBs into one."""
    into = Path(arguments.into)
    merged = bring(into, [Path(source) for source in arguments.sources])
    documents = [{**dataclasses.asdict(each), "source": str(each.source)} for each in merged]
    return Answer({"into": str(into), "merged": documents}, merge_lines(into, merged))


def browse(arguments: argparse.Namespace) -> Answer:
    """The latency DB in a browser, until it is interrupted."""
    address = show(Path(arguments.db), port=arguments.port, open_browser=not arguments.no_open, announce=progress)
    return Answer({"address": address}, ["closed"])
