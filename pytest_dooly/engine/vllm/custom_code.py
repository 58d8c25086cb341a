"""Configurations that name a class of their own code: read as plain data, since nothing of a checkpoint is run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

__all__ = ["read_as_data"]


@contextmanager
def read_as_data(document: Mapping[str, Any]) -> Iterator[None]:
    """While open, vLLM reads a config.json of this type without the class that its `auto_map` names.

    Fields that only that class would have set are missing then; vLLM complains of those that it needs.
    """
    from transformers import CONFIG_MAPPING
    from vllm.transformers_utils import config

    kind = document.get("model_type")
    known = kind is None or kind in CONFIG_MAPPING or kind in config._CONFIG_REGISTRY
    custom = not known and "AutoConfig" in document.get("auto_map", ())
    with mock.patch.dict(config._CONFIG_REGISTRY, {kind: _plain_class()} if custom else {}):
        yield


def _plain_class() -> type:
    from transformers import PreTrainedConfig

    class Plain(PreTrainedConfig):
        def __init__(self, **fields: Any) -> None:
            super().__init__(**{name: _part(name, value) for name, value in fields.items()})

    return Plain


def _part(name: str, value: Any) -> Any:
    """The value, as a configuration of the class that its `model_type` means where it is a part."""
    from transformers import CONFIG_MAPPING, PreTrainedConfig

    if not (isinstance(value, dict) and name.endswith("_config") and "model_type" in value):
        return value
    kind = value["model_type"]
    found = CONFIG_MAPPING[kind] if kind in CONFIG_MAPPING else PreTrainedConfig  # noqa: SIM401 - its `get` is blind
    # A tower may be named as the whole model that it was taken from.
    return found.sub_configs.get(name, found)(**value)
