"""The `--dooly-*` options and their ini twins, and what they say.

Read in every project that has us installed, so nothing heavy is imported at the top.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from pytest_dooly.errors import DoolyError

if TYPE_CHECKING:
    from pytest_dooly.core.configuration import ServingOptions

__all__ = [
    "DB",
    "add_options",
    "db_path",
    "nothing",
    "number",
    "percent",
    "progress",
    "serving_options",
    "setting",
    "suite",
    "usage_errors",
    "write",
    "write_above",
]

Number = TypeVar("Number", int, float)

DB = ".dooly/latency.db"


def add_options(parser: pytest.Parser) -> None:
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
    add(
        "suite",
        "suites to run beside what is named: operations, explore, cliffs, slo, monotone; comma-separated",
        metavar="NAMES",
    )
    add("slo", "bounds that no workload may break, as in ttft:300ms,tpot:40ms; runs the suite slo", metavar="BOUNDS")
    add("explore", "minutes for timing where regressors are most wrong; runs the suite explore", metavar="MINUTES")
    add("models", "list the models that are shipped, and exit", action="store_true")
    from pytest_dooly.plugin.gate import add_gate_options  # which reads settings itself

    add_gate_options(add)


def nothing(reason: str) -> list[Any]:
    """The parameter set of a test that has nothing to work on: skipped, and it says why.

    Args:
        reason: for people.
    """
    return [pytest.param(None, id="none", marks=pytest.mark.skip(reason=reason))]


def suite(name: str) -> str:
    """Path of one of our own suites."""
    import op_suites

    return str(Path(op_suites.__path__[0]) / name)


def db_path(config: pytest.Config) -> Path:
    """The latency DB that the session reads and writes."""
    return config.rootpath / (setting(config, "db") or DB)


def serving_options(config: pytest.Config) -> ServingOptions:
    """The serving options that the flags and ini twins name; ConfigurationError where one is no such value."""
    from pytest_dooly.core.configuration import parse_options

    return parse_options({flag: setting(config, flag) for flag in _flags()})


def _flags() -> list[str]:
    from pytest_dooly.core.configuration import ServingOptions

    return [field.metadata["flag"] for field in dataclasses.fields(ServingOptions)]


def setting(config: pytest.Config, flag: str) -> Any:
    """The option's value, or its ini twin's."""
    name = f"dooly_{flag.replace('-', '_')}"
    value = config.getoption(name)
    return config.getini(name) if value is None else value


def percent(config: pytest.Config, flag: str, default: float) -> float:
    """The fraction that an option in percent names."""
    return number(config, flag, float, default) / 100


def number(config: pytest.Config, flag: str, kind: Callable[[str], Number], default: Number) -> Number:
    """The number that an option names; ConfigurationError where it is none, or negative."""
    from pytest_dooly.errors import ConfigurationError

    text = setting(config, flag)
    try:
        value = kind(text) if text else default
    except ValueError:
        value = None
    if value is None or not 0 <= value < math.inf:
        raise ConfigurationError(f"--dooly-{flag} takes a number that is not negative, got {text!r}")
    return value


def write(lines: Sequence[str]) -> None:
    """Writes lines where no session, and so no terminal reporter, is."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def progress(config: pytest.Config) -> Callable[[str], None]:
    """What writes a line before anything that takes seconds."""
    return lambda line: write_above(config, f"dooly: {line} ...") if config.get_verbosity() >= 0 else None


def write_above(config: pytest.Config, line: str) -> None:
    """Writes a line of its own in a session, also while a case runs, whose output is captured."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    capture = config.pluginmanager.get_plugin("capturemanager")
    if reporter is None:
        return
    with capture.global_and_fixture_disabled() if capture is not None else nullcontext():
        reporter.ensure_newline()
        reporter.write_line(line)


@contextmanager
def usage_errors() -> Iterator[None]:
    """Makes our errors pytest's: one message, exit status 4."""
    try:
        yield
    except DoolyError as error:
        raise pytest.UsageError(str(error)) from error
