"""The plugin as its users run it, on the fake engine."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

import pytest_dooly
from pytest_dooly import cli
from tests.models import LLAMA, write

SMALL = ("--dooly-engine=fake", "--dooly-max-num-tokens=16", "--dooly-max-model-len=32", "--dooly-max-num-seqs=2")

# A target that any regressor meets, so that how many points are timed does not depend on how they turn out.
ANY_ERROR = "--dooly-target=1000"


@pytest.fixture(scope="module", autouse=True)
def _loaded(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Everything compiled is loaded: pytester unloads what an inner session loads, and numpy cannot be loaded twice."""
    folder = write(tmp_path_factory.mktemp("loaded"), LLAMA)
    db = folder / "latency.db"
    assert cli.main(["trace", str(folder), "--engine=fake", f"--db={db}"]) == 0
    for module in (
        "matplotlib.pyplot",
        "matplotlib.backends.backend_svg",
        "pytest_dooly.profiling",
        "pytest_dooly.report.plots",
    ):
        importlib.import_module(module)


@pytest.fixture(autouse=True)
def model(pytester: pytest.Pytester) -> Path:
    return write(pytester.path / "model", LLAMA, hidden_size=64, intermediate_size=96, vocab_size=128)


def run(pytester: pytest.Pytester, *args: str, model: str = "model", apart: bool = False) -> pytest.RunResult:
    """A session; `apart` in a process of its own, for what would outlast it in this one."""
    start = pytester.runpytest_subprocess if apart else pytester.runpytest_inprocess
    return start("-p", "no:cov", f"--dooly-model={model}", *SMALL, ANY_ERROR, *args)


def unneeded(result: pytest.RunResult) -> int:
    """Points that the sweeps did not ask for."""
    found = re.search(r"(\d+) not needed$", result.stdout.str(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def outcomes(result: pytest.RunResult) -> dict[str, int]:
    """Passed, failed and skipped, but for unneeded points; warnings are of the session around this one."""
    known = {name: count for name, count in result.parseoutcomes().items() if name in ("passed", "failed", "skipped")}
    known["skipped"] = known.get("skipped", 0) - unneeded(result)
    return {name: count for name, count in known.items() if count}


def counts(pytester: pytest.Pytester) -> tuple[int, int]:
    """Measurements and failures in the latency DB."""
    with sqlite3.connect(pytester.path / ".dooly/latency.db") as db:
        return db.execute("SELECT count(*) FILTER (WHERE reason IS NULL), count(reason) FROM measurement").fetchone()


def test_the_main_job_times_once_and_then_reuses(pytester: pytest.Pytester) -> None:
    first = run(pytester)
    passed = first.parseoutcomes()["passed"]
    first.stdout.fnmatch_lines(
        [
            "dooly: tracing model ...",
            "dooly: model (FakeForCausalLM), 12 operations",
            "dooly: on fake CPU x*, fake 1, torch *",
            "dooly: *latency.db: * to time (about *), 0 reused, up to * more where the held-out error asks for them",
            "dooly: starting fake 1 with layers of model ...",
            f"12 operations, * points: {passed} timed in * s, 0 reused, {unneeded(first)} not needed",
            "12 regressors, held-out error: median *%, worst *%",
            "machine's noise: the same operation differs by *% from case to case *",
            "model: prompt 24, output 8, 1 at once: TTFT *, TPOT *",
            "report: reports/model-fake-cpu/index.html",
        ]
    )
    assert counts(pytester) == (passed, 0)
    assert (pytester.path / "reports/model-fake-cpu/index.html").exists()
    second = run(pytester, "-rs")
    assert outcomes(second) == {"skipped": passed}
    for line in (
        f"dooly: *: 0 to time, {passed} reused, {unneeded(first)} not needed",
        "SKIPPED * measured: * in .dooly/latency.db; --dooly-refresh times it again",
        f"12 operations, * points: 0 timed in 0.0 s, {passed} reused, which saved *, {unneeded(first)} not needed",
    ):
        second.stdout.fnmatch_lines([line])
    third = run(pytester, "--dooly-refresh", "-k", "sampler")
    assert {name: n for name, n in third.parseoutcomes().items() if name in ("passed", "skipped")} == {"passed": 2}


def test_a_point_that_the_error_does_not_ask_for_says_so(pytester: pytest.Pytester) -> None:
    result = run(pytester, "-k", "linear-64x96", "-rs")
    assert outcomes(result) == {"passed": 5}
    result.stdout.fnmatch_lines(["SKIPPED * not needed: held-out error *% (target 1000%, machine's noise *%)"])


def test_points_held_out_are_timed_and_no_regressor_sees_them(pytester: pytest.Pytester) -> None:
    only = ("-k", "linear-64x96")
    passed = run(pytester, *only, "--dooly-held-out=2")
    assert outcomes(passed) == {"passed": 7}
    passed.stdout.fnmatch_lines(["*linear-64x96-fp32 * 5 of *8 points *; 2 unseen points: *%"])
    with sqlite3.connect(pytester.path / ".dooly/latency.db") as db:
        assert db.execute("SELECT count(*) FROM measurement WHERE held_out").fetchone() == (2,)
    assert outcomes(run(pytester, *only)) == {"skipped": 5}


FOREIGN = """
from sklearn.dummy import DummyRegressor

slow = DummyRegressor(strategy="constant", constant=1e9)

class NoKernel(DummyRegressor):
    def fit(self, table, latencies_s):
        if len(table.columns) > 2:
            raise ValueError("too much of it")
        return super().fit(table, latencies_s)
"""


def test_anybody_s_estimator_is_compared_and_not_kept(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(foreign=FOREIGN)
    first = run(pytester, "--dooly-regressor=foreign:slow")
    assert first.ret == 0
    first.stdout.fnmatch_lines(
        [
            "12 regressors, held-out error: median *%, worst *%",
            "foreign:slow of * operations: median *%, worst *%; it is not kept",
            "*linear-64x96-fp32 * 5 of * points *: *%*; foreign:slow [0-9]*[0-9].?%",
            "report: *",
        ]
    )
    assert "foreign:slow" in (pytester.path / "reports/model-fake-cpu/summary.md").read_text(encoding="utf-8")
    with sqlite3.connect(pytester.path / ".dooly/latency.db") as db:
        assert not db.execute("SELECT * FROM regressor WHERE document LIKE '%foreign%'").fetchall()
        kept = db.execute("SELECT signature, document FROM regressor ORDER BY signature").fetchall()
    second = run(pytester, "--dooly-regressor=foreign:NoKernel")
    assert second.ret == 0
    second.stdout.fnmatch_lines(
        [
            "foreign:NoKernel of * operations: median *%, worst *%; it is not kept",
            "not compared: foreign:NoKernel cannot be fitted to attention-*: ValueError: too much of it",
            "report: *",
        ]
    )
    with sqlite3.connect(pytester.path / ".dooly/latency.db") as db:
        assert db.execute("SELECT signature, document FROM regressor ORDER BY signature").fetchall() == kept
    third = run(pytester)
    assert "foreign" not in third.stdout.str() + (pytester.path / "reports/model-fake-cpu/index.html").read_text()


def test_a_model_that_shares_sizes_reuses_what_the_first_measured(pytester: pytest.Pytester) -> None:
    write(pytester.path / "deeper", LLAMA, hidden_size=64, intermediate_size=96, vocab_size=256, num_hidden_layers=5)
    run(pytester)
    result = run(pytester, model="deeper")
    known = outcomes(result)
    assert known["skipped"] > known["passed"] > 0
    result.stdout.re_match_lines([rf".*, {known['skipped']} reused, which saved \d+\.\d s, .*"])


def test_two_models_at_once_share_their_cases(pytester: pytest.Pytester) -> None:
    write(pytester.path / "deeper", LLAMA, hidden_size=64, intermediate_size=96, vocab_size=128, num_hidden_layers=5)
    alone = run(pytester, "--dooly-db=alone.db")
    both = run(pytester, "--dooly-model=deeper")
    assert outcomes(both) == outcomes(alone)
    assert (pytester.path / "reports/deeper-fake-cpu/summary.md").exists()


def test_cases_are_readable_selectable_and_marked(pytester: pytest.Pytester) -> None:
    listing = run(pytester, "--collect-only", "-q").stdout.str()
    assert re.search(r"test_op\[linear-64x96-fp32-T16\]", listing)
    assert re.search(r"test_op\[attention-4h2kv16-fp32-2x1\+16\]", listing)
    assert "dooly ====" not in listing
    assert run(pytester, "-k", "linear-64x96").parseoutcomes()["passed"] == 5
    marked = run(pytester, "-m", "dooly_sampler").parseoutcomes()
    assert marked["passed"] == 2
    assert counts(pytester) == (7, 0)


def test_ids_are_the_same_in_every_session(pytester: pytest.Pytester) -> None:
    ids = [re.findall(r"test_op\[\S+", run(pytester, "--collect-only", "-q").stdout.str()) for _ in range(2)]
    assert ids[0] == ids[1]
    assert len(ids[0]) == len(set(ids[0]))


def test_a_plan_times_nothing(pytester: pytest.Pytester) -> None:
    result = run(pytester, "--dooly-plan")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["operation * swept over *", "linear-64x96-fp32 *num_tokens *3 *", "*to time (about *), 0 reused, up to *"]
    )
    assert counts(pytester) == (0, 0)


def test_models_are_listed(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_inprocess("--dooly-models")
    assert result.ret == 0
    result.stdout.re_match_lines([r"llama3 +LlamaForCausalLM +hidden  4096,  32 layers, vocabulary 128256"])


def test_options_have_ini_twins(pytester: pytest.Pytester) -> None:
    pytester.makeini("""
        [pytest]
        dooly_model = model
        dooly_engine = fake
        dooly_db = elsewhere/latency.db
        dooly_max_num_tokens = 8
        dooly_max_model_len = 32
        dooly_max_num_seqs = 2
        dooly_target = 1000
    """)
    pytester.makepyfile("def test_of_an_embedding(): ...")
    result = pytester.runpytest_inprocess("-p", "no:cov", "-k", "embedding")
    assert result.parseoutcomes()["passed"] == 6  # what a model in an ini file has timed, beside the project's own test
    assert (pytester.path / "elsewhere/latency.db").exists()


def test_benchmark_writes_its_json_and_gates_on_drift(pytester: pytest.Pytester) -> None:
    only = ("-k", "sampler", "--dooly-refresh")
    run(pytester, *only, "--benchmark-json=out.json")
    document = json.loads((pytester.path / "out.json").read_text())
    assert {bench["group"] for bench in document["benchmarks"]} == {"sampler-128-fp32"}
    assert all(bench["extra_info"]["signature"] and bench["stats"]["rounds"] >= 3 for bench in document["benchmarks"])
    for bench in document["benchmarks"]:
        bench["stats"]["median"] /= 1000
    (pytester.path / "fast.json").write_text(json.dumps(document))
    drifted = run(pytester, *only, "--benchmark-compare=fast.json", "--benchmark-compare-fail=median:50%")
    assert drifted.ret != 0
    drifted.stderr.fnmatch_lines(["*Performance has regressed*"])


def test_disabled_benchmarks_measure_nothing(pytester: pytest.Pytester) -> None:
    assert run(pytester, "-k", "sampler", "--benchmark-disable").parseoutcomes()["passed"] == 2
    assert counts(pytester) == (0, 0)


BREAKS_AT_16 = """
    import pytest
    from pytest_dooly.engine import fake

    def breaks(self, logits, forward=fake._Sampler.forward):
        if logits.shape[0] == 2:
            raise MemoryError("no room for 2 rows")
        return forward(self, logits)

    fake._Sampler.forward = breaks
"""


def test_a_failed_case_is_stored_and_not_measured(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(BREAKS_AT_16)
    result = run(pytester, "-k", "sampler", apart=True)
    assert outcomes(result) == {"passed": 1, "failed": 1}
    result.stdout.fnmatch_lines(["*sampler-128-fp32-R2: MemoryError: no room for 2 rows"])
    assert counts(pytester) == (1, 1)
    assert run(pytester, "--lf", apart=True).parseoutcomes()["failed"] == 1
    (pytester.path / "conftest.py").unlink()
    mended = run(pytester, "-k", "sampler").parseoutcomes()
    assert (mended["passed"], mended["skipped"]) == (1, 1)
    assert counts(pytester) == (2, 0)


NEVER_STARTS = """
    from pytest_dooly.engine import fake
    from pytest_dooly.errors import EngineError

    def breaks(self, configuration, **_):
        raise EngineError("the engine does not start: no memory")

    fake.FakeEngine.open = breaks
"""


def test_an_engine_that_does_not_start_ends_the_session_with_one_message(pytester: pytest.Pytester) -> None:
    run(pytester, "-k", "sampler")
    pytester.makeconftest(NEVER_STARTS)
    result = run(pytester, apart=True)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    text = result.stdout.str()
    assert text.count("the engine does not start: no memory") == 1
    assert "Traceback" not in text
    assert counts(pytester) == (2, 0)


def test_stopping_at_the_first_failure_keeps_what_was_measured(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(BREAKS_AT_16)
    result = run(pytester, "-x", "-m", "dooly_sampler or dooly_overhead", apart=True)
    assert result.parseoutcomes()["failed"] == 1
    assert counts(pytester) == (1, 1)
    result.stdout.fnmatch_lines(["*sampler-128-fp32*1 of *2 points*too few to hold one out*", "report: *"])


@pytest.mark.parametrize("flags", [("-p", "no:cacheprovider"), ("-q",), ("-qq",), ("-v",), ("-s",), ("-W", "error")])
def test_it_is_right_under_other_flags(pytester: pytest.Pytester, flags: tuple[str, ...]) -> None:
    # Of warnings as errors, what is loaded first here was loaded without.
    result = run(pytester, "-k", "sampler", *flags, apart="error" in flags)
    assert result.ret == 0
    assert counts(pytester) == (2, 0)


AT_SILU = """
    import pytest

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_teardown(item):
        if "silu-96-fp32-T4" in item.name:
            {action}
"""


def test_an_interrupt_keeps_what_was_measured_and_the_next_run_goes_on(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(at_silu=AT_SILU.format(action="raise KeyboardInterrupt"))
    result = run(pytester, "-p", "at_silu", apart=True)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    measured, _ = counts(pytester)
    assert measured > 0
    result.stdout.fnmatch_lines([f"12 operations, *: {measured} timed in *"])
    assert outcomes(run(pytester))["skipped"] == measured


def test_a_kill_loses_the_case_in_flight_at_most(pytester: pytest.Pytester) -> None:
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    pytester.makepyfile(at_silu=AT_SILU.format(action=kill))
    assert run(pytester, "-p", "at_silu", apart=True).ret == -signal.SIGKILL
    measured, _ = counts(pytester)
    assert outcomes(run(pytester))["skipped"] == measured > 0


def test_ctrl_c_ends_a_session_that_is_timing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(at_silu=AT_SILU.format(action="open('reached', 'w').close(); import time; time.sleep(30)"))
    command = [sys.executable, "-m", "pytest", "-p", "at_silu", "-p", "no:cov", "--dooly-model=model", *SMALL]
    # A session in the background ignores interrupts, and its children would inherit that.
    heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, cwd=pytester.path, stdout=subprocess.PIPE, text=True, preexec_fn=heeds) as process:
        while not (pytester.path / "reached").exists() and process.poll() is None:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == pytest.ExitCode.INTERRUPTED
    assert "report: " in out
    assert counts(pytester)[0] > 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--dooly-model=nonsense",), "unknown model 'nonsense': name one of * a directory that holds config.json*"),
        (("--dooly-max-num-tokens=many",), "max-num-tokens must be a whole number, got 'many'"),
        (("--dooly-target=many",), "--dooly-target takes a number that is not negative, got 'many'"),
        (("--dooly-held-out=-1",), "--dooly-held-out takes a number that is not negative, got '-1'"),
        (("--dooly-regressor=forest",), "'forest' names no estimator: write package.module:Class, as in *"),
        (("--dooly-regressor=no.where:Forest",), "cannot import no.where for *: ModuleNotFoundError: *"),
        (("--dooly-regressor=json:JSONDecoder",), "json:JSONDecoder is no estimator, which has fit and predict: *"),
        (("--dooly-tp=0",), "tp must be at least 1, got 0"),
        (("--dooly-engine=triton",), "unknown engine 'triton': name one of vllm, fake"),
        (("--dooly-device=tpu",), "unknown device 'tpu': name cpu or cuda, or a GPU as in h200_sxm"),
        (("-p", "no:benchmark"), "--dooly-model needs pytest-benchmark, which is not loaded*"),
    ],
)
def test_wrong_usage_is_one_line(pytester: pytest.Pytester, args: tuple[str, ...], message: str) -> None:
    result = run(pytester, *args)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {message}"])
    assert "Traceback" not in result.stderr.str() + result.stdout.str()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "*config.json is not valid JSON*"),
        ("[]", "*config.json must hold a JSON object, not a list"),
        ('{"hidden_size": 4}', "*config.json names no 'architectures'*"),
        (json.dumps({"architectures": ["X"]}), "the fake engine needs hidden_size, *"),
    ],
)
def test_a_broken_config_is_one_line(pytester: pytest.Pytester, content: str, message: str) -> None:
    (pytester.path / "model/config.json").write_text(content)
    result = run(pytester)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {message}"])


def test_a_foreign_db_is_one_line_and_stays_untouched(pytester: pytest.Pytester) -> None:
    foreign = pytester.path / "notes.txt"
    foreign.write_text("my notes")
    result = run(pytester, "--dooly-db=notes.txt")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: *notes.txt is no latency DB*name another file"])
    assert foreign.read_text() == "my notes"


def test_a_report_that_cannot_be_written_fails_the_run_and_keeps_the_measurements(pytester: pytest.Pytester) -> None:
    (pytester.path / "taken").write_text("")
    result = run(pytester, "-k", "sampler", "--dooly-reports=taken")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["cannot write the report to *taken*name another directory"])
    assert counts(pytester) == (2, 0)


def test_suites_without_a_model_are_skipped(pytester: pytest.Pytester) -> None:
    suite = Path(pytest_dooly.__path__[0]).parent / "op_suites/test_operations.py"
    result = pytester.runpytest_inprocess("-p", "no:cov", str(suite), "-rs")
    assert result.parseoutcomes() == {"skipped": 1}
    result.stdout.fnmatch_lines(["*no model named: use --dooly-model"])
