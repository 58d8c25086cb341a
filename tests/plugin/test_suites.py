"""Fixtures in a user's own tests, and the suites that only predict, on a latency DB that is stored already."""

from __future__ import annotations

import importlib
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.database import DirectoryBasedExampleDatabase

from tests.stored import FLAGS, stored

OWN = """
    from hypothesis import given, settings
    from pytest_dooly import strategies
    from pytest_dooly.core.batch import Limits

    LIMITS = Limits(64, 4, 128)

    @given(batch=strategies.batches(LIMITS))
    def test_no_step_takes_over_1_ms(dooly_model, batch):
        assert dooly_model.step_s(batch) <= 1e-3

    @given(batch=strategies.batches(LIMITS))
    def test_no_step_takes_over_a_second(dooly_model, batch):
        assert 0 < dooly_model.step_s(batch) <= 1

    @settings(max_examples=3, deadline=None)
    @given(batch=strategies.batches(LIMITS, max_num_tokens=8))
    def test_a_real_step_takes_its_time(dooly_measure, batch):
        assert 0 < dooly_measure(batch) == dooly_measure(str(batch))
"""


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for module in ("scipy.optimize", "sympy", "pandas"):  # compiled, and not to be loaded twice
        importlib.import_module(module)
    return stored(tmp_path_factory.mktemp("stored"))


@pytest.fixture
def place(db: Path, pytester: pytest.Pytester) -> Iterator[Path]:
    """The stored latency DB, and hypothesis as a user has it, with an example database of its own."""
    shutil.copytree(db, pytester.path, dirs_exist_ok=True)
    examples = DirectoryBasedExampleDatabase(pytester.path / ".hypothesis/examples")
    slow = [HealthCheck.too_slow]  # of a machine that others share
    settings.register_profile("inner", database=examples, phases=list(Phase), deadline=None, suppress_health_check=slow)
    settings.load_profile("inner")
    yield pytester.path
    settings.load_profile("default")


def run(pytester: pytest.Pytester, *args: str, model: str = "model") -> pytest.RunResult:
    named = [f"--dooly-model={model}"] if model else []
    return pytester.runpytest_inprocess("-p", "no:cov", *named, *FLAGS, *args)


def test_own_tests_find_the_smallest_batch_and_replay_it(place: Path, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(OWN)
    own = ("-W", "ignore", "test_own_tests_find_the_smallest_batch_and_replay_it.py")
    result = run(pytester, *own)
    result.assert_outcomes(passed=2, failed=1)
    # Of 24 runs of operations all but two see every token: 24 * 20 µs and 22 * 24 µs are over a millisecond.
    result.stdout.fnmatch_lines(["*batch=Batch.parse('24+0'),*"])
    result.stdout.no_fnmatch_line("*report: *")
    settings.register_profile("inner", settings.get_profile("inner"), phases=[Phase.reuse])
    settings.load_profile("inner")
    replayed = run(pytester, *own, "-k", "1_ms")
    replayed.assert_outcomes(failed=1, deselected=2)
    replayed.stdout.fnmatch_lines(["*batch=Batch.parse('24+0'),*"])
    assert (place / ".hypothesis/examples").exists()
    assert not (place / "reports").exists()


def test_suites_time_what_they_need_and_say_what_they_find(place: Path, pytester: pytest.Pytester) -> None:
    count = "SELECT count(*) FROM measurement WHERE reason IS NULL AND NOT held_out"
    with sqlite3.connect(place / ".dooly/latency.db") as latency_db:
        before = latency_db.execute(count).fetchone()[0]
    suites = ("--dooly-suite=monotone,slo,cliffs,explore", "--dooly-slo=ttft:1ms,tpot:40ms", "--dooly-explore=0.02")
    only = "slo or monotone and tokens or cliffs and not neighbour or linear-64x96 and (T17 or explore)"
    result = run(pytester, *suites, "-k", only)
    result.assert_outcomes(passed=4, failed=1, deselected=27)
    result.stdout.fnmatch_lines(
        [
            "model: the smallest workload that breaks the SLO is --prompt * --output * --concurrency 1: ttft_p99 *",
            "*= dooly: explored =*",
            "* points of 1 operations timed in * of 0.02 min",
            "worst error before: *%, linear-64x96-fp32 at T*",
            "after refitting, each point by a fit without it: *",
            "*= dooly: cliffs of model =*",
            "avoid * prompt tokens: +*% of TTFT of * ms; one step more",
        ]
    )
    assert "Traceback" not in result.stdout.str()
    with sqlite3.connect(place / ".dooly/latency.db") as latency_db:
        assert latency_db.execute(count).fetchone()[0] >= before + 2  # a neighbour, and what was explored
        assert latency_db.execute("SELECT name FROM sweep_point WHERE name = 'T17'").fetchone()


def test_several_models_are_tested_one_by_one_and_what_is_lacking_is_said(
    place: Path, pytester: pytest.Pytester
) -> None:
    shutil.copytree(place / "model", place / "other")
    config = (place / "other/config.json").read_text().replace('"intermediate_size": 96', '"intermediate_size": 80')
    (place / "other/config.json").write_text(config)
    result = run(pytester, "--dooly-model=other", "--dooly-suite=slo", "--dooly-slo=ttft:1s", "-rA")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(
        ["other has no regressor for *-64x80-*: run pytest --dooly-model=other *", "PASSED *test_slo?model?"]
    )
    assert "Traceback" not in result.stdout.str()


def test_without_a_model_or_an_slo_tests_are_skipped(place: Path, pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        def test_mine(dooly_model): ...
        def test_real(dooly_measure): ...
        def test_bounds(dooly_slo): ...
    """)
    result = run(pytester, "-rs", model="")
    result.assert_outcomes(skipped=3)
    result.stdout.fnmatch_lines_random(
        [
            "SKIPPED *no model named: use --dooly-model",
            "SKIPPED *no SLO named: use --dooly-slo, as in --dooly-slo=ttft:300ms,tpot:40ms",
        ]
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--dooly-slo=ttft:soon",), "cannot read 'ttft:soon' of the SLO: write it as *"),
        (("--dooly-suite=slow",), "unknown suite 'slow': name one of operations, explore, *"),
        (("--dooly-suite=slo",), "--dooly-suite=slo needs --dooly-slo, as in --dooly-slo=ttft:300ms,tpot:40ms"),
        (("--dooly-suite=cliffs,explore",), "--dooly-suite=explore needs --dooly-explore, as in --dooly-explore=5"),
        (("--dooly-explore=0",), "--dooly-explore=0 leaves no time: name minutes above 0, or drop it"),
        (("--dooly-explore=soon",), "--dooly-explore takes a number that is not negative, got 'soon'"),
    ],
)
def test_wrong_usage_is_one_line(pytester: pytest.Pytester, args: tuple[str, ...], message: str) -> None:
    result = run(pytester, *args)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {message}"])


def test_a_suite_without_a_model_is_wrong_usage(pytester: pytest.Pytester) -> None:
    result = run(pytester, "--dooly-suite=slo", model="")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --dooly-suite=slo needs --dooly-model"])
