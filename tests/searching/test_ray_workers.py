"""Candidates as tasks of a Ray cluster; skipped where Ray is not installed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pytest_dooly.errors import MissingExtraError, WorkerError
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.searching.chooser import InTurn
from pytest_dooly.searching.ray_workers import RayWorkers
from pytest_dooly.searching.study import known_outcomes, run
from pytest_dooly.searching.workers import Here
from tests.searching.samples import grid, question, trials

with_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray, of the extra ray")
GRID = grid(("h100_sxm", "h200_sxm"), max_num_seqs=[4, 8, 16, 32], max_num_tokens=[512, 1024, 2048])


@pytest.fixture
def db(tmp_path: Path) -> Path:
    path = tmp_path / "latency.db"
    LatencyDB.open(path).close()
    return path


def test_without_ray_it_says_what_to_install(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'pytest-dooly\[ray\]'"):
        RayWorkers(db, question(), "auto")


@pytest.fixture
def cluster() -> Any:
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@with_ray
def test_a_node_that_is_killed_midway_loses_nothing(db: Path, cluster: Any) -> None:
    node = cluster.add_node(num_cpus=1)
    asked = question()
    of = trials(db, asked, GRID)
    workers = RayWorkers(db, asked, cluster.address)
    done: list[int] = []

    def told(finished: Any) -> None:
        done.append(finished.done)
        if len(done) == 5:
            cluster.remove_node(node, allow_graceful=False)

    try:
        assert workers.lanes == 2
        with LatencyDB.open(db) as opened:
            found = run(InTurn(of), workers, opened, known={}, total=len(of), progress=told)
            assert known_outcomes(of, opened) == found
    finally:
        workers.close()
    assert done == list(range(1, len(of) + 1))
    here = Here(db, asked)
    assert found[of[0].key].rate == here.submit(0, of[0]).result().rate
    here.close()


GONE = """
import sys
from pathlib import Path
from ray.cluster_utils import Cluster
from pytest_dooly.errors import WorkerError
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.searching.chooser import InTurn
from pytest_dooly.searching.ray_workers import RayWorkers
from pytest_dooly.searching.study import known_outcomes, run
from tests.searching.samples import question, trials
from tests.searching.test_ray_workers import GRID

db, asked = Path(sys.argv[1]), question()
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
of, workers = trials(db, asked, GRID), RayWorkers(db, asked, cluster.address)
told = lambda finished: finished.done == 3 and cluster.head_node.kill_all_processes(check_alive=False)
try:
    with LatencyDB.open(db) as opened:
        run(InTurn(of), workers, opened, known={}, total=len(of), progress=told)
except WorkerError as error:
    workers.close()
    with LatencyDB.open(db) as opened:
        print(f"{len(known_outcomes(of, opened))} kept; {error}", flush=True)
import os; os._exit(0)  # Ray would wait for its cluster
"""


@with_ray
def test_a_cluster_that_goes_away_is_one_message_and_what_is_finished_is_kept(db: Path) -> None:
    """In a process of its own, which Ray ends when it has waited for its cluster for a minute."""
    command = [sys.executable, "-c", GONE, str(db)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=120, check=True)
    (line,) = (line for line in ended.stdout.splitlines() if " kept; " in line)
    assert int(line.split()[0]) >= 3
    assert line.endswith("run again; what is finished is kept")
    assert "the Ray cluster went away" in line


@with_ray
def test_no_cluster_at_an_address(db: Path) -> None:
    with pytest.raises(WorkerError, match=r"no Ray cluster at 127.0.0.1:1 "):
        RayWorkers(db, question(), "127.0.0.1:1")
