"""When two decoder layers of vLLM do the same: everything that what they do may depend on."""

from __future__ import annotations

import dis
import inspect
import operator
import re
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch

__all__ = ["layer_identity"]

_COMPARISONS = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def layer_identity(path: str, layer: torch.nn.Module) -> Hashable:
    """Everything that what a decoder layer does may depend on, but for its place among the others.

    Args:
        path: of the layer, whose last part is its index.
        layer: a decoder layer.
    """
    return tuple((name, type(module), *_facts(path, module)) for name, module in layer.named_modules())


def _facts(path: str, module: torch.nn.Module) -> Iterator[Hashable]:
    for name, weight in module.named_parameters(recurse=False):
        yield name, weight.dtype, tuple(map(str, weight.shape))
    index = path.rpartition(".")[2]
    # Modules of Hugging Face take their index to look into a cache of their own, which vLLM never hands them.
    looks_up = type(module).__module__.startswith("transformers.")
    for name, value in vars(module).items():
        if name.startswith("_") or re.fullmatch(r"prefix|layer_name", name):
            continue
        if re.search(r"layer|idx|index", name) and str(value) == index:
            yield name, () if looks_up else _asked_of(type(module), name, value)
        else:
            plain = isinstance(value, bool | int | float | str | list | tuple | dict | torch.dtype | None)
            yield name, repr(value).replace(path, "*") if plain else type(value)


def _asked_of(cls: type, name: str, value: Any) -> Hashable:
    """What the methods of a class can find out of an attribute: how it compares with constants, or all of it."""
    answers: list[Hashable] = []
    for method in _methods(cls):
        steps = list(dis.get_instructions(method))
        for step, constant, comparison in zip(steps, steps[1:], steps[2:], strict=False):
            if step.opname in ("LOAD_ATTR", "LOAD_METHOD") and step.argval == name:
                if (constant.opname, comparison.opname) != ("LOAD_CONST", "COMPARE_OP"):
                    return str(value)
                answers.append(_COMPARISONS[comparison.argval](value, constant.argval))
    return tuple(answers)


def _methods(cls: type) -> Iterator[Callable[..., Any]]:
    """The class's forward and the methods that it may call."""
    found, names = set[str](), ["forward"]
    while names:
        name = names.pop()
        method = inspect.unwrap(getattr(cls, name, None) or cls)
        if name not in found and inspect.isfunction(method):
            found.add(name)
            names += [each for each in method.__code__.co_names if inspect.isfunction(getattr(cls, each, None))]
            yield method
