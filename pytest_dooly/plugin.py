"""`pytest --dooly-model=…`: options, header, cases and summary. Wires rooms together and decides nothing.

Loaded in every project that has us installed, so nothing heavy is imported before a model is named.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import pytest

from pytest_dooly.errors import DoolyError

if TYPE_CHECKING:
    from pytest_dooly.core.configuration import ModelConfiguration, ServingOptions
    from pytest_dooly.profiling import Profiling
    from pytest_dooly.report.findings import Summary
    from pytest_dooly.sweep.plan import Case

__all__ = ["DoolyPlugin"]

Number = TypeVar("Number", int, float)

_PLUGIN = "dooly-session"
_DB = ".dooly/latency.db"
_KINDS = (
    *("linear", "norm", "rotary", "activation", "attention", "moe", "mixer", "embedding"),
    *("logits", "sampler", "collective", "other", "overhead"),
)
"""Values of OperationKind, whose room imports sympy; a test compares the two."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the `--dooly-*` options and their ini twins."""
    from pytest_dooly.core.configuration import ServingOptions

    group = parser.getgroup("dooly", "latency profiling of LLM serving (pytest-dooly)")

    def add(flag: str, description: str, **settings: Any) -> None:
        group.addoption(f"--dooly-{flag}", help=description, default=None, **settings)
        ini = "args" if settings.get("action") == "append" else "string"
        if settings.get("action") == "store_true":
            ini = "bool"
        parser.addini(f"dooly_{flag.replace('-', '_')}", description, type=ini, default=None)  # type: ignore[arg-type]

    add("model", "model to profile: an alias, a directory with config.json or a hub id; repeatable", action="append")
    add("db", "latency DB (default: .dooly/latency.db)", metavar="FILE")
    add("engine", "serving engine: vllm (default), or fake to try things out")
    for field in dataclasses.fields(ServingOptions):
        add(field.metadata["flag"], field.metadata["help"], metavar=field.metadata["flag"].rpartition("-")[2].upper())
    add("reports", "directory that reports are written to (default: reports)", metavar="DIR")
    add("target", "held-out error, in percent, at which a sweep needs no more points (5)", metavar="PERCENT")
    add("precision", "half the width of the median's confidence interval at which a case ends, in percent (2)")
    add("held-out", "random points of each operation to time that no regressor may see (0)", metavar="COUNT")
    add("share", "expected error, in percent, up to which published latencies stand in for timing; 0 times all (5)")
    add("regressor", "scikit-learn estimator to compare with our regressors, as package.module:Class", metavar="NAME")
    add("refresh", "time every case again, whatever the latency DB holds", action="store_true")
    add("plan", "trace, show what is missing and about how long it would take, time nothing", action="store_true")
    add("models", "list the models that are shipped, and exit", action="store_true")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Answers `--dooly-models` and `--dooly-plan`, which run no test."""
    if not (_setting(config, "models") or (_setting(config, "plan") and _setting(config, "model"))):
        return None
    from pytest_dooly.report.terminal import model_lines, plan_lines

    if _setting(config, "models"):
        _write(model_lines())
        return 0
    with _usage_errors(), _profiling(config) as profiling:
        _write(plan_lines(profiling.plan))
    return 0


def pytest_configure(config: pytest.Config) -> None:
    """Registers the session's plugin where a model is named."""
    for kind in _KINDS:
        config.addinivalue_line("markers", f"dooly_{kind}: operations of this kind, timed by pytest-dooly")
    if not _setting(config, "model"):
        return
    if not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError("--dooly-model needs pytest-benchmark, which is not loaded: drop '-p no:benchmark'")
    if getattr(config.option, "numprocesses", None):
        raise pytest.UsageError("--dooly-model times operations one at a time: drop '-n', or use '-n 0'")
    config.pluginmanager.register(DoolyPlugin(config), _PLUGIN)
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args = [str(_suite())]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One parameter set per case; none without a model."""
    if "dooly_case" not in metafunc.fixturenames:
        return
    plugin = metafunc.config.pluginmanager.get_plugin(_PLUGIN)
    if plugin is None:
        skip = pytest.mark.skip(reason="no model named: use --dooly-model")
        metafunc.parametrize("dooly_case", [pytest.param(None, id="no-model", marks=skip)])
    else:
        metafunc.parametrize("dooly_case", plugin.parameters())


class _Enough(BaseException):
    """Ends the rounds of a case; no Exception, which pytest-benchmark would take for a failure of the operation."""


@pytest.fixture
def dooly_time(request: pytest.FixtureRequest, benchmark: Any) -> Callable[[Case], None]:
    """Times a case through pytest-benchmark and commits its outcome to the latency DB."""
    plugin = cast("DoolyPlugin", request.config.pluginmanager.get_plugin(_PLUGIN))

    def rounds(
        run: Callable[[], object],
        before: Callable[[], None],
        enough: Callable[[Sequence[float]], bool],
        most: int,
    ) -> Sequence[float]:
        def setup() -> None:
            if benchmark.stats and enough(benchmark.stats.stats.data):
                raise _Enough
            before()

        with suppress(_Enough):
            benchmark.pedantic(run, setup=setup, rounds=most)
        return benchmark.stats.stats.data if benchmark.stats else ()

    def time(case: Case) -> None:
        benchmark.extra_info.update(
            signature=case.operation.signature.key,
            point=str(case.point),
            environment=plugin.profiling.plan.environment.key,
        )
        try:
            failure = plugin.profiling.time(case, rounds)
        except DoolyError as error:  # no other case would fare better
            pytest.exit(str(error), returncode=pytest.ExitCode.TESTS_FAILED)
        if failure is not None:
            benchmark.skipped = True  # else pytest-benchmark warns of a fixture that was not used
            pytest.fail(f"{case.id}: {failure.reason}", pytrace=False)

    return time


class DoolyPlugin:
    """One session that profiles.

    Attributes:
        profiling: the run; set when the session has started.
    """

    profiling: Profiling

    def __init__(self, config: pytest.Config) -> None:
        """Remembers the session's configuration."""
        self._config = config
        self._open = _profiling(config)
        self._started = False
        self._summary: Summary | None = None
        self._error: str | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        """Traces the models and plans the cases, so that the header can tell."""
        with _usage_errors():
            self.profiling = self._open.__enter__()
            self._started = True

    def pytest_report_header(self) -> list[str]:
        """Model, environment, latency DB and how many cases are new."""
        from pytest_dooly.report.terminal import header_lines

        return header_lines(self.profiling.plan, _db_path(self._config))

    def parameters(self) -> list[Any]:
        """One parameter set per case: id, markers, timer, and a skip where the DB has it."""
        from pytest_dooly.report.terminal import skip_reason

        where = str(_setting(self._config, "db") or _DB)
        return [self._parameter(case, skip_reason(case, where)) for case in self.profiling.plan.cases]

    def _parameter(self, case: Case, reason: str) -> Any:
        signature = case.operation.signature
        marks = [
            getattr(pytest.mark, f"dooly_{signature.kind}"),
            pytest.mark.benchmark(group=signature.label, timer=self.profiling.timer(case)),
        ]
        if reason:
            marks.append(pytest.mark.skip(reason=reason))
        return pytest.param(case, id=case.id, marks=marks)

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Skips a case that the cases timed before it have made unneeded."""
        case = getattr(item, "callspec", None) and item.callspec.params.get("dooly_case")  # type: ignore[attr-defined]
        reason = self.profiling.unneeded(case) if case is not None else None
        if reason is not None:
            pytest.skip(reason)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fits the regressors and writes the reports; nothing where nothing was to be run."""
        if not self._started or session.config.option.collectonly:
            return
        self.profiling.close()
        try:
            self._summary = self.profiling.summarise(Path(_setting(self._config, "reports") or "reports"))
            if self._summary.unwritten:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED
        except DoolyError as error:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
            self._error = str(error)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Operations, time, regressors, predictions and the report's path."""
        from pytest_dooly.report.terminal import summary_lines

        if self._error is not None:
            terminalreporter.section("dooly", red=True)
            terminalreporter.write_line(self._error)
        if self._summary is not None:
            terminalreporter.section("dooly")
            for line in summary_lines(self._summary, verbosity=self._config.get_verbosity()):
                terminalreporter.write_line(line)

    def pytest_unconfigure(self) -> None:
        """Closes the engine and the latency DB, also where the session broke off."""
        if self._started:
            self._open.__exit__(None, None, None)


@contextmanager
def _profiling(config: pytest.Config) -> Iterator[Profiling]:
    """A profiling run as the options ask for it, its latency DB open."""
    from pytest_dooly.core.configuration import resolve
    from pytest_dooly.engine import load_engine
    from pytest_dooly.latency_db.db import LatencyDB
    from pytest_dooly.profiling import Profiling
    from pytest_dooly.regress.foreign import ForeignEstimator

    options, estimator = _serving_options(config), _setting(config, "regressor")
    configurations: list[ModelConfiguration] = [resolve(name, options) for name in _setting(config, "model")]
    engine = load_engine(_setting(config, "engine") or "vllm")
    with LatencyDB.open(_db_path(config)) as db:
        profiling = Profiling(
            engine,
            configurations,
            db,
            refresh=bool(_setting(config, "refresh")),
            target=_percent(config, "target", 5),
            precision=_percent(config, "precision", 2),
            held_out=_number(config, "held-out", int, 0),
            share=_percent(config, "share", 5),
            estimator=None if estimator is None else ForeignEstimator.named(estimator),
            progress=partial(_progress, config),
        )
        try:
            yield profiling
        finally:
            profiling.close()


def _progress(config: pytest.Config, line: str) -> None:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    capture = config.pluginmanager.get_plugin("capturemanager")
    if reporter is None or config.get_verbosity() < 0:
        return
    # A case starts the engine, and what a case writes is captured.
    with capture.global_and_fixture_disabled() if capture is not None else nullcontext():
        reporter.ensure_newline()
        reporter.write_line(f"dooly: {line} ...")


def _db_path(config: pytest.Config) -> Path:
    return config.rootpath / (_setting(config, "db") or _DB)


def _serving_options(config: pytest.Config) -> ServingOptions:
    from pytest_dooly.core.configuration import parse_options

    return parse_options({flag: _setting(config, flag) for flag in _flags()})


def _flags() -> list[str]:
    from pytest_dooly.core.configuration import ServingOptions

    return [field.metadata["flag"] for field in dataclasses.fields(ServingOptions)]


def _setting(config: pytest.Config, flag: str) -> Any:
    """The option's value, or its ini twin's."""
    name = f"dooly_{flag.replace('-', '_')}"
    value = config.getoption(name)
    return config.getini(name) if value is None else value


def _percent(config: pytest.Config, flag: str, default: float) -> float:
    return _number(config, flag, float, default) / 100


def _number(config: pytest.Config, flag: str, kind: Callable[[str], Number], default: Number) -> Number:
    from pytest_dooly.errors import ConfigurationError

    text = _setting(config, flag)
    try:
        value = kind(text) if text else default
    except ValueError:
        value = None
    if value is None or not 0 <= value < math.inf:
        raise ConfigurationError(f"--dooly-{flag} takes a number that is not negative, got {text!r}")
    return value


def _suite() -> Path:
    import op_suites

    return Path(op_suites.__path__[0]) / "test_operations.py"


def _write(lines: Sequence[str]) -> None:
    import sys

    sys.stdout.write("".join(f"{line}\n" for line in lines))


@contextmanager
def _usage_errors() -> Iterator[None]:
    try:
        yield
    except DoolyError as error:
        raise pytest.UsageError(str(error)) from error
