"""`pytest --dooly-model=…`: options, header, cases and summary. Wires rooms together and decides nothing.

Loaded in every project that has us installed, so nothing heavy is imported before a model is named.
"""

from __future__ import annotations

import pytest

from pytest_dooly.plugin import hookspecs, suites
from pytest_dooly.plugin.distribution import accelerators, session_plugin
from pytest_dooly.plugin.fixtures import dooly_time
from pytest_dooly.plugin.session import PLUGIN, DoolyPlugin, profiling
from pytest_dooly.plugin.settings import add_options, setting, usage_errors, write

__all__ = ["DoolyPlugin", "dooly_time"]

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
    with usage_errors(), profiling(config) as run:
        write(plan_lines(run.plan))
    return 0


def pytest_configure(config: pytest.Config) -> None:
    """Registers the session's plugin where a model is named."""
    for kind in KINDS:
        config.addinivalue_line("markers", f"dooly_{kind}: operations of this kind, timed by pytest-dooly")
    suites.register(config)
    if not setting(config, "model"):
        return
    if not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError("--dooly-model needs pytest-benchmark, which is not loaded: drop '-p no:benchmark'")
    config.pluginmanager.register(session_plugin(config), PLUGIN)
    config.args = suites.arguments(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One parameter set per case; none without a model."""
    if "dooly_case" not in metafunc.fixturenames:
        return
    plugin = metafunc.config.pluginmanager.get_plugin(PLUGIN)
    if plugin is None:
        skip = pytest.mark.skip(reason="no model named: use --dooly-model")
        metafunc.parametrize("dooly_case", [pytest.param(None, id="no-model", marks=skip)])
    else:
        metafunc.parametrize("dooly_case", plugin.parameters())
