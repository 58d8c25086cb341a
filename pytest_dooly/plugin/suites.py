"""The suites of `op_suites`, and the fixtures that they and a user's own tests ask about a model.

Registered in every project that has us installed, so nothing heavy is imported at the top.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import pytest

from pytest_dooly.errors import ConfigurationError, DoolyError, MissingMeasurements
from pytest_dooly.plugin.session import PLUGIN, DoolyPlugin
from pytest_dooly.plugin.settings import nothing, number, percent, setting, suite, usage_errors

if TYPE_CHECKING:
    from pytest_dooly.core.signature import ModelOperation, ServedModel
    from pytest_dooly.exploring import Exploration
    from pytest_dooly.searching.objective import Objective
    from pytest_dooly.simulation.predicted_model import PredictedModel
    from pytest_dooly.step_timer import StepTimer
    from pytest_dooly.sweep.plan import Case

__all__ = [
    "SUITES",
    "arguments",
    "dooly_cliffs",
    "dooly_explore",
    "dooly_measure",
    "dooly_model",
    "dooly_slo",
    "register",
]

SUITES = ("operations", "explore", "cliffs", "slo", "monotone")
"""Names of suites, each in `op_suites/test_NAME.py`."""

_FINDINGS = pytest.StashKey[dict[str, list[str]]]()
"""Lines for the terminal's summary, by title."""

_EXPLORATION: pytest.StashKey[Exploration] = pytest.StashKey()

_NO_MODEL = "no model named: use --dooly-model"


def register(config: pytest.Config) -> None:
    """Registers the fixtures, and looks whether the suites' options can be read.

    Raises:
        pytest.UsageError: an option cannot be read, or needs a model.
    """
    config.pluginmanager.register(sys.modules[__name__], "dooly-suites")
    with usage_errors():
        named = _named(config)
        if config.getoption("dooly_suite") and not setting(config, "model"):
            raise ConfigurationError(f"--dooly-suite={','.join(named)} needs --dooly-model")
        for name, bound in (("slo", "ttft:300ms,tpot:40ms"), ("explore", "5")):
            if name in named and not setting(config, name):
                raise ConfigurationError(f"--dooly-suite={name} needs --dooly-{name}, as in --dooly-{name}={bound}")
        if setting(config, "slo"):
            _objective(config)
        if setting(config, "explore") and not _minutes(config):
            raise ConfigurationError("--dooly-explore=0 leaves no time: name minutes above 0, or drop it")


def arguments(config: pytest.Config) -> list[str]:
    """What to collect: what the user has named and the suites that are asked for; else what a profile consists of."""
    named = _named(config)
    names_paths = config.args_source is pytest.Config.ArgsSource.ARGS
    # A model in an ini file is the project's, whose own tests run as ever.
    paths = config.args if names_paths or config.getoption("dooly_model") is None else []
    if not names_paths:
        named = named or ["operations", *(name for name in ("explore", "slo") if setting(config, name))]
    if setting(config, "gate") and not any("test_drift" in path for path in paths):
        named = [*(named or ["operations"]), "drift"]  # a gate that is asked for and not run would pass
    return [*paths, *(suite(f"test_{name}.py") for name in named)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One parameter set per model, where several are named, and per case beside those of the plan."""
    _generate_neighbours(metafunc)
    _generate_explored(metafunc)
    names = setting(metafunc.config, "model") or ()
    if "dooly_model" in metafunc.fixturenames and len(names) > 1:
        places = range(len(names))
        metafunc.parametrize("dooly_model", places, ids=map(str, names), indirect=True, scope="session")


def _generate_neighbours(metafunc: pytest.Metafunc) -> None:
    if "dooly_neighbour" not in metafunc.fixturenames:
        return
    plugin = _plugin(metafunc.config)
    if plugin is None:
        metafunc.parametrize("dooly_neighbour", nothing(_NO_MODEL))
        return
    from pytest_dooly.checking.cliffs import edge_points

    profiling = plugin.profiling
    cases: dict[tuple[str, str], Case] = {}
    for model in profiling.plan.models:
        for operation in model.operations:
            for point in edge_points(operation.signature, model.limits):
                key = operation.signature.key, str(point)
                if key not in cases:
                    cases[key] = profiling.beyond(model, operation, point)
    parameters = plugin.parameters(list(cases.values()))
    metafunc.parametrize("dooly_neighbour", parameters or nothing("no size of the model lies beside an edge"))


def _generate_explored(metafunc: pytest.Metafunc) -> None:
    if "dooly_explored" not in metafunc.fixturenames:
        return
    plugin = _plugin(metafunc.config)
    if plugin is None or not _minutes(metafunc.config):
        reason = "no minutes named: use --dooly-explore, as in --dooly-explore=5" if plugin else _NO_MODEL
        metafunc.parametrize("dooly_explored", nothing(reason))
        return
    from pytest_dooly.exploring import explorable

    plugin.parameters([])  # so that the session ends with new regressors and a report
    parameters = [
        pytest.param(pair, id=pair[1].signature.label, marks=getattr(pytest.mark, f"dooly_{pair[1].signature.kind}"))
        for pair in explorable(plugin.profiling.plan.models)
    ]
    metafunc.parametrize("dooly_explored", parameters)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the suites have found."""
    exploration = terminalreporter.config.stash.get(_EXPLORATION, None)
    if exploration is not None:
        terminalreporter.section("dooly: explored")
        for line in exploration.lines(verbosity=terminalreporter.config.get_verbosity()):
            terminalreporter.write_line(line)
    for title, lines in terminalreporter.config.stash.get(_FINDINGS, {}).items():
        terminalreporter.section(title)
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture
def dooly_explore(request: pytest.FixtureRequest) -> Callable[[ServedModel, ModelOperation], None]:
    """Explores an operation for an equal share of the minutes that are left; what one leaves goes to the others."""
    from pytest_dooly.exploring import Exploration

    config, items = request.config, request.session.items
    if _EXPLORATION not in config.stash:
        profiling = cast("DoolyPlugin", _plugin(config)).profiling
        config.stash[_EXPLORATION] = Exploration(profiling, 60 * _minutes(config))
    exploration = config.stash[_EXPLORATION]
    to_come = items[items.index(request.node) :]
    share = 1 / sum("dooly_explored" in getattr(item, "fixturenames", ()) for item in to_come)

    def explore(model: ServedModel, operation: ModelOperation) -> None:
        try:
            explored = exploration.explore(model, operation, share=share)
        except MissingMeasurements as error:
            reason, failures = str(error), []
        except DoolyError as error:  # no other operation would fare better
            pytest.exit(str(error), returncode=pytest.ExitCode.TESTS_FAILED)
        else:
            reason, failures = "", explored.failures
        if reason or failures:
            pytest.fail(reason or "\n".join(failures), pytrace=False)

    return explore


@pytest.fixture(scope="session")
def dooly_cliffs(request: pytest.FixtureRequest) -> Callable[[PredictedModel], None]:
    """Looks for a model's cliffs in what the latency DB has by now, and shows them in the summary."""
    from pytest_dooly.checking.cliffs import JUMP, cliffs

    def look(model: PredictedModel) -> None:
        plugin = cast("DoolyPlugin", _plugin(request.config))
        measured = plugin.profiling.db.measurements(plugin.profiling.plan.environment)
        lines = [str(cliff) for cliff in cliffs(model, measured)]
        none = f"no size costs {JUMP:.0%} of a step more than its share over the next smaller one"
        request.config.stash.setdefault(_FINDINGS, {})[f"dooly: cliffs of {model.name}"] = lines or [none]

    return look


@pytest.fixture(scope="session")
def dooly_model(request: pytest.FixtureRequest) -> PredictedModel:
    """The model that `--dooly-model` names, with predictions in seconds from what the latency DB holds of it.

    Of several models, a test runs for each. Skips where none is named; fails where the latency DB lacks operations.
    """
    plugin, served = _session(request)
    try:
        return plugin.profiling.predicted(served)
    except DoolyError as error:
        reason = str(error)
    pytest.fail(reason, pytrace=False)


@pytest.fixture(scope="session")
def dooly_measure(request: pytest.FixtureRequest, dooly_model: PredictedModel) -> StepTimer:
    """Times steps of `dooly_model` for real: called with a batch, it gives seconds. Skips as `dooly_model` does."""
    from pytest_dooly.step_timer import StepTimer
    from pytest_dooly.timing.clock import Clocks

    plugin, served = cast("DoolyPlugin", _plugin(request.config)), dooly_model.served
    profiling = plugin.profiling
    precision = percent(request.config, "precision", 2)
    return StepTimer(served, lambda: profiling.whole(served), Clocks(profiling.plan.environment), precision=precision)


@pytest.fixture(scope="session")
def dooly_slo(request: pytest.FixtureRequest) -> Objective:
    """The bounds that `--dooly-slo` names; skips where it names none."""
    if not setting(request.config, "slo"):
        pytest.skip("no SLO named: use --dooly-slo, as in --dooly-slo=ttft:300ms,tpot:40ms")
    return _objective(request.config)


def _session(request: pytest.FixtureRequest) -> tuple[DoolyPlugin, ServedModel]:
    """The session's plugin and the model of this parameter set."""
    plugin = _plugin(request.config)
    if plugin is None:
        pytest.skip(_NO_MODEL)
    return plugin, plugin.profiling.plan.models[getattr(request, "param", 0)]


def _plugin(config: pytest.Config) -> DoolyPlugin | None:
    return cast("DoolyPlugin | None", config.pluginmanager.get_plugin(PLUGIN))


def _named(config: pytest.Config) -> list[str]:
    """The suites of `--dooly-suite`, in the order in which they run; empty where none is named."""
    asked = [name.strip() for name in (setting(config, "suite") or "").split(",") if name.strip()]
    for name in asked:
        if name not in SUITES:
            raise ConfigurationError(f"unknown suite {name!r}: name one of {', '.join(SUITES)}")
    return [name for name in SUITES if name in asked]


def _minutes(config: pytest.Config) -> float:
    return number(config, "explore", float, 0.0)


def _objective(config: pytest.Config) -> Objective:
    from pytest_dooly.searching.objective import Objective

    return Objective.parse(setting(config, "slo"))
