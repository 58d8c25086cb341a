"""README, CONTRIBUTING and Makefile say what there is, no more and no less."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pytest

from pytest_dooly import plugin
from pytest_dooly.cli.arguments import parser

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TEXTS = README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


class Options:
    """Stands in for pytest's parser and its group."""

    def __init__(self) -> None:
        self.flags: list[str] = []
        self.inis: list[str] = []

    def getgroup(self, *_: str) -> Options:
        return self

    def addoption(self, flag: str, **_: Any) -> None:
        self.flags.append(flag)

    def addini(self, name: str, *_: Any, **__: Any) -> None:
        self.inis.append(name)


@pytest.fixture(scope="module")
def options() -> Options:
    options = Options()
    plugin.pytest_addoption(options)  # type: ignore[arg-type]
    return options


def test_every_option_of_the_plugin_is_in_the_readme_and_no_other(options: Options) -> None:
    assert set(re.findall(r"^\| `(--dooly-[a-z-]+)`", README, flags=re.M)) == set(options.flags)
    assert set(re.findall(r"--dooly-[a-z-]+", README)) <= set(options.flags)


def test_every_option_has_an_ini_twin(options: Options) -> None:
    assert options.inis == [flag.removeprefix("--").replace("-", "_") for flag in options.flags]


def test_every_command_is_in_the_readme_and_no_other() -> None:
    (commands,) = (a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    assert set(re.findall(r"^dooly ([a-z]+)", README, flags=re.M)) == set(commands.choices)


def test_commands_of_the_readme_can_be_parsed() -> None:
    lines = re.findall(r"^dooly (.+?)(?: +#.*)?$", README, flags=re.M)
    assert len(lines) >= 6
    for line in lines:
        assert parser().parse_args(line.split()).command


def test_every_make_target_that_is_named_exists() -> None:
    named = set(re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)", TEXTS, flags=re.M))
    assert {first or second for first, second in named} <= set(re.findall(r"^([a-z-]+):", MAKEFILE, flags=re.M))


def test_every_path_that_is_named_is_there() -> None:
    """But for what a run writes."""
    pages = [TEXTS, *(page.read_text(encoding="utf-8") for page in (ROOT / "benchmarks/results").rglob("*.md"))]
    named = {
        path for page in pages for path in re.findall(r"`((?:benchmarks|docs|pytest_dooly|tests)/[\w./-]+)`", page)
    }
    assert len(named) >= 5
    assert not [path for path in named if not (ROOT / path).exists()]
    modules = {name.replace(".", "/") for page in pages for name in re.findall(r"python -m ([\w.]+)", page)}
    assert all((ROOT / f"{name}.py").exists() or (ROOT / name / "__main__.py").exists() for name in modules)


def test_the_readme_shows_a_picture_that_is_there() -> None:
    for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (ROOT / path).read_bytes().startswith(b"\x89PNG")


def test_no_placeholder_is_left() -> None:
    assert not re.findall(r"@[A-Z_]+@|TODO", TEXTS)


def test_ci_runs_the_readme_s_test_command() -> None:
    assert re.search(r"^make test$", (ROOT / ".ci/run").read_text(encoding="utf-8"), flags=re.M)
    assert re.search(r"^make test", README, flags=re.M)
