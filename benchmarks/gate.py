"""`make bench-gate`: how often the gate cries wolf, and how often it finds what was slowed down, on this machine.

Run as `python -m benchmarks.gate [--runs 40 --slowed 20 --seconds 20] [--write DIR] [--db FILE]`: llama-tiny on the
real engine. The model is profiled once by `pytest --dooly-model=llama-tiny`; after that every run is a `Gate.run`,
which looks for its baseline in the latency DB, takes turns, judges and keeps what it has found there, just as a session
of pytest with --dooly-gate does. With --against another engine of this interpreter takes turns with each, as
`--dooly-against` has it, and stands for the baseline.

A slowdown is put into the forward method of the layers of one operation: when the layer is done, the processor is kept
busy for a share of the time that it took. Operations are those whose share of a figure is nearest to what is asked.

`--again` judges the turns that were recorded once more, in their order and from no baseline on, with the code as it is
now: what a change of the verdict does to real runs. Some are kept in `gate_turns/`, packed: `--again --db
benchmarks/gate_turns/xeon-1.db.xz`. `--simulate` reads the turns of the runs without a change and makes
runs of them, see `simulated`.
"""

from __future__ import annotations

import argparse
import contextlib
import lzma
import math
import random
import shlex
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.gate_simulation import UNCHANGED, simulated
from pytest_dooly.core.configuration import ModelConfiguration, parse_options, resolve
from pytest_dooly.core.gate_run import GateRun
from pytest_dooly.core.operation import OperationKind
from pytest_dooly.core.signature import ModelOperation, ServedModel
from pytest_dooly.core.turn import Turn
from pytest_dooly.core.workload import Workload
from pytest_dooly.drift.baseline import Baseline
from pytest_dooly.drift.exposure import Exposure
from pytest_dooly.drift.found import Found
from pytest_dooly.drift.verdict import Outcome
from pytest_dooly.engine import load_engine
from pytest_dooly.gating import Gate, GateOptions, Starts, is_opened_first
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.latency_db.file import copy_of
from pytest_dooly.regress.stored import regressors_of
from pytest_dooly.serving import serve

SLOWED = Path(__file__).with_name("slowed_engine.py")

MODEL, WORKLOAD = "llama-tiny", Workload(16, 32, 4)

LIMITS = {"max-model-len": "128", "max-num-tokens": "128", "max-num-seqs": "4"}


@dataclass(frozen=True)
class Slowdown:
    """What is put into one operation.

    Attributes:
        share: of a figure that the operation should take.
        slower: relative slowdown.
        is_found: whether the gate is to find it.
    """

    share: float
    slower: float
    is_found: bool


SLOWDOWNS = (Slowdown(0.2, 0.05, True), Slowdown(0.05, 0.1, True), Slowdown(0.003, 0.2, False))


@dataclass(frozen=True)
class Run:
    """One run of the gate.

    Attributes:
        slowdown: that was put in; None for none.
        label: of the operation that it was put into.
        found: what the gate made of it.
        wall_s: all that the run took.
    """

    slowdown: Slowdown | None
    label: str | None
    found: Found
    wall_s: float


def main() -> None:
    """Measures, or simulates, and writes what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=40, help="without a change (40)")
    parser.add_argument("--slowed", type=int, default=20, help="with each of the slowdowns (20)")
    parser.add_argument("--put", type=int, nargs="+", default=[5, 10, 20], help="slowdowns to put in, in %% (5 10 20)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of turns in each run (20)")
    parser.add_argument("--starts", type=int, help="of each engine in each run (as many as the seconds pay for)")
    parser.add_argument("--against", action="store_true", help="compare with an engine that takes turns")
    parser.add_argument("--db", type=Path, default=Path(".dooly/gate.db"), help="latency DB (.dooly/gate.db)")
    parser.add_argument("--write", type=Path, default=Path("reports/gate"), metavar="DIR")
    parser.add_argument("--again", action="store_true", help="judge the recorded runs again, instead")
    parser.add_argument("--simulate", type=int, metavar="RUNS", help="runs made of recorded turns, instead")
    parser.add_argument("--png", type=Path, default=Path("reports/gate/gate.png"), help="of the simulation")
    asked = parser.parse_args()
    asked.write.mkdir(parents=True, exist_ok=True)
    if asked.simulate:
        text = simulated(asked.db, asked.simulate, asked.png)
        (asked.write / "simulation.md").write_text(text, encoding="utf-8")
        sys.stdout.write(text)
        return
    if asked.again:
        with _unpacked(asked.db) as db:
            runs = again(db)
    else:
        _profile(asked.db)
        runs = _measured(asked)
    judged = [run for run in runs if run.found.outcome is not Outcome.BASELINE]
    text = report(judged, asked.seconds, against=asked.against)
    (asked.write / "gate.md").write_text(text, encoding="utf-8")
    sys.stdout.write(text)


@contextmanager
def _unpacked(path: Path) -> Iterator[Path]:
    """A latency DB, unpacked where it is packed."""
    if path.suffix != ".xz":
        yield path
        return
    with tempfile.TemporaryDirectory() as folder, lzma.open(path) as packed:
        unpacked = Path(folder) / path.stem
        with unpacked.open("wb") as file:
            shutil.copyfileobj(packed, file)
        yield unpacked


def _profile(db: Path) -> None:
    """Times what the latency DB lacks, coarsely: it says where steps spend their time, and no more."""
    flags = [f"--dooly-{flag}={value}" for flag, value in LIMITS.items()]
    command = [sys.executable, "-m", "pytest", f"--dooly-model={MODEL}", f"--dooly-db={db}", *flags]
    subprocess.run([*command, "--dooly-target=1000", "--benchmark-quiet", "-q"], check=True)


def _measured(asked: argparse.Namespace) -> list[Run]:
    """Runs without a change until there is a baseline, then all others in random order."""
    configuration = resolve(MODEL, parse_options(LIMITS))
    with LatencyDB.open(asked.db) as db:
        options = GateOptions(
            (WORKLOAD,),
            budget_s=asked.seconds,
            starts=asked.starts,
            against=Path(sys.executable) if asked.against else None,
        )
        bench = _Bench(configuration, db, options)
        plan: list[Slowdown | None] = [None] * min(6, asked.runs)
        put = [each for each in SLOWDOWNS if round(100 * each.slower) in asked.put]
        rest = [None] * (asked.runs - len(plan)) + [each for each in put for _ in range(asked.slowed)]
        random.Random(0).shuffle(rest)
        runs: list[Run] = []
        with contextlib.suppress(KeyboardInterrupt):  # what there is by then counts
            for slowdown in [*plan, *rest]:
                runs.append(bench.run(slowdown))
                _say(len(runs), runs[-1])
    return runs


class _Recorded(Gate):
    """A run whose turns are there already, and those of the engine beside it where one was."""

    recorded: GateRun
    turns: Sequence[Turn] = ()
    olds: Sequence[Turn] = ()

    def take(self, key: str, spent: Sequence[Exposure]) -> list[Starts]:
        turns, olds = ([replace(t, start=t.start or 1) for t in each] for each in (self.turns, self.olds))
        for position, turn in enumerate(turns):
            self._db.keep_gate_turn(key, position, turn)
        if olds:
            before = self.recorded.environment
            self.baseline = Baseline((), (), before, regressors_of(self._db, before))
        numbers = dict.fromkeys(turn.start for turn in turns)  # what drew its own was one process
        return [Starts(_of(turns, number), _of(olds, number), is_opened_first(number)) for number in numbers]


def _of(turns: Sequence[Turn], number: int) -> list[Turn]:
    return [turn for turn in turns if turn.start == number]


def again(path: Path) -> list[Run]:
    """Recorded runs judged by the gate as it is now.

    Args:
        path: latency DB with runs of this benchmark, which stays as it is.
    """
    configuration, engine = resolve(MODEL, parse_options(LIMITS)), load_engine("vllm")
    with LatencyDB.open(path, create=False) as db:
        every = [(run, db.gate_turns(run.key)) for run in db.gate_runs()]
    runs = []
    with copy_of(path) as copy:
        with contextlib.closing(sqlite3.connect(copy)) as emptied, emptied:
            emptied.execute("DELETE FROM gate_turn")
            emptied.execute("DELETE FROM gate_run")
        with LatencyDB.open(copy, create=False) as db:
            model = serve(engine, configuration, db, engine.environment(configuration))
            for at, (run, turns) in enumerate(every):
                if not run.document:
                    continue
                slowdown = next((each for each in SLOWDOWNS if run.commit.startswith(f"{each.slower:.0%} in ")), None)
                turned = bool(run.document.get("interleaved"))
                against = Path(sys.executable) if turned else None
                options = GateOptions((WORKLOAD,), commit=run.commit, against=against)
                gate = _Recorded(engine, configuration, model, db, options)
                gate.recorded, gate.turns = run, turns
                gate.olds = every[at + 1][1] if turned else ()  # those began right after the run that they are of
                found = gate.run()
                label = None if slowdown is None else run.commit.partition(" in ")[2]
                runs.append(Run(slowdown, label, found, sum(turn.spent_s for turn in turns)))
                _say(len(runs), runs[-1])
    return runs


class _Bench:
    """What many runs share."""

    def __init__(self, configuration: ModelConfiguration, db: LatencyDB, options: GateOptions) -> None:
        self._configuration, self._db, self._options = configuration, db, options
        self._engine = load_engine("vllm")
        self._model = serve(self._engine, configuration, db, self._engine.environment(configuration))
        self._shares: dict[str, float] = {}

    def run(self, slowdown: Slowdown | None) -> Run:
        """One run of the gate, slowed down or not."""
        begin_s = time.perf_counter()
        label = None if slowdown is None else self._nearest(slowdown.share).signature.label
        put = UNCHANGED if slowdown is None else f"{slowdown.slower:.0%} in {label}"
        options = replace(self._options, commit=put)
        with nullcontext(Path(sys.executable)) if slowdown is None else self._slowed(slowdown) as python:
            gate = Gate(self._engine, self._configuration, self._model, self._db, options, python=python)
            found = gate.run()
        self._shares = self._shares or {each.key: each.share for each in found.verdict.operations}
        return Run(slowdown, label, found, time.perf_counter() - begin_s)

    @contextmanager
    def _slowed(self, slowdown: Slowdown) -> Iterator[Path]:
        """What stands for an interpreter whose engine is slowed down."""
        with tempfile.TemporaryDirectory() as folder:
            python, layers = Path(folder) / "python", self._nearest(slowdown.share).layers
            command = [sys.executable, "-P", str(SLOWED), str(slowdown.slower), *layers]
            python.write_text(f"#!/bin/sh\nexec {shlex.join(command)}\n")
            python.chmod(0o755)
            yield python

    def _nearest(self, share: float) -> ModelOperation:
        return nearest(self._model, self._shares, share)


def nearest(model: ServedModel, shares: Mapping[str, float], share: float) -> ModelOperation:
    """The operation of layers whose largest share of a figure is nearest to one.

    Args:
        model: what is served.
        shares: largest of each operation, by signature key.
        share: that is asked for.
    """
    known = [
        each
        for each in model.operations
        if each.signature.kind is not OperationKind.OVERHEAD and shares.get(each.signature.key)
    ]
    return min(known, key=lambda each: abs(math.log(shares[each.signature.key] / share)))


def _say(number: int, run: Run) -> None:
    verdict = run.found.verdict
    put = "nothing" if run.slowdown is None else f"{run.slowdown.slower:.0%} into {run.label}"
    changes = ", ".join(f"{each.exposure.figure} {each.change.relative:+.2%}" for each in verdict.figures)
    named = ", ".join(f"{each.label} {each.change.relative:+.1%}" for each in verdict.drifted)
    line = f"{number:3} {put:40} {run.found.outcome:10} {changes} [{named}] {verdict.turns} turns, {run.wall_s:.0f} s"
    sys.stderr.write(f"{line}\n")


def report(runs: Sequence[Run], seconds: float, *, against: bool = False) -> str:
    """Markdown: outcomes by what was put in, and which operations were named."""
    environment = runs[0].found.environment
    how = (
        "starts a second one, which stands for the baseline" if against else "looks for its baseline in the latency DB"
    )
    lines = [
        "# The gate on drift, as it is",
        "",
        f"`make bench-gate`: {len(runs)} runs of {MODEL}, workload {WORKLOAD}, up to {seconds:.0f} s of turns each, in "
        f"{sum(run.wall_s for run in runs) / 60:.0f} minutes; the limit is 3 %. On {environment}. "
        f"Each {how}, takes its turns, judges and is kept as a session of pytest does it.",
        "",
        "| put in | operation | its share | runs | passed | undecided | drift | right one named | another one named |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for slowdown in (None, *SLOWDOWNS):
        these = [run for run in runs if run.slowdown == slowdown]
        if not these:
            continue
        outcomes = Counter(run.found.outcome.value for run in these)
        label = these[0].label
        named = [{each.label for each in run.found.verdict.drifted} for run in these]
        share = max((e.share for e in these[0].found.verdict.operations if e.label == label), default=0.0)
        lines.append(
            f"| {'nothing' if slowdown is None else f'{slowdown.slower:.0%}'} | {label or ''} "
            f"| {'' if label is None else f'{share:.1%}'} | {len(these)} | {outcomes['passed']} "
            f"| {outcomes['undecided']} | {outcomes['drift']} "
            f"| {sum(run.label in each for run, each in zip(these, named, strict=True))} "
            f"| {sum(bool(each - {run.label}) for run, each in zip(these, named, strict=True))} |"
        )
    seen = sorted(max(figure.visible for figure in run.found.verdict.figures) for run in runs)
    turns = sorted(run.found.verdict.turns for run in runs)
    lines += [
        "",
        f"Runs took {turns[0]} to {turns[-1]} turns. In the median run a slowdown of a figure by "
        f"{seen[len(seen) // 2]:.1%} would have been seen with 95 % power; in the noisiest, one of {seen[-1]:.1%}.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
