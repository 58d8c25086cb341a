"""`pytest --dooly-model=…`: options, header, cases and summary. Wires rooms together and decides nothing.

Loaded in every project that has us installed, so nothing heavy is imported before a model is named.
"""

from __future__ import annotations

import pytest

from pytest_dooly.plugin import hookspecs, suites
from pytest_dooly.plugin.distribution import accelerators, session_plugin
from pytest_dooly.plugin.fixtures import dooly_time
from pytest_dooly.plugin.gate import GATE, GatePlugin, check_gate_options
from pytest_dooly.plugin.session import PLUGIN, DoolyPlugin, profiling
from pytest_dooly.plugin.settings import add_options, nothing, setting, usage_errors, write

__all__ = ["DoolyPlugin", "GatePlugin", "dooly_time"]

KINDS = (
    *("linear", "norm", "rotary", "activation", "attention", "moe", "mixer", "embedding"),
    *("logits", "sampler", "collective", "other", "overhead"),
)
"""Values of OperationKind, whose room imports sympy; a test compares the two."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the `--dooly-*` options and their ini twins."""
    add_options(parser)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Adds the `pytest_dooly_*` hooks."""
    pluginmanager.add_hookspecs(hookspecs)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """As many workers as there are accelerators, for `-n auto`."""
    with usage_errors():
        return len(accelerators(config)) or None if setting(config, "model") else None


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Answers `--dooly-models` and `--dooly-plan`, which run no test."""
    if not (setting(config, "models") or (setting(config, "plan") and setting(config, "model"))):
        return None
    from pytest_dooly.report.terminal import model_lines, plan_lines

    if setting(config, "models"):
        write(model_lines())
        return 0
    check_gate_options(config)
    with usage_errors(), profiling(config) as run:
        write(plan_lines(run.plan))
    return 0


def pytest_configure(config: pytest.Config) -> None:
    """Registers the session's plugin where a model is named."""
    for kind in KINDS:
        config.addinivalue_line("markers", f"dooly_{kind}: operations of this kind, timed by pytest-dooly")
    suites.register(config)
    check_gate_options(config)
    if not setting(config, "model"):
        if setting(config, "gate"):
            raise pytest.UsageError("--dooly-gate needs to know what is served: name it with --dooly-model")
        return
    if not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError("--dooly-model needs pytest-benchmark, which is not loaded: drop '-p no:benchmark'")
    plugin = session_plugin(config)
    config.pluginmanager.register(plugin, PLUGIN)
    if setting(config, "gate"):
        if getattr(config.option, "numprocesses", None):
            raise pytest.UsageError("--dooly-gate takes turns in one process: drop '-n', or use '-n 0'")
        config.pluginmanager.register(GatePlugin(config, plugin), GATE)
    config.args = suites.arguments(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One parameter set per case; none without a model, or without the gate."""
    for name, plugin_name, what, option in (
        ("dooly_case", PLUGIN, "model", "--dooly-model"),
        ("dooly_drift_case", GATE, "gate", "--dooly-gate"),
    ):
        if name not in metafunc.fixturenames:
            continue
        plugin = metafunc.config.pluginmanager.get_plugin(plugin_name)
        if plugin is None:
            metafunc.parametrize(name, nothing(f"no {what} named: use {option}"))
        else:
            metafunc.parametrize(name, plugin.parameters() or nothing("the plan has no case"))
