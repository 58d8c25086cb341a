"""Classes of models whose files import packages that are not installed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from pytest_dooly.engine.vllm.model_classes import classes_found_here

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")


def load(place: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> type:
    """The class `Model` of a module with that source, as vLLM's registry loads it."""
    from vllm.model_executor.models.registry import _LazyRegisteredModel

    (place / "some_model.py").write_text(source)
    monkeypatch.syspath_prepend(place)
    monkeypatch.delitem(sys.modules, "some_model", raising=False)
    with classes_found_here():
        return _LazyRegisteredModel("some_model", "Model").load_model_cls()


def test_absent_packages_are_stood_in_for_while_a_class_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(
        tmp_path,
        monkeypatch,
        "from absent_vision.transforms.v2 import functional as F\nimport absent_sound.kaldi as kaldi\n"
        "MODE = F.InterpolationMode.BICUBIC\nclass Model(kaldi.Base): pass\ndef resize(): return F.resize(1)\n",
    )
    assert model.__name__ == "Model"
    assert not any(name.startswith("absent_") for name in sys.modules)
    assert importlib.util.find_spec("absent_vision") is None
    with pytest.raises(ModuleNotFoundError, match="^absent_vision is not installed$"):
        sys.modules["some_model"].resize()


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("import json.no_such_part", "json.no_such_part"),
        ("raise ImportError('needs a GPU')", "needs a GPU"),
        ("from math import no_such_name", "no_such_name"),
    ],
)
def test_what_else_goes_wrong_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, complaint: str
) -> None:
    with pytest.raises(ImportError, match=complaint):
        load(tmp_path, monkeypatch, source)
