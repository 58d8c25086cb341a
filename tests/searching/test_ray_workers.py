"""Candidates as tasks of a Ray cluster; skipped where Ray is not installed."""

from __future__ import annotations

import importlib.util
import threading
import time
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


@with_ray
def test_a_cluster_that_goes_away_is_one_message_and_what_is_finished_is_kept(db: Path, cluster: Any) -> None:
    asked = question()
    of = trials(db, asked, GRID)
    workers = RayWorkers(db, asked, cluster.address)
    done: list[int] = []

    def told(finished: Any) -> None:
        done.append(finished.done)
        if len(done) == 3:
            threading.Thread(target=cluster.shutdown).start()
            time.sleep(1)

    try:
        with LatencyDB.open(db) as opened, pytest.raises(WorkerError, match="the Ray cluster went away"):
            run(InTurn(of), workers, opened, known={}, total=len(of), progress=told)
        with LatencyDB.open(db) as opened:
            assert len(known_outcomes(of, opened)) == len(done) >= 3
    finally:
        workers.close()


@with_ray
def test_no_cluster_at_an_address(db: Path) -> None:
    with pytest.raises(WorkerError, match=r"no Ray cluster at 127.0.0.1:1 "):
        RayWorkers(db, question(), "127.0.0.1:1")
