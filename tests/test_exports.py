"""What the package promises: sorted `__all__` everywhere, lazy public names, nothing heavy at import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pytest_dooly
from pytest_dooly.core.operation import OperationKind

MODULES = sorted(Path(pytest_dooly.__path__[0]).rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_all_is_sorted_and_lists_every_public_name(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = next(
        (
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        ),
        None,
    )
    assert names is not None
    assert list(names) == sorted(names, key=lambda name: (not name.isupper(), name[0].islower(), name))
    defined = {node.name for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")}
    assert defined <= set(names)


def test_every_public_name_resolves() -> None:
    for name in pytest_dooly.__all__:
        assert getattr(pytest_dooly, name) is not None
        assert name in dir(pytest_dooly)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = pytest_dooly.nonsense


def imported(code: str) -> set[str]:
    program = f"import sys; {code}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    return set(
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    )


HEAVY = {"torch", "vllm", "pandas", "sklearn", "scipy", "numpy", "sympy", "matplotlib", "jinja2", "sqlite_utils"}


def test_importing_the_package_and_the_plugin_imports_nothing_heavy() -> None:
    assert not imported("import pytest_dooly, pytest_dooly.plugin") & HEAVY


def test_a_session_that_names_no_model_imports_nothing_heavy(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import sys

        def test_unburdened():
            heavy = {"torch", "vllm", "pandas", "sklearn", "scipy", "sympy", "matplotlib", "sqlite_utils"}
            assert "pytest_dooly.plugin" in sys.modules
            assert not heavy & set(sys.modules)
    """)
    result = pytester.runpytest_subprocess("-p", "no:hypothesispytest", "-p", "no:cov")
    result.assert_outcomes(passed=1)


@pytest.mark.parametrize(
    "room", ["prediction.workload", "report.page", "sweep.plan", "report.findings", "prediction.validation"]
)
def test_the_reading_half_needs_no_torch_and_no_engine(room: str) -> None:
    assert not imported(f"import pytest_dooly.{room}") & {"torch", "vllm"}


@pytest.mark.parametrize("room", ["profiling", "cli.predict", "regress.foreign"])
def test_scikit_learn_is_imported_when_it_is_used(room: str) -> None:
    """It takes two seconds, which our own fits and predictions do without."""
    fits = "from tests.samples import model_and_regressors; assert model_and_regressors()"
    assert "sklearn" not in imported(f"import pytest_dooly.{room}; {fits}")


def test_every_kind_has_a_marker() -> None:
    from pytest_dooly import plugin

    assert set(plugin.KINDS) == {kind.value for kind in OperationKind}


def test_a_public_function_stays_one_whatever_was_imported_before() -> None:
    """No room has the name of a public function: importing it would put the module in the function's place."""
    rooms = {path.stem for path in Path(pytest_dooly.__file__).parent.iterdir()}
    assert not rooms & set(pytest_dooly.__all__)
    code = "import pytest_dooly as d; d.Workload; assert callable(d.predict); d.predict; assert callable(d.predict)"
    subprocess.run([sys.executable, "-c", code], check=True)
