"""Follows a forward pass: which leaf layers it calls, and which torch operations no leaf layer encloses.

The tracer records what it sees on fake tensors, an engine session copies the arguments of real ones; both name a place
in the model alike, so that what was traced is found again where it is to be timed.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Self
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_dooly.engine.base import Layer

__all__ = ["ForwardObserver"]

_NO_WORK = frozenset({"aten::detach", "aten::empty", "aten::empty_like", "aten::new_empty", "prim::device"})


class ForwardObserver(TorchDispatchMode):
    """Calls back for every leaf layer and for every operation outside of them; a dispatch mode and a context.

    Attributes:
        ops_inside: torch operations that leaf layers enclosed.
        ops_outside: torch operations that did work outside of every leaf layer.
    """

    def __init__(
        self,
        modules: Iterator[tuple[str, torch.nn.Module]],
        describe: Callable[[torch.nn.Module], Layer | None],
        *,
        on_layer: Callable[[str, Layer, Mapping[str, Any]], None],
        on_operation: Callable[[str, Any, tuple[Any, ...], Mapping[str, Any]], None],
        collectives: Mapping[str, str] | None = None,
        symbolic: bool = True,
    ) -> None:
        """Prepares to follow.

        Args:
            modules: every module that may be called, with its path.
            describe: the layer that a module is a leaf for, or None.
            on_layer: called with path, layer and arguments by name, before an outermost leaf layer runs.
            on_operation: called with place, operator and arguments, before an operation outside of leaf layers runs,
                or a collective anywhere.
            collectives: operators that communicate, by schema name; what they are called.
            symbolic: the pass runs on fake tensors, so layers have their stand-ins.
        """
        super().__init__()
        self.ops_inside = 0
        self.ops_outside = 0
        self._modules = list(modules)
        self._describe = describe
        self._on_layer = on_layer
        self._on_operation = on_operation
        self._collectives = collectives or {}
        self._symbolic = symbolic
        self._hooks = ExitStack()
        self._entered: list[tuple[str, Layer | None]] = []
        self._seen: Counter[str] = Counter()

    def __enter__(self) -> Self:
        for path, module in self._modules:
            self._follow(path, module, self._describe(module))
        super().__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        self._hooks.close()

    def where(self) -> str:
        """The place that the forward pass has come to, for an error."""
        path, layer = self._entered[-1] if self._entered else ("the forward pass", None)
        return f"layer {path} ({layer.name})" if layer else path or "the model"

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Runs the operation; calls back where it does work outside of every leaf layer."""
        if self._in_layer() and func._schema.name not in self._collectives:
            self.ops_inside += 1
        elif _does_work(func):
            self.ops_outside += 1
            path = self._entered[-1][0] if self._entered else ""
            place = f"{path}/{func._schema.name.replace('::', '.')}"
            self._seen[place] += 1
            self._on_operation(f"{place}#{self._seen[place]}", func, args, kwargs or {})
        return func(*args, **(kwargs or {}))

    def _follow(self, path: str, module: torch.nn.Module, layer: Layer | None) -> None:
        if layer is None:
            enter = module.register_forward_pre_hook(lambda *_: self._entered.append((path, None)))
            leave = module.register_forward_hook(lambda *_: self._leave())
            self._hooks.callback(enter.remove)
            self._hooks.callback(leave.remove)
            return
        signature = inspect.signature(layer.called_as or module.forward)
        forward = layer.stand_in if self._symbolic and layer.stand_in is not None else module.forward

        def followed(*args: Any, **kwargs: Any) -> Any:
            if not self._in_layer():
                self._on_layer(path, layer, signature.bind(*args, **kwargs).arguments)
            self._entered.append((path, layer))
            output = forward(*args, **kwargs)
            self._leave()
            return output

        # In place of a hook, since some models call a layer's forward past its hooks.
        self._hooks.enter_context(mock.patch.object(module, "forward", followed))

    def _leave(self) -> None:
        self._entered.pop()

    def _in_layer(self) -> bool:
        return any(layer is not None for _, layer in self._entered)


def _does_work(func: Any) -> bool:
    return not (func.is_view or func._schema.name in _NO_WORK)
