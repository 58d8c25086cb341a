"""Several workers of pytest-xdist, each with an accelerator of its own that the fake engine pretends to have."""

from __future__ import annotations

import multiprocessing
import re
import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from xml.etree import ElementTree as ET

import pytest

from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.core.measurement import Measurement
from pytest_dooly.engine.accelerators import visible
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.plugin.dealing import OperationScheduling
from pytest_dooly.sweep.plan import Case
from tests.models import LLAMA, write
from tests.samples import ENVIRONMENT, LINEAR

SMALL = (
    *("-p", "no:cov", "--dooly-model=model", "--dooly-engine=fake", "--dooly-device=cuda", "--dooly-target=1000"),
    *("--dooly-max-num-tokens=16", "--dooly-max-model-len=32", "--dooly-max-num-seqs=2"),
)


@pytest.fixture(autouse=True)
def model(pytester: pytest.Pytester) -> Path:
    return write(pytester.path / "model", LLAMA, hidden_size=64, intermediate_size=96, vocab_size=128)


# A project that has its own hooks, fixtures and benchmarks, and whose worker is killed once.
CONFTEST = """
    import os, signal
    from pathlib import Path

    import pytest

    HERE = Path(__file__).parent

    @pytest.fixture
    def mine():
        return "mine"

    def pytest_configure(config):
        if hasattr(config, "workerinput"):
            (HERE / config.workerinput["workerid"]).write_text(os.environ["CUDA_VISIBLE_DEVICES"])

    def pytest_collection_modifyitems(items):
        items.reverse()

    def pytest_dooly_case_modifyitems(config, items, cases):
        assert all(cases[item].point for item in items)
        items[:] = [item for item in items if "silu" not in item.name]

    def pytest_dooly_measured(config, case, outcome):
        with (HERE / "measured.txt").open("a") as file:
            file.write(f"{config.workerinput['workerid']} {case.operation.signature.key} {outcome.median_s}\\n")
        if "linear-64x96-fp32-T4" in case.id and not (HERE / "killed").exists():
            (HERE / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def pytest_dooly_summary(config, summary):
        (HERE / "summary.txt").write_text(f"{summary.timed} {hasattr(config, 'workerinput')}")
"""

OWN_TESTS = """
    import os

    import pytest

    def test_op(dooly_case, dooly_time):
        dooly_time(dooly_case)

    def test_benchmark(benchmark, mine):
        assert benchmark(lambda: mine) == "mine"

    @pytest.mark.parametrize("size", [1, 2])
    def test_plain(size, worker_id):
        assert size
        assert worker_id.startswith("gw")
"""


MEASURED = "SELECT signature.name FROM measurement JOIN signature ON signature.key = measurement.signature"


def test_workers_share_the_cases_by_operation_beside_a_project_of_its_own(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where one of them is killed: another takes its place, on its accelerator, and nothing is lost or twice."""
    pytester.makeini("[pytest]")
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_project=OWN_TESTS)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7,9")
    chosen = ("-k", "sampler or linear-64x96 or silu or test_benchmark or plain", "--junit-xml=out.xml", "-n2")
    # A worker that is lost and not missed would be waited for without end.
    result = pytester.runpytest_subprocess(*SMALL, *chosen, "test_project.py", timeout=300)
    text = result.stdout.str()
    assert "Traceback" not in text
    assert len(re.findall(r"^dooly: tracing", text, flags=re.M)) == 1

    lines = [line.split() for line in (pytester.path / "measured.txt").read_text().splitlines()]
    workers = defaultdict(set)
    for worker, signature, _ in lines:
        workers[signature].add(worker)
    (killed,) = re.findall(r"worker '(gw[01])' crashed", text)[:1]
    accelerators = {name: (pytester.path / name).read_text() for name in ("gw0", "gw1", "gw2")}
    assert accelerators == {"gw0": "5", "gw1": "7", "gw2": accelerators[killed]}
    assert all(len(names - {"gw2"}) <= 1 for names in workers.values())
    assert len(workers) == 2
    with sqlite3.connect(pytester.path / ".dooly/latency.db") as db:
        rows = db.execute("SELECT median_s FROM measurement WHERE reason IS NULL").fetchall()
        labels = {label for (label,) in db.execute(MEASURED)}
    assert sorted(latency_s for (latency_s,) in rows) == sorted(float(line[2]) for line in lines)
    assert not [label for label in labels if "silu" in label]
    assert (pytester.path / "summary.txt").read_text() == f"{len(rows)} False"
    result.stdout.re_match_lines([rf"12 operations, \d+ points: {len(rows)} timed in .*"])
    result.stdout.fnmatch_lines(["report: *"])

    cases = {case.get("name"): case for case in ET.parse(pytester.path / "out.xml").iter("testcase")}  # noqa: S314 - our own
    assert {"test_benchmark", "test_plain[1]", "test_plain[2]"} <= set(cases)
    assert not list(cases["test_benchmark"])
    sampler = {each.get("name"): each.get("value") for each in cases["test_op[sampler-128-fp32-R2]"].iter("property")}
    assert sampler.keys() == {"operation", "point", "latency_s", "rounds", "noise"}
    assert (sampler["operation"], sampler["point"]) == ("sampler-128-fp32", "R2")
    assert float(sampler["latency_s"] or 0) in [latency_s for (latency_s,) in rows]


@pytest.mark.parametrize(
    ("args", "entries", "message"),
    [
        (("-n2", "--dooly-device=cpu"), "", "--dooly-model times operations one at a time: drop '-n', or use '-n 0'"),
        (("-n9",), None, "9 workers need an accelerator each, there are 8 accelerators (0, *, 7): use -n 8"),
        (("-n3",), "GPU-a,4,-1,6", "3 workers need an accelerator each, there are 2 accelerators (GPU-a, 4): use -n 2"),
        (("-n2", "--dist=each"), "0,1", "--dist=each would time every case on every worker: name another *"),
        (("--dist=load", "--tx=ssh=far"), "0", "--tx ssh=far is no process of this machine, *"),
    ],
)
def test_workers_that_cannot_be_served_are_refused_in_one_line(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    args: Sequence[str],
    entries: str | None,
    message: str,
) -> None:
    if entries is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", entries)
    result = pytester.runpytest_inprocess(*SMALL, *args)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {message}"])
    assert "Traceback" not in result.stderr.str() + result.stdout.str()
    assert not (pytester.path / ".dooly").exists()


@pytest.mark.parametrize(
    ("named", "seen"),
    [(None, ("0", "1", "2")), ("", ()), ("2, 0", ("2", "0")), ("-1", ()), ("1,MIG-x,none,3", ("1", "MIG-x"))],
)
def test_accelerators_are_those_that_the_user_lets_us_see(
    monkeypatch: pytest.MonkeyPatch, named: str | None, seen: tuple[str, ...]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible(lambda: 3) == seen


class Node:
    """A worker that notes what it is sent."""

    shutting_down = False

    def __init__(self) -> None:
        self.indices: list[int] = []
        self.gateway = SimpleNamespace(id="")

    def send_runtest_some(self, indices: list[int]) -> None:
        self.indices += indices

    def shutdown(self) -> None:
        self.shutting_down = True


def case(model: str, operation: str, point: int, spent_s: float) -> Case:
    """What a scheduler asks of a case."""
    signature = SimpleNamespace(key=operation)
    return cast(
        "Case",
        SimpleNamespace(
            id=f"{operation}-T{point}",
            operation=SimpleNamespace(signature=signature),
            model=SimpleNamespace(key=model),
            spent_s=spent_s,
        ),
    )


def dealt(cases: Sequence[Case], ids: list[str], *, dist: str = "load") -> list[list[str]]:
    """What each of two workers runs, in their order, where both are equally fast."""
    options: dict[str, Any] = {"dist": dist, "tx": ["popen", "popen"]}
    config: Any = SimpleNamespace(
        option=SimpleNamespace(loadscopereorder=True), getoption=options.get, getvalue=options.get
    )
    scheduler = OperationScheduling(config, None, cases=cases)
    nodes: list[Any] = [Node(), Node()]
    for node in nodes:
        scheduler.add_node(node)
        scheduler.add_node_collection(node, ids)
    scheduler.schedule()
    done = [0, 0]
    while any(done[i] < len(node.indices) for i, node in enumerate(nodes)):
        for i, node in enumerate(nodes):
            if done[i] < len(node.indices):
                scheduler.mark_test_complete(node, node.indices[done[i]])
                done[i] += 1
    return [[ids[index] for index in node.indices] for node in nodes]


def test_operations_are_dealt_whole_longest_first_and_a_model_at_a_time() -> None:
    times_s = {("one", "a"): 5.0, ("one", "b"): 1.0, ("one", "c"): 4.0, ("two", "d"): 6.0, ("two", "e"): 2.0}
    cases = [case(*key, point, spent_s) for key, spent_s in times_s.items() for point in (1, 2, 4)]
    ids = [f"suite.py::test_op[{each.id}]" for each in cases] + ["own.py::test_plain"]
    by_worker = dealt(cases, ids)
    assert sorted(item for items in by_worker for item in items) == sorted(ids)
    order = [list(dict.fromkeys(item.partition("[")[2][:1] for item in items)) for items in by_worker]
    assert order[0][:2] == ["d", "e"]
    assert order[1][:2] == ["a", "c"]
    assert sum("own.py::test_plain" in items for items in by_worker) == 1


@pytest.mark.parametrize(
    ("dist", "together"),
    [
        ("load", [("a.py::K::x[1]",), ("a.py::y",), ("b.py::z@g",), ("c.py::w@g",)]),
        ("loadfile", [("a.py::K::x[1]", "a.py::y"), ("b.py::z@g",), ("c.py::w@g",)]),
        ("loadgroup", [("a.py::K::x[1]",), ("a.py::y",), ("b.py::z@g", "c.py::w@g")]),
    ],
)
def test_other_tests_are_dealt_as_the_user_asks(dist: str, together: list[tuple[str, ...]]) -> None:
    cases = [case("one", "a", point, 1.0) for point in (1, 2)]
    ids = [*(f"suite.py::test_op[{each.id}]" for each in cases), *(item for group in together for item in group)]
    by_worker = dealt(cases, ids, dist=dist)
    for group in together:
        assert any(set(group) <= set(items) for items in by_worker)
    options: dict[str, Any] = {"dist": dist, "tx": ["popen"]}
    scheduler = OperationScheduling(
        cast("Any", SimpleNamespace(getoption=options.get, getvalue=options.get)), None, cases=cases
    )
    assert len({scheduler._split_scope(item) for group in together for item in group}) == len(together)


def _records(path: Path, worker: int) -> None:
    with LatencyDB.open(path) as db:
        for i in range(25):
            outcome = Measurement.of([1e-3 + worker, 2e-3 + worker, 3e-3 + worker])
            db.record(LINEAR, ENVIRONMENT, SweepPoint(num_tokens=1 + 25 * worker + i), outcome, spent_s=0.1)


def test_eight_workers_that_write_to_one_latency_db_lose_no_row(tmp_path: Path) -> None:
    path = tmp_path / "latency.db"
    start = multiprocessing.get_context("fork").Process
    workers = [start(target=_records, args=(path, worker)) for worker in range(8)]  # none has made the file before
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 8
    with LatencyDB.open(path, create=False) as db:
        measured = db.measurements(ENVIRONMENT)[LINEAR.key]
    assert {point.num_tokens: outcome.min_s for point, outcome in measured.items()} == {
        1 + 25 * worker + i: 1e-3 + worker for worker in range(8) for i in range(25)
    }
