"""README, CONTRIBUTING, Makefile and the pages of docs/ say what there is, no more and no less; their blocks run."""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

import pytest_dooly
from pytest_dooly import cli, plugin
from pytest_dooly.cli.arguments import parser
from pytest_dooly.core.batch import Limits
from pytest_dooly.core.signature import served_key
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.latency_db.findings import OPTIONS
from pytest_dooly.regress.stored import fit_regressors
from pytest_dooly.sweep.grid import sweep
from tests.hosts.conftest import planned
from tests.samples import ENVIRONMENT, STEP, measured, uses

ROOT = Path(__file__).parent.parent
DOCS = {str(path.relative_to(ROOT)): path for path in sorted((ROOT / "docs").glob("*.md"))}
PAGES = {"README.md": ROOT / "README.md", "CONTRIBUTING.md": ROOT / "CONTRIBUTING.md", **DOCS}
README = PAGES["README.md"].read_text(encoding="utf-8")
TEXT = "\n".join(path.read_text(encoding="utf-8") for path in PAGES.values())
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


class Block(NamedTuple):
    """A fenced block of a page, with its language."""

    page: str
    language: str
    text: str


def blocks() -> Iterator[Block]:
    for name, path in PAGES.items():
        text = path.read_text(encoding="utf-8")
        for indent, language, body in re.findall(r"^( *)```(\w*)\n(.*?)^ *```$", text, flags=re.M | re.S):
            yield Block(name, language, re.sub(rf"^{indent}", "", body, flags=re.M))


def commands() -> Iterator[tuple[str, list[str]]]:
    """Page and words of every command in a block of shell lines, or in the steps of a block of YAML."""
    for block in blocks():
        if block.language in ("", "yaml"):
            for line in block.text.replace("\\\n", " ").splitlines():
                command = re.match(
                    r"(?:- )?(?:run: )?(?:[A-Z_]+=\S+ )*((?:dooly|make|pip|pytest|python) .*)", line.strip()
                )
                if command is not None:
                    yield block.page, shlex.split(command[1], comments=True)


@pytest.fixture(scope="module")
def options() -> Options:
    options = Options()
    plugin.pytest_addoption(options)  # type: ignore[arg-type]
    return options


def test_every_option_of_the_plugin_is_in_its_page_and_no_other(options: Options) -> None:
    table = set(re.findall(r"^\| `(--dooly-[a-z-]+)`", DOCS["docs/plugin.md"].read_text(encoding="utf-8"), flags=re.M))
    assert table == set(options.flags)
    assert set(re.findall(r"--dooly-[a-z-]+", TEXT)) <= set(options.flags)


def test_every_option_has_an_ini_twin(options: Options) -> None:
    assert options.inis == [flag.removeprefix("--").replace("-", "_") for flag in options.flags]


def test_every_command_is_in_the_docs_and_no_other() -> None:
    (known,) = (a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    assert {words[1] for _, words in commands() if words[0] == "dooly"} == {*known.choices}


def test_commands_can_be_parsed(request: pytest.FixtureRequest, options: Options) -> None:
    lines = [words for _, words in commands()]
    assert len(lines) >= 40
    known = set(request.config._parser.optparser._option_string_actions) | set(options.flags)
    for name, *words in lines:
        if name == "dooly":
            assert parser().parse_args(words).command
        if name == "pytest":
            flags = {re.match(r"--?[\w-]+", word)[0] for word in words if word.startswith("-")}  # type: ignore[index]
            assert {flag if flag.startswith("--") else flag[:2] for flag in flags} <= known, words


def test_blocks_are_of_a_kind_that_is_checked() -> None:
    pictures = {"CONTRIBUTING.md": 1}  # of the folders
    for block in blocks():
        assert block.language in ("", "python", "text", "yaml"), block
        if block.language == "":
            first = block.text.replace("\\\n", " ").splitlines()[0]
            named = re.match(r"(?:[A-Z]+=\S+ )*(dooly|make|pip|pytest|python)\b", first)
            pictures[block.page] = pictures.get(block.page, 0) - (named is None)
    assert not [page for page, left in pictures.items() if left < 0]


def test_blocks_of_yaml_can_be_read() -> None:
    yaml = pytest.importorskip("yaml")
    documents = [yaml.safe_load(block.text) for block in blocks() if block.language == "yaml"]
    assert {"jobs", "latency"} <= {key for document in documents for key in document}


def test_every_make_target_that_is_named_exists() -> None:
    named = {words[1] for _, words in commands() if words[0] == "make"} | set(re.findall(r"`make ([a-z-]+)`", TEXT))
    assert named <= set(re.findall(r"^([a-z-]+):", MAKEFILE, flags=re.M))


def test_every_path_that_is_named_is_there() -> None:
    """But for what a run writes."""
    pages = [TEXT, *(page.read_text(encoding="utf-8") for page in (ROOT / "benchmarks/results").rglob("*.md"))]
    named = {
        path for page in pages for path in re.findall(r"`((?:benchmarks|docs|pytest_dooly|tests)/[\w./-]+)`", page)
    }
    assert len(named) >= 5
    assert not [path for path in named if not (ROOT / path).exists()]
    modules = {name.replace(".", "/") for page in pages for name in re.findall(r"python -m ([\w.]+)", page)}
    assert all((ROOT / f"{name}.py").exists() or (ROOT / name / "__main__.py").exists() for name in modules)


def test_links_and_pictures_lead_somewhere() -> None:
    """From the README to files; within docs/ the site's strict build finds those that do not."""
    for path in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (ROOT / path).read_bytes().startswith(b"\x89PNG")


def test_the_readme_fits_on_a_screen() -> None:
    assert len(README.splitlines()) <= 80


def test_no_placeholder_is_left() -> None:
    assert not re.findall(r"@[A-Z_]+@|TODO", TEXT)


def test_ci_runs_the_readme_s_test_command() -> None:
    assert re.search(r"^make test$", (ROOT / ".ci/run").read_text(encoding="utf-8"), flags=re.M)
    assert re.search(r"^make test", README, flags=re.M)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory whose latency DB has a llama3 of two layers: measured by a law, and planned for two ranks."""
    folder = tmp_path_factory.mktemp("stored")
    limits = Limits(max_num_tokens=2048, max_num_seqs=256, max_model_len=4096)
    two_layers = planned()
    model = dataclasses.replace(
        two_layers, name="llama3", operations=(*two_layers.operations, uses(STEP)), limits=limits
    )
    with LatencyDB.open(folder / ".dooly/latency.db") as db:
        for options in (pytest_dooly.ServingOptions(), pytest_dooly.ServingOptions(tensor_parallel_size=2)):
            key = served_key(pytest_dooly.resolve("llama3", options), ENVIRONMENT)
            db.save_model(dataclasses.replace(model, key=key), ENVIRONMENT)
            db.save_finding(OPTIONS, key, ENVIRONMENT, options.to_json())
        for operation in model.operations:
            for point in sweep(operation.signature, limits):
                num_tokens = point.batch.num_tokens if point.batch else point.num_tokens or point.num_reqs or 0
                outcome = measured(1e-5 + 1e-7 * num_tokens)
                db.record(operation.signature, ENVIRONMENT, point, outcome, spent_s=0.1)
        fit_regressors([model], db, ENVIRONMENT)
    return folder


@pytest.mark.parametrize("page", [page for page in DOCS if page in ("docs/start.md", "docs/simulators.md")])
def test_blocks_of_python_run(page: str, stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(stored)
    (block,) = (block for block in blocks() if (block.page, block.language) == (page, "python"))
    names: dict[str, Any] = {"pytest_dooly": pytest_dooly, "steps": [[(1, 512)], [(128, 0), (1, 700)]]}
    exec(compile(block.text, page, "exec"), names)  # noqa: S102 - the page's own
    latency_s = names["step"].latency_s if "step" in names else names["backend"].step_s([(1, 512)])
    assert 0 < latency_s < 1


@pytest.mark.parametrize("step_s", [0.1, 0.3])
def test_a_test_of_the_page_on_strategies_passes_and_fails_as_it_says(step_s: float) -> None:
    (block,) = (block for block in blocks() if (block.page, block.language) == ("docs/strategies.md", "python"))
    names: dict[str, Any] = {}
    exec(compile(block.text, "docs/strategies.md", "exec"), names)  # noqa: S102 - the page's own
    model = SimpleNamespace(step_s=lambda batch: step_s)
    with pytest.raises(AssertionError) if step_s > 0.2 else nullcontext():
        names["test_no_step_takes_over_200_ms"](dooly_model=model)


def test_every_block_of_python_is_run_by_a_test() -> None:
    assert {block.page for block in blocks() if block.language == "python"} == {
        *("docs/plugin.md", "docs/simulators.md", "docs/start.md", "docs/strategies.md"),
    }


def test_what_needs_no_engine_runs_as_the_first_ten_minutes_say(pytester: pytest.Pytester) -> None:
    """And the hooks of the plugin's page are called."""
    (hooks,) = (block for block in blocks() if (block.page, block.language) == ("docs/plugin.md", "python"))
    lines = [words for page, words in commands() if page == "docs/start.md" and "llama-tiny" in " ".join(words)]
    assert [words[0] for words in lines] == ["pytest", "pytest", "dooly"]
    plan, profile, predict = lines
    assert pytester.runpytest_inprocess("-p", "no:cov", *plan[1:]).ret == 0
    assert pytester.runpytest_inprocess("-p", "no:cov", "--dooly-target=1000", *profile[1:]).ret == 0
    assert cli.main(predict[1:]) == 0
    pytester.makeconftest(hooks.text)
    again = ("--dooly-refresh", "-s", "-k", "silu or sampler")
    result = pytester.runpytest_inprocess("-p", "no:cov", *profile[1:], *again)
    result.stdout.fnmatch_lines(["*silu-*-fp32 T1 *", "*[0-9] cases timed"])
    assert not re.search(r"^\.*sampler-\S+ R", result.stdout.str(), flags=re.M)
