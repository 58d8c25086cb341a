"""A search that is killed goes on where it was: nothing is lost, nothing done twice."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import pytest

import pytest_dooly
from pytest_dooly.core.configuration import ServingOptions
from pytest_dooly.errors import ConfigurationError, MissingMeasurements, WorkerError
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.searching.candidate import Grid, Trial
from pytest_dooly.searching.chooser import InTurn
from pytest_dooly.searching.objective import Objective
from pytest_dooly.searching.outcome import Outcome
from pytest_dooly.searching.search import searched
from pytest_dooly.searching.study import Traced, known_outcomes, run
from pytest_dooly.searching.workers import Processes
from pytest_dooly.simulation.simulate import Engine
from tests.samples import ENVIRONMENT, LINEAR, TOKENS, measured
from tests.searching.samples import MODEL, candidate, grid, outcome, question, traffic, trials

GRID = grid(tensor_parallel_sizes=[1, 2], max_num_seqs=[8, 16, 32], max_num_tokens=[512, 2048])


@pytest.fixture
def db(tmp_path: Path) -> Path:
    path = tmp_path / "latency.db"
    LatencyDB.open(path).close()
    return path


class Counted:
    """Workers of several lanes that say what was asked of them; the last ones can be made to fail."""

    def __init__(self, lanes: int = 2, fails_after: int = 1000) -> None:
        self.lanes, self._left = lanes, fails_after
        self.tried: list[str] = []

    def submit(self, lane: int, trial: Trial) -> Future[Outcome]:
        future: Future[Outcome] = Future()
        if self._left == 0:
            future.set_exception(WorkerError("gone"))
        else:
            self._left -= 1
            self.tried.append(trial.key)
            future.set_result(outcome(float(len(self.tried)), of=trial.candidate))
        return future

    def close(self) -> None: ...


def test_every_candidate_of_the_grid_has_a_key_of_its_own(db: Path) -> None:
    asked = question()
    found = trials(db, asked, GRID)
    assert len({trial.key for trial in found}) == len(found) == 6  # one trace was given, that of one GPU
    assert [trial.key for trial in trials(db, asked, GRID)] == [trial.key for trial in found]


@pytest.mark.parametrize(
    "change",
    [
        {"traffic": traffic(seed=1)},
        {"server_s": 0.1},
        {"tolerance": 0.1},
        {"engine": Engine(gpu_memory_utilization=0.8)},
        {"objective": Objective.parse("ttft:1s")},
    ],
)
def test_another_question_has_other_keys(db: Path, change: dict[str, object]) -> None:
    of, asked = GRID, question()
    other = dataclasses.replace(asked, **change)  # type: ignore[arg-type]
    assert not {trial.key for trial in trials(db, asked, of)} & {trial.key for trial in trials(db, other, of)}


def test_what_a_prediction_rests_on_is_part_of_the_key(db: Path) -> None:
    before = {trial.key for trial in trials(db, question(), GRID)}
    own = dataclasses.replace(ENVIRONMENT, device="NVIDIA H200")
    with LatencyDB.open(db) as opened:
        opened.record(LINEAR, own, TOKENS[0], measured(1e-3), spent_s=1.0)
    assert not before & {trial.key for trial in trials(db, question(), GRID)}


@pytest.mark.parametrize("killed_after", [0, 1, 4])
def test_a_search_that_is_killed_goes_on(db: Path, killed_after: int) -> None:
    of = trials(db, question(), GRID)
    first, second = Counted(fails_after=killed_after), Counted()
    with LatencyDB.open(db) as opened, pytest.raises(WorkerError, match="gone"):
        run(InTurn(of), first, opened, known={}, total=6)
    with LatencyDB.open(db) as opened:
        known = known_outcomes(of, opened)
        assert set(known) == set(first.tried)
        left = [trial for trial in of if trial.key not in known]
        told: list[int] = []
        found = run(InTurn(left), second, opened, known=known, total=6, progress=lambda each: told.append(each.done))
        assert known_outcomes(of, opened) == found
    assert len(found) == 6
    assert not set(first.tried) & set(second.tried)
    assert sorted([*first.tried, *second.tried]) == sorted(trial.key for trial in of)
    assert told == list(range(killed_after + 1, 7))


def test_damaged_outcomes_are_found_again(db: Path) -> None:
    of = trials(db, question(), GRID)
    with LatencyDB.open(db) as opened:
        opened.save_search_outcome(of[0].key, "damaged", {"rate": "none"})
        assert known_outcomes(of, opened) == {}


def search(db: Path, **changes: object) -> pytest_dooly.Search:
    asked = question()
    with LatencyDB.open(db) as opened:
        traced = [Traced("small", ServingOptions(), MODEL)]
        return searched(
            grid(max_num_seqs=[8, 64]),
            traced,
            asked,
            opened,
            db,
            **({"prices": {}, "jobs": 1} | changes),  # type: ignore[arg-type]
        )


def test_a_search_from_end_to_end_and_again(db: Path) -> None:
    found = search(db)
    assert [each.outcome.candidate.max_num_seqs for each in found.ranked] == [64, 8]
    assert found.ranked[0].outcome.rate > found.ranked[1].outcome.rate
    assert found.resumed == 0
    again = search(db, prices={"h200_sxm": 3.0})
    assert again.resumed == 2
    assert [each.outcome for each in again.ranked] == [each.outcome for each in found.ranked]
    assert again.priced
    with pytest.raises(ConfigurationError, match="--price names none of h200_sxm"):
        search(db, prices={"l40s": 1.0})
    with pytest.raises(ConfigurationError, match="required rate must be"):
        search(db, rate=-1.0)


def test_processes_find_the_same(db: Path) -> None:
    asked = question()
    of = trials(db, asked, grid(max_num_seqs=[8, 64]))
    workers = Processes(db, asked, jobs=2)
    try:
        with LatencyDB.open(db) as opened:
            found = run(InTurn(of), workers, opened, known={}, total=2)
    finally:
        workers.close()
    here = {each.outcome.candidate: each.outcome.rate for each in search(db.with_name("other.db")).ranked}
    assert {each.candidate: each.rate for each in found.values()} == here


def test_the_public_function_reads_the_latency_db_alone(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingMeasurements, match="has no model 'small'"):
        pytest_dooly.search("small", traffic(), "ttft:1s", devices=["h200_sxm"], db=db)
    with pytest.raises(ConfigurationError, match="unknown device 'tpu'"):
        monkeypatch.setattr("pytest_dooly.searching.search.traced_for", lambda *_: MODEL)
        pytest_dooly.search("small", traffic(), "ttft:1s", devices=["tpu"], db=db)
    with pytest.raises(ConfigurationError, match="at least one of devices, got none"):
        pytest_dooly.search("small", traffic(), "ttft:1s", devices=[], db=db)
    found = pytest_dooly.search("small", traffic(), "tpot:15ms", devices="h200_sxm", db=db, jobs=1)
    assert found.best is not None
    assert len(found.frame()) == 1


def test_expert_parallel_sizes_that_no_engine_takes_are_none() -> None:
    of = Grid(["a"], ["h200_sxm"], [1, 2, 4], [1, 4])
    ranks = [(o.tensor_parallel_size, o.expert_parallel_size) for _, o in of.options(ServingOptions())]
    assert ranks == [(1, 1), (2, 1), (4, 1), (4, 4)]
    of = Grid(["a"], ["h200_sxm"], [1, 2], [1, 4], data_parallel_sizes=[1, 2])
    named = [o for _, o in of.options(ServingOptions())]
    shared = [(o.tensor_parallel_size, o.data_parallel_size, o.expert_parallel_size) for o in named]
    assert shared == [(1, 1, 1), (1, 2, 1), (2, 1, 1), (2, 2, 1), (2, 2, 4)]
    assert str(candidate(ranks=2)).startswith("small on h200_sxm, tp 2, 64 requests")


KILLED = """
import sys
from pathlib import Path
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.searching.chooser import InTurn
from pytest_dooly.searching.study import run
from pytest_dooly.searching.workers import Here
from tests.searching.samples import question, trials
from tests.searching.test_study import GRID

db, asked = Path(sys.argv[1]), question()
with LatencyDB.open(db) as opened:
    run(InTurn(trials(db, asked, GRID)), Here(db, asked), opened, known={}, total=6,
        progress=lambda finished: print(finished.done, flush=True))
"""


def test_a_killed_process_has_kept_what_it_finished(db: Path) -> None:
    """By SIGKILL, between two candidates or within one."""
    with subprocess.Popen([sys.executable, "-c", KILLED, str(db)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        assert process.stdout.readline() == "2\n"
        process.kill()
    asked = question()
    of = trials(db, asked, GRID)
    with LatencyDB.open(db) as opened:
        known = known_outcomes(of, opened)
        assert 2 <= len(known) <= 6
        left = Counted()
        run(InTurn([trial for trial in of if trial.key not in known]), left, opened, known=known, total=6)
        after = known_outcomes(of, opened)
    assert len(after) == 6
    assert known.items() <= after.items()
    assert set(left.tried) == {trial.key for trial in of} - known.keys()


def test_a_worker_that_is_killed_is_one_message(db: Path) -> None:
    asked = question(traffic=traffic(3000))
    (trial,) = trials(db, asked, grid())
    workers = Processes(db, asked, jobs=1)
    try:
        future = workers.submit(0, trial)
        (pid,) = workers._pools[0]._processes
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkerError, match=r"run again, with fewer --jobs.*; what is finished is kept"):
            future.result(timeout=60)
    finally:
        workers.close()
