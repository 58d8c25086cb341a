"""`--dooly-gate`: whether predicted TTFT and TPOT have drifted. Cases, exit status, and what CI is told."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_dooly.errors import ConfigurationError, DoolyError, refusal_of
from pytest_dooly.plugin.session import DoolyPlugin, parameter_of
from pytest_dooly.plugin.settings import number, percent, progress, setting, suite, usage_errors, write_above

if TYPE_CHECKING:
    from pytest_dooly.drift.found import Found
    from pytest_dooly.drift.verdict import Outcome
    from pytest_dooly.gating import Gate, GateOptions

__all__ = ["BROKEN", "DRIFT", "GATE", "UNDECIDED", "DriftCase", "GatePlugin", "add_gate_options", "check_gate_options"]

GATE = "dooly-gate"

DRIFT, UNDECIDED, BROKEN = 10, 11, 12
"""Exit statuses, apart from pytest's 0 to 5."""

_COMMITS = ("GITHUB_SHA", "CI_COMMIT_SHA")
"""Environment variables in which GitHub and GitLab name the commit."""


_OPTIONS = ("workload", "gate-limit", "gate-budget", "baseline", "against", "accept", "gate-json")
"""That say how the gate does what it does."""


@dataclass(frozen=True)
class DriftCase:
    """A figure or an operation of a model.

    Attributes:
        model: key of the model.
        id: of the case within the model.
    """

    model: str
    id: str


def add_gate_options(add: Callable[..., None]) -> None:
    """Adds the options of the gate.

    Args:
        add: takes a flag, a description and what argparse takes.
    """
    add("gate", "fail where predicted TTFT or TPOT has become slower than a baseline", action="store_true")
    add("workload", "that counts, as PROMPT+OUTPUT[xCONCURRENCY], 512+64x8; repeatable", action="append")
    add("gate-limit", "slowdown of TTFT or TPOT that is not to be exceeded, in percent (3)", metavar="PERCENT")
    add("gate-budget", "minutes that timing may take (5)", metavar="MINUTES")
    add("baseline", "latency DB, or export, to compare with (the latency DB itself)", metavar="FILE")
    add("against", "interpreter with another engine, or patched code, that takes turns with this one", metavar="PYTHON")
    add("accept", "make this run the baseline, for a reason that is kept", metavar="WHY")
    add("gate-json", "write what the gate has found as JSON", metavar="FILE")


def check_gate_options(config: pytest.Config) -> None:
    """Refuses options of the gate on a command line without it: they would do nothing, and nobody would be told.

    Raises:
        pytest.UsageError: there is one.
    """
    if setting(config, "gate"):
        if setting(config, "plan"):
            raise pytest.UsageError("--dooly-plan says what profiling would time, and the gate takes turns: drop one")
        return
    given = [flag for flag in _OPTIONS if config.getoption(f"dooly_{flag.replace('-', '_')}") is not None]
    if given:
        raise pytest.UsageError(f"--dooly-{given[0]} is an option of the gate: add --dooly-gate, or drop it")


class GatePlugin:
    """One session that gates, beside the one that profiles."""

    def __init__(self, config: pytest.Config, profiles: DoolyPlugin) -> None:
        """Remembers both.

        Args:
            config: of the session.
            profiles: the plugin that traces the models and holds the latency DB.
        """
        self._config, self._profiles = config, profiles
        self._gates: dict[str, Gate] = {}
        self._errors: dict[str, Exception] = {}
        self._selected: dict[str, set[str]] = {}
        self._others_failed = False
        self._lines: list[str] = []

    @pytest.hookimpl
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Looks for baselines; where none says where steps spend their time, the models are profiled first."""
        from pytest_dooly.gating import Gate

        run = self._profiles.profiling
        with usage_errors():
            options = self._options()
            for model in run.plan.models:
                gate = Gate(
                    run.engine, run.configuration(model), model, run.db, options, progress=progress(self._config)
                )
                self._gates[model.key] = gate
        if not any(gate.needs_profile for gate in self._gates.values()):
            self._profiles.idle = True
            session.config.args = [each for each in session.config.args if each != suite("test_operations.py")]

    def _begin(self) -> None:
        """Writes that no verdict is there yet: an earlier one is no longer true, and no place is found out late.

        Raises:
            pytest.UsageError: what the gate finds could not be written.
        """
        from pytest_dooly.report.gate_report import unfinished_summary

        for gate in (self._gates[model] for model in self._selected):
            told = os.environ.get("GITHUB_STEP_SUMMARY")
            self._summarise(gate, "" if told else unfinished_summary(gate.model.name))
            self._write_json(gate, {"model": gate.model.name, "outcome": "unfinished"})

    def pytest_report_header(self) -> list[str]:
        """What each model is compared with."""
        return [
            f"dooly: gate of {gate.model.name}: compared with "
            f"{'nothing: this run is the baseline' if gate.baseline is None else gate.baseline}"
            for gate in self._gates.values()
        ]

    def parameters(self) -> list[Any]:
        """One parameter set per figure and operation."""
        several = len(self._gates) > 1
        return [
            pytest.param(DriftCase(key, each), id=f"{gate.model.name}-{each}" if several else each)
            for key, gate in self._gates.items()
            for each in gate.case_ids
        ]

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Notes which cases are judged: the exit status is theirs alone."""
        for item in session.items:
            case = parameter_of(item, "dooly_drift_case")
            if case is not None:
                self._selected.setdefault(case.model, set()).add(case.id)
        if not session.config.option.collectonly:
            self._begin()

    @pytest.fixture
    def dooly_judge(self, request: pytest.FixtureRequest) -> Callable[[DriftCase], None]:
        """Judges a case; the first one of a model waits for everything to be timed."""

        def judge(case: DriftCase) -> None:
            from pytest_dooly.drift.verdict import Outcome
            from pytest_dooly.report.gate_report import case_properties, case_text

            found = self._found(case.model)
            request.node.user_properties.extend(case_properties(found, case.id))
            if found.outcome_of(case.id) in (Outcome.DRIFT, Outcome.UNDECIDED):
                pytest.fail(case_text(found, case.id), pytrace=False)

        return judge

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Notes failures that are not the gate's."""
        self._others_failed |= report.failed and "::test_drift[" not in report.nodeid

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Sets the exit status, and tells CI."""
        if session.config.option.collectonly:
            return
        found = {key: gate.found for key, gate in self._gates.items() if gate.found is not None}
        if session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and not self._others_failed:
            session.exitstatus = self._status(found) or session.exitstatus
        for key, each in found.items():
            self._tell(self._gates[key], each, each.outcome_over(frozenset(self._selected.get(key, ()))))

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Verdicts, what to do, and where all of it is."""
        if self._lines:
            terminalreporter.section("dooly gate")
        for line in self._lines:
            terminalreporter.write_line(line)

    def _found(self, model: str) -> Found:
        """What has been found of a model, timed when it is first asked for."""
        from pytest_dooly.engine_process import BrokenOperation

        gate, run = self._gates[model], self._profiles.profiling
        if model in self._errors:  # every other case would take all turns again
            raise self._errors[model]
        if gate.found is None:
            run.close()  # an engine that times single points holds memory
            if gate.needs_profile:
                run.fit()
            try:
                return gate.run()
            except BrokenOperation as error:
                reason = f"broken: {gate.model.name} cannot be timed: {error}"
                self._tell_broken(gate, reason)
                pytest.exit(reason, returncode=BROKEN)
            except DoolyError as error:  # no other case would fare better
                self._tell_broken(gate, str(error))
                pytest.exit(str(error), returncode=pytest.ExitCode.TESTS_FAILED)
            except Exception as error:
                self._errors[model] = error
                raise
        return gate.found

    def _status(self, found: dict[str, Found]) -> int:
        from pytest_dooly.drift.verdict import Outcome

        outcomes = {each.outcome_over(frozenset(self._selected.get(key, ()))) for key, each in found.items()}
        statuses = ((Outcome.DRIFT, DRIFT), (Outcome.UNDECIDED, UNDECIDED))
        return next((status for outcome, status in statuses if outcome in outcomes), 0)

    def _tell(self, gate: Gate, found: Found, of_selected: Outcome) -> None:
        from pytest_dooly.report.gate_report import gate_annotations, gate_document, gate_lines, gate_summary

        self._lines += gate_lines(found)
        self._lines.append(f"gate's summary: {self._summarise(gate, gate_summary(found))}")
        if of_selected is not found.outcome:
            self._lines.append(f"of the cases that were selected: {of_selected}, and the exit status is theirs")
        elif os.environ.get("GITHUB_ACTIONS") == "true":
            self._lines += gate_annotations(found)
        self._write_json(gate, gate_document(found))

    def _tell_broken(self, gate: Gate, reason: str) -> None:
        """Where there is no verdict; pytest writes no summary at an exit status of ours, and the reason itself."""
        from pytest_dooly.report.gate_report import broken_annotation, broken_summary

        self._summarise(gate, broken_summary(gate.model.name, reason))
        if os.environ.get("GITHUB_ACTIONS") == "true":
            write_above(self._config, broken_annotation(gate.model.name, reason))
        self._write_json(gate, {"model": gate.model.name, "outcome": "broken", "headline": reason})

    def _summarise(self, gate: Gate, text: str) -> Path:
        """Adds to GitHub's summary of the job, or else writes a file among the reports."""
        told = os.environ.get("GITHUB_STEP_SUMMARY")
        reports = self._config.rootpath / (setting(self._config, "reports") or "reports")
        path = Path(told) if told else reports / f"gate-{self._file_name(gate)}.md"
        _write(path, text, append=bool(told))
        return path

    def _write_json(self, gate: Gate, document: dict[str, Any]) -> None:
        """Where it is asked for; a file each where there are several models."""
        asked = setting(self._config, "gate-json")
        if asked:
            name = Path(asked)
            one = name if len(self._gates) == 1 else name.with_stem(f"{name.stem}-{self._file_name(gate)}")
            _write(self._config.rootpath / one, json.dumps(document, indent=2) + "\n")

    def _file_name(self, gate: Gate) -> str:
        """The model's, numbered where several of this session have the same: directories of one name, say."""
        name = Path(gate.model.name).name
        alike = [each for each in self._gates.values() if Path(each.model.name).name == name]
        return name if len(alike) == 1 else f"{name}-{alike.index(gate) + 1}"

    def _options(self) -> GateOptions:
        from pytest_dooly.core.workload import Workload
        from pytest_dooly.gating import GateOptions

        baseline, against = setting(self._config, "baseline"), setting(self._config, "against")
        accepted = setting(self._config, "accept")
        if against is not None and not against.strip():
            raise ConfigurationError("--dooly-against names no interpreter: name one whose engine is to take turns")
        if against is not None and baseline is not None:
            raise ConfigurationError("--dooly-against compares with the engine that takes turns: drop --dooly-baseline")
        asked = setting(self._config, "gate-json")
        if asked and (self._config.rootpath / asked).is_dir():
            raise ConfigurationError(f"--dooly-gate-json={asked} is a directory: name a file in it")
        if accepted is not None and not accepted.strip():
            raise ConfigurationError("--dooly-accept takes the reason why the baseline moves, in words")
        limit, minutes = percent(self._config, "gate-limit", 3), number(self._config, "gate-budget", float, 5.0)
        if not limit:
            raise ConfigurationError("--dooly-gate-limit must be above 0: noise alone exceeds a limit of nothing")
        return GateOptions(
            workloads=tuple(Workload.parse(text) for text in setting(self._config, "workload") or ()),
            limit=limit,
            budget_s=60 * minutes,
            baseline=self._config.rootpath / baseline if baseline else None,
            against=Path(against) if against else None,
            accepted=accepted,
            commit=_commit(self._config.rootpath),
        )


def _write(path: Path, text: str, *, append: bool = False) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a" if append else "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise pytest.UsageError(f"cannot write {path}: {refusal_of(error)}; name another file") from error


def _commit(root: Path) -> str:
    """The commit that is checked out, as CI or git says; empty where neither does."""
    told = next((os.environ[name] for name in _COMMITS if os.environ.get(name)), "")
    if told:
        return told
    try:
        asked = subprocess.run(
            ["git", "rev-parse", "HEAD"],  # noqa: S607 - the user's own git
            cwd=root,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return ""
    return asked.stdout.strip() if not asked.returncode else ""
