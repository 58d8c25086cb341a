"""One session that profiles: header, cases, and summary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_dooly.errors import DoolyError
from pytest_dooly.plugin.settings import (
    DB,
    db_path,
    number,
    percent,
    progress,
    serving_options,
    setting,
    usage_errors,
)

if TYPE_CHECKING:
    from pytest_dooly.core.configuration import ModelConfiguration
    from pytest_dooly.profiling import Profiling
    from pytest_dooly.report.findings import Summary
    from pytest_dooly.sweep.plan import Case

__all__ = ["PLUGIN", "DoolyPlugin", "parameter_of", "profiling"]

PLUGIN = "dooly-session"


class DoolyPlugin:
    """One session that profiles.

    Attributes:
        profiling: the run; set when the session has started.
        idle: whether no case is to be timed, since the gate needs none.
    """

    profiling: Profiling
    idle = False

    def __init__(self, config: pytest.Config) -> None:
        """Remembers the session's configuration."""
        self._config = config
        self._open = profiling(config)
        self._started = self._asked = False
        self._summary: Summary | None = None
        self._error: str | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        """Traces the models and plans the cases, so that the header can tell."""
        with usage_errors():
            self.profiling = self._open.__enter__()
            self._started = True

    def pytest_report_header(self) -> list[str]:
        """Model, environment, latency DB and how many cases are new."""
        from pytest_dooly.report.terminal import header_lines

        lines = header_lines(self.profiling.plan, db_path(self._config))
        return lines[:-1] if self.idle else lines

    def parameters(self, cases: Sequence[Case] | None = None) -> list[Any]:
        """One parameter set per case of the plan or of these: id, markers, timer, and a skip where the DB has it."""
        from pytest_dooly.report.terminal import skip_reason

        self._asked, where = True, str(setting(self._config, "db") or DB)
        return [self._parameter(case, skip_reason(case, where)) for case in (self.cases if cases is None else cases)]

    @property
    def cases(self) -> Sequence[Case]:
        """The cases in the order in which they are timed."""
        return self.profiling.plan.cases

    def _parameter(self, case: Case, reason: str) -> Any:
        signature = case.operation.signature
        marks = [
            getattr(pytest.mark, f"dooly_{signature.kind}"),
            pytest.mark.benchmark(group=signature.label, timer=self.profiling.timer(case)),
        ]
        if reason:
            marks.append(pytest.mark.skip(reason=reason))
        return pytest.param(case, id=case.id, marks=marks)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Lets others change which cases are timed, and in which order."""
        cases = {item: case for item in items if (case := parameter_of(item, "dooly_case")) is not None}
        chosen = list(cases)
        config.hook.pytest_dooly_case_modifyitems(config=config, items=chosen, cases=cases)
        if chosen != list(cases):
            config.hook.pytest_deselected(items=[item for item in cases if item not in set(chosen)])
            items[:] = [*(item for item in items if item not in cases), *chosen]

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Skips a case that the cases timed before it have made unneeded."""
        case = parameter_of(item, "dooly_case")
        reason = self.profiling.unneeded(case) if case is not None else None
        if reason is not None:
            pytest.skip(reason)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fits the regressors and writes the reports; nothing where nothing was to be run."""
        if not self._started or self.idle or session.config.option.collectonly:
            return
        self.profiling.close()
        if not self._asked:  # a session of a user's own tests, or of suites that only predict
            return
        try:
            self._summary = self.profiling.summarise(Path(setting(self._config, "reports") or "reports"))
            self._config.hook.pytest_dooly_summary(config=self._config, summary=self._summary)
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


def parameter_of(item: pytest.Item, name: str) -> Any:
    """What an item is parametrized with by that name; None for an item that is not."""
    callspec = getattr(item, "callspec", None)
    return None if callspec is None else callspec.params.get(name)


@contextmanager
def profiling(config: pytest.Config) -> Iterator[Profiling]:
    """A profiling run as the options ask for it, its latency DB open."""
    from pytest_dooly.core.configuration import resolve
    from pytest_dooly.engine import load_engine
    from pytest_dooly.latency_db.db import LatencyDB
    from pytest_dooly.profiling import Profiling
    from pytest_dooly.regress.foreign import ForeignEstimator

    options, estimator = serving_options(config), setting(config, "regressor")
    configurations: list[ModelConfiguration] = [resolve(name, options) for name in setting(config, "model")]
    engine = load_engine(setting(config, "engine") or "vllm")
    with LatencyDB.open(db_path(config)) as db:
        profiling = Profiling(
            engine,
            configurations,
            db,
            refresh=bool(setting(config, "refresh")),
            target=percent(config, "target", 5),
            precision=percent(config, "precision", 2),
            held_out=number(config, "held-out", int, 0),
            share=percent(config, "share", 5),
            estimator=None if estimator is None else ForeignEstimator.named(estimator),
            progress=progress(config),
        )
        try:
            yield profiling
        finally:
            profiling.close()
