"""How vLLM finds the class of a model: in this process, past what only images need and without a log."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any
from unittest import mock

__all__ = ["AbsentModule", "StandIns", "classes_found_here"]


@contextmanager
def classes_found_here() -> Iterator[None]:
    """While open, vLLM loads a model's class in this process and raises what goes wrong.

    By itself it looks at a class it has not met in a process of its own, which takes as long as all the rest, and
    writes what goes wrong to its log. Files of multimodal models import packages that only prepare images and sound:
    those that are not installed are stood in for.
    """
    from vllm.config import ModelConfig
    from vllm.model_executor.models import registry
    from vllm.multimodal.registry import MultiModalRegistry

    lazy = registry._LazyRegisteredModel
    # Asked for what `language_model_only` says, some processors want a tokenizer; vLLM 0.26 has it in the registry.
    asks = ModelConfig, "_supports_multimodal_inputs"
    if not hasattr(*asks):
        asks = MultiModalRegistry, "supports_multimodal_inputs"
    with (
        mock.patch.object(*asks, return_value=False),
        mock.patch.object(registry, "_run_in_subprocess", lambda inspect: inspect()),
        mock.patch.object(registry, "_try_inspect_model_cls", lambda _, model: model.inspect_model_cls()),
        mock.patch.object(registry, "_try_load_model_cls", lambda _, model: model.load_model_cls()),
        mock.patch.object(lazy, "load_model_cls", _past_absent_packages(lazy.load_model_cls)),
    ):
        yield


def _past_absent_packages(load: Callable[[Any], type]) -> Callable[[Any], type]:
    """Loads a class, tried again with a stand-in for each package that its imports turn out to lack."""

    def loaded(model: Any) -> type:
        with ExitStack() as stand_ins:
            known = set[str]()
            while True:
                try:
                    return load(model)
                except ImportError as error:
                    package = _lacking(error)
                    if package is None or package in known:
                        raise
                    known.add(package)
                    stand_ins.enter_context(_stood_in_for(package))

    return loaded


def _lacking(error: BaseException | None) -> str | None:
    """The package that an import failed for, None where it failed for another reason."""
    while error is not None:
        package = (getattr(error, "name", None) or "").partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and package and importlib.util.find_spec(package) is None:
            return package
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def _stood_in_for(package: str) -> Iterator[None]:
    from transformers.utils import import_utils

    # Asked now, it remembers that the package is not here.
    getattr(import_utils, f"is_{package}_available", bool)()
    finder = StandIns(package)
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            del sys.modules[name]


class StandIns(MetaPathFinder, Loader):
    """Finds any module of a package that is not here."""

    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A spec for modules of the package."""
        return ModuleSpec(fullname, self, is_package=True) if fullname.partition(".")[0] == self._package else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """A module that has every name."""
        return AbsentModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to execute."""


class AbsentModule(ModuleType):
    """A module that is not here, with every name."""

    __file__ = None

    def __getattr__(self, name: str) -> type:
        return _absent(self.__name__, name)


class _Absent(type):
    """A class in place of whatever a name of an absent package stands for: it can be named and derived from."""

    def __getattr__(cls, name: str) -> type:
        return _absent(f"{cls.__module__}.{cls.__name__}", name)

    def __call__(cls, *_: object, **__: object) -> Any:
        package = cls.__module__.partition(".")[0]
        raise ModuleNotFoundError(f"{package} is not installed", name=package)


def _absent(place: str, name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(f"{place} is not installed and has no {name}")
    return _Absent(name, (), {"__module__": place})
