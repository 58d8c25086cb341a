"""What is put in place of a layer, and where: to stop the clock for it, to time it, to answer in its stead."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch.utils._pytree import tree_leaves, tree_map

from pytest_dooly.engine.base import Clock, ignore

__all__ = ["Place", "Recalled", "StandIn", "Timed", "Untimed", "in_place_of", "places_of_layers"]


class StandIn:
    """What is put in place of a layer: it is called in its stead, and has its attributes otherwise."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


class Untimed(StandIn):
    """A layer that stops the clock while it runs.

    A forward hook would do the same, but costs microseconds that the clock would count.
    """

    def __init__(self, layer: Any, clock: Clock) -> None:
        super().__init__(layer)
        self._clock = clock

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer, its time left out."""
        self._clock.pause()
        try:
            return self._layer(*args, **kwargs)
        finally:
            self._clock.resume()


class Timed(StandIn):
    """A layer that notes when its calls begin and end."""

    def __init__(self, layer: Any, clock: Clock, calls: list[tuple[Any, Any]]) -> None:
        super().__init__(layer)
        self._clock = clock
        self._calls = calls

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer and keeps its beginning and its end."""
        start = self._clock.now()
        output = self._layer(*args, **kwargs)
        self._calls.append((start, self._clock.now()))
        return output

    forward = __call__


class Recalled(StandIn):
    """A layer that computes once for each shape of its input, then answers from memory."""

    def __init__(self, layer: Any, before: Callable[[], object] = ignore) -> None:
        super().__init__(layer)
        self._before = before
        self._outputs: dict[tuple[torch.Size, ...], Any] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the layer once returned for such shapes, copied, after `before`."""
        shapes = tuple(leaf.shape for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor))
        if shapes not in self._outputs:
            self._outputs[shapes] = self._layer(*args, **kwargs)
        else:
            self._before()
        return tree_map(_clone, self._outputs[shapes])  # what follows may write into it


@dataclass(frozen=True)
class Place:
    """Where an object keeps a layer.

    Attributes:
        keeper: attributes or submodules by name.
        name: of the layer among them.
        layer: what is there.
    """

    keeper: dict[str, Any]
    name: str
    layer: Any


def places_of_layers(model: torch.nn.Module, runner: Any) -> Mapping[int, Sequence[Place]]:
    """Where each layer is kept, by its id: more than once where it is shared, like rotary embeddings."""
    places = {id(runner.sampler): [Place(vars(runner), "sampler", runner.sampler)]}
    for parent in model.modules():
        for name, child in parent._modules.items():
            places.setdefault(id(child), []).append(Place(parent._modules, name, child))
    return places


def in_place_of(place: Place, stand_in: Any) -> AbstractContextManager[Any]:
    """The stand-in where the layer is kept, for as long as the context lasts."""
    return mock.patch.dict(place.keeper, {place.name: stand_in})


def _clone(value: Any) -> Any:
    # Keeps the strides: a query that is a slice of qkv is read with them.
    if not isinstance(value, torch.Tensor):
        return value
    storage = value.untyped_storage().clone()
    return torch.empty(0, dtype=value.dtype, device=value.device).set_(
        storage, value.storage_offset(), value.size(), value.stride()
    )
