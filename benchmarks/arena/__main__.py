"""Published runs of vLLM, each predicted from published latencies of operations alone, through simulated traffic.

    python -m benchmarks.arena [--runs FILE] [--configs DIR] [--db FILE] [--every N] [--write DIR]

`runs.csv` has the figures as their sources print them, with sources, versions and the servers' options; `--runs` names
another file of the same columns, and `--configs` a folder that holds ORG--NAME/config.json of its models. A run can be
expressed where its model's config.json, its lengths and its load are known; what is left out is counted by reason.
Lengths are drawn as the client drew them, `range0.8-1` uniformly from 0.8 to 1.0 times the value; where only means or
medians are known, by a law that `client.py` states. Requests of a rate come at random, as most clients send them. An
engine takes as many tokens and requests a step as `vllm serve` does on the device where the source names nothing else.
Beside each group stands what aiconfigurator itself estimates of its closed loops (`theirs.py`).
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks.arena.calibration import calibration
from benchmarks.arena.models import is_known
from benchmarks.arena.predictions import predict_all, served, trace_all
from benchmarks.arena.report import Row, save_picture, tables
from benchmarks.arena.runs import RUNS, PublishedRun, read_runs
from benchmarks.arena.theirs import estimates, key_of
from benchmarks.public import write
from pytest_dooly.core.device import DEVICES
from pytest_dooly.errors import DoolyError


def main() -> None:
    """Imports tables, traces, predicts, prints, and writes where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", metavar="FILE", type=Path, default=RUNS, help="published runs (runs.csv beside this)")
    parser.add_argument("--configs", metavar="DIR", type=Path, help="holds ORG--NAME/config.json of models")
    parser.add_argument("--db", metavar="FILE", type=Path, help="latency DB to import into; a temporary one else")
    parser.add_argument("--every", metavar="N", type=int, default=1, help="only every so many runs of a group")
    parser.add_argument("--write", metavar="DIR", type=Path, help="a report and a picture as well")
    options = parser.parse_args()
    left_out: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        if options.configs is not None:
            if not options.configs.is_dir():
                parser.error(f"--configs {options.configs} is no directory: it holds ORG--NAME/config.json of models")
            shutil.copytree(options.configs, folder, dirs_exist_ok=True)
        try:
            runs = list(_thinned(_expressible(options.runs, Path(folder), left_out), options.every))
        except DoolyError as error:
            parser.error(str(error))
        db_path = options.db or Path(folder) / "latency.db"
        refused = trace_all(runs, db_path, Path(folder))
        rows, theirs = [], estimates()
        wanted = [run for run in runs if served(run) not in refused]
        left_out.update(refused[served(run)] for run in runs if served(run) in refused)
        for run, found in predict_all(wanted, db_path, Path(folder)):
            if isinstance(found, str):
                left_out[found] += 1
            else:
                rows.append(Row(run, found, theirs.get(key_of(run))))
    text = "\n".join([*tables(rows, left_out), "", *calibration(rows)])
    sys.stdout.write(f"{text}\n")
    if options.write is not None:
        write(options.write / "arena.md", "Every published run that can be expressed", __doc__, text)
        save_picture(rows, options.write / "arena.png")


def _expressible(path: Path, folder: Path, left_out: Counter[str]) -> list[PublishedRun]:
    """The runs that can be predicted; counts the others by reason."""
    found, devices = [], {each.name for each in DEVICES}
    for run, _, reason in read_runs(path):
        if run is not None and run.device not in devices:
            reason = "no operations of its device are published"
        elif run is not None and not is_known(run.model, folder):
            reason = "its config.json is not at hand"
        if reason or run is None:
            left_out[reason] += 1
        else:
            found.append(run)
    return found


def _thinned(runs: list[PublishedRun], every: int) -> list[PublishedRun]:
    """Every so many runs of each group, in their order."""
    seen: Counter[object] = Counter()
    kept = []
    for run in runs:
        if seen[run.group] % every == 0:
            kept.append(run)
        seen[run.group] += 1
    return kept


if __name__ == "__main__":
    main()
