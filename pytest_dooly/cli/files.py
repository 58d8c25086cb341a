"""`dooly import`, `export`, `merge` and `browse`: what goes into the file of a latency DB, and out of it."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from pytest_dooly.cli.answer import Answer, progress
from pytest_dooly.latency_db.browse import browse as show
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.latency_db.export import export as write
from pytest_dooly.latency_db.merge import merge as bring
from pytest_dooly.published.aiconfigurator import read_tables
from pytest_dooly.report.terminal import import_lines, merge_lines

__all__ = ["browse", "export", "import_tables", "merge"]


def import_tables(arguments: argparse.Namespace) -> Answer:
    """Published latencies into the latency DB."""
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
    return Answer({"files": document, "new": sum(new for _, new in files)}, import_lines(files))


def export(arguments: argparse.Namespace) -> Answer:
    """Every latency, as CSV or Parquet."""
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
