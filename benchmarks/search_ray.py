"""The search of `benchmarks.search` on two nodes of a Ray cluster on this machine, one of them killed midway.

Run as `python -m benchmarks.search_ray [--db FILE] [--requests N] [--write DIR]`, with the extras ray and search, and
grpcio. The search is a process of its own that joins the cluster with `--ray`. When half of the outcomes are kept, and
while a candidate is under way on the second node, that node gets SIGKILL. How often each task was begun and ended is
what Ray's own control store has of it. Afterwards some outcomes are taken away and found again by one process without
Ray, for comparison. All of it on a copy of the latency DB.
"""

from __future__ import annotations

import json
import os
import resource
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.search import ASKED, prepared, searched
from pytest_dooly.latency_db.file import copy_of

CANDIDATES = 256
"""Of the grid of `ASKED`."""

CHECKED = 8
"""Outcomes that are found again without Ray."""

TASK = "_evaluated"
"""What Ray calls the function of a candidate."""


@dataclass(frozen=True)
class Attempt:
    """One time that a task was handed to a node.

    Attributes:
        task: of one candidate.
        node: that it was handed to.
        begun: whether it ran there.
        ended: whether it came to an outcome.
    """

    task: str
    node: str
    begun: bool
    ended: bool


def main() -> None:
    """One search with a node that goes away, and what came of it."""
    asked = prepared(__doc__, requests="200")
    arguments = (*ASKED, "--requests", asked.requests)
    with copy_of(asked.db) as copy:
        _execute(copy, "DELETE FROM search_outcome")
        lines = disturbed(copy, arguments)
        lines += compared(copy, arguments)
    asked.write.mkdir(parents=True, exist_ok=True)
    text = "\n".join(["# A search on two Ray nodes, one of them killed midway", "", *lines, ""])
    (asked.write / "search_ray.md").write_text(text, encoding="utf-8")
    sys.stdout.write(text)


def disturbed(db: Path, arguments: Sequence[str]) -> list[str]:
    """The search, with the second node killed at half of it."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        node = cluster.add_node(num_cpus=1)
        begin_s = time.perf_counter()
        command = [sys.executable, "-m", "pytest_dooly.cli", *arguments, "--db", str(db), "--ray", cluster.address]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as search:
            while _number(db) < CANDIDATES // 2 or not _under_way(cluster.address, node.node_id):
                if search.poll() is not None:
                    raise SystemExit(f"the search ended at {_number(db)} outcomes, before a node was killed")
                time.sleep(0.3)
            kept, killed_s = _number(db), time.perf_counter() - begin_s
            cluster.remove_node(node, allow_graceful=False)
            output, _ = search.communicate()
            seconds = time.perf_counter() - begin_s
        if search.returncode:
            raise SystemExit(f"the search ended with status {search.returncode}")
        attempts = _attempts(cluster.address)
    finally:
        cluster.shutdown()
    return [*_told(db, attempts, node.node_id, kept=kept, killed_s=killed_s, seconds=seconds), *_listed(output)]


def compared(db: Path, arguments: Sequence[str]) -> list[str]:
    """Some of the outcomes beside those that one process without Ray comes to."""
    simulated = {key: each for key, each in _outcomes(db).items() if each["simulations"]}
    chosen = sorted(simulated, key=lambda key: str(simulated[key]["candidate"]))[:: len(simulated) // CHECKED][:CHECKED]
    _execute(db, "DELETE FROM search_outcome WHERE key IN (SELECT value FROM json_each(?))", json.dumps(chosen))
    begin_s = time.perf_counter()
    document = json.loads(searched(db, *arguments, "--jobs", "1", "--json"))
    seconds, again = time.perf_counter() - begin_s, _outcomes(db)
    same = sum({**again[key], "spent_s": 0} == {**simulated[key], "spent_s": 0} for key in chosen)
    return [
        f"{len(chosen)} simulated outcomes taken away and found again by one process without Ray, in {seconds:.0f} s "
        f"({document['resumed']} known from before): {same} of {len(chosen)} are the same to the last digit."
    ]


def _told(db: Path, attempts: Sequence[Attempt], node: str, *, kept: int, killed_s: float, seconds: float) -> list[str]:
    ended, tasks = Counter(each.task for each in attempts if each.ended), {each.task for each in attempts}
    again = Counter(each.task for each in attempts)
    lost = [each for each in attempts if each.begun and not each.ended]
    there = sum(each.ended and each.node == node for each in attempts)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cores = len(os.sched_getaffinity(0))
    return [
        f"`python -m benchmarks.search_ray` on {cores} cores that others use too: {seconds:.0f} s for {CANDIDATES} "
        f"candidates, {CANDIDATES / seconds:.2f} a second ({used.ru_utime + used.ru_stime:.0f} s of processor time of "
        "the search's own process, without the nodes').",
        "",
        "| | |",
        "| --- | ---: |",
        f"| second node killed after | {killed_s:.0f} s, {kept} outcomes kept |",
        f"| outcomes in the latency DB at the end | {_number(db)} of {CANDIDATES} |",
        f"| tasks that Ray was handed | {len(tasks)} |",
        f"| - that ended exactly once | {sum(number == 1 for number in ended.values())} |",
        f"| - that ended more than once | {sum(number > 1 for number in ended.values())} |",
        f"| - that never ended | {len(tasks - set(ended))} |",
        f"| - that were handed out again | {sum(number > 1 for number in again.values())} |",
        f"| attempts cut off by the kill | {len(lost)} |",
        f"| candidates done by the node that was killed | {there} |",
        "",
    ]


def _listed(output: str) -> list[str]:
    """The first of what the search printed."""
    return ["```", *output.splitlines()[:8], "```", ""]


def _attempts(address: str) -> list[Attempt]:
    """Every attempt of every candidate, as the cluster's control store has it."""
    import grpc
    from ray.core.generated.common_pb2 import TaskStatus
    from ray.core.generated.gcs_service_pb2 import GetTaskEventsRequest
    from ray.core.generated.gcs_service_pb2_grpc import TaskInfoGcsServiceStub

    with grpc.insecure_channel(address) as channel:
        reply = TaskInfoGcsServiceStub(channel).GetTaskEvents(GetTaskEventsRequest(), timeout=30)
    if reply.num_status_task_events_dropped:
        raise SystemExit("Ray has forgotten some tasks")
    found = []
    for event in reply.events_by_task:
        if event.task_info.func_or_class_name == TASK:
            at = event.state_updates.state_ts_ns
            states = (TaskStatus.Value(name) in at for name in ("RUNNING", "FINISHED"))
            found.append(Attempt(event.task_id.hex(), event.state_updates.node_id.hex(), *states))
    return found


def _under_way(address: str, node: str) -> bool:
    return any(each.node == node and each.begun and not each.ended for each in _attempts(address))


def _outcomes(db: Path) -> dict[str, dict[str, Any]]:
    return {key: json.loads(document) for key, document in _execute(db, "SELECT key, document FROM search_outcome")}


def _number(db: Path) -> int:
    """Outcomes that are kept; reads alone, so that the search finds its file as it left it."""
    with closing(sqlite3.connect(f"{db.resolve().as_uri()}?mode=ro", uri=True, timeout=30)) as opened:
        return int(opened.execute("SELECT count(*) FROM search_outcome").fetchone()[0])


def _execute(db: Path, statement: str, *values: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(db, timeout=30)) as opened, opened:
        return opened.execute(statement, values).fetchall()


if __name__ == "__main__":
    main()
