"""A layer alone, within forward passes that halt before each of its instances."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from pytest_dooly.core.batch import Batch, SweepPoint
from pytest_dooly.core.signature import ModelOperation
from pytest_dooly.engine.base import IsolatedCall, ignore
from pytest_dooly.engine.forward import ForwardObserver
from pytest_dooly.engine.halting import Halted, HaltingPass
from pytest_dooly.engine.stand_ins import Place, Recalled, in_place_of
from pytest_dooly.engine.vllm.last_level_cache import reads_a_matrix
from pytest_dooly.engine.vllm.layers import decoder_layers
from pytest_dooly.engine.vllm.routing import routed_as
from pytest_dooly.engine.vllm.running import RunningModel

__all__ = ["isolated_layer"]

# Tokens up to which a whole pass is quick enough to be run for the one call of an operation in it.
_QUICK_TOKENS = 64


@contextmanager
def isolated_layer(
    running: RunningModel, operation: ModelOperation, point: SweepPoint, evict: Callable[[], None]
) -> Iterator[IsolatedCall]:
    """A layer within forward passes over one batch, which halt before each of its instances.

    Args:
        running: the model that holds it.
        operation: a layer, or an operation outside of layers.
        point: says the batch.
        evict: empties the last-level cache.

    Raises:
        EngineError: no pass calls the operation, or the point's routing cannot be had.
    """
    batch = running.batch_at(point)
    halting = HaltingPass(partial(running.forward, batch), operation.signature.label)
    routing = routed_as(running.model, point) if point.routing is not None else nullcontext()
    halts = _halts(running, operation, batch, halting)
    with routing, running.context(batch), closing(halting), halts as shortened:
        # A weight would stay in the cache from pass to pass where those of other layers do not evict it.
        evict_weights = evict if shortened and reads_a_matrix(operation.signature) else ignore

        def before() -> None:
            evict_weights()
            halting.proceed()

        yield IsolatedCall(halting.call, before, _again(halting, evict))


def _again(halting: HaltingPass, evict: Callable[[], None]) -> Callable[[], None]:
    """Evicts everything and writes the inputs of a call once more, for one that is made over and over."""
    written: list[torch.Tensor] = []

    def again() -> None:
        inputs = [value for value in tree_leaves(halting.arguments) if isinstance(value, torch.Tensor)]
        written.extend(map(torch.clone, inputs[len(written) :]))
        evict()
        for tensor, value in zip(inputs, written, strict=True):
            tensor.copy_(value)

    return again


def _halts(
    running: RunningModel, operation: ModelOperation, batch: Batch, halting: HaltingPass
) -> AbstractContextManager[bool]:
    """Lets the pass halt before the operation; yields whether the pass is shortened to get to it sooner."""
    layers = [running.by_path[path] for path in operation.layers if path in running.by_path]
    if not layers:
        return _before_operations(running, operation, halting)
    places = [place for layer in layers for place in running.places(layer)]
    return _before_layers(running, places, halting, shortened=len(places) == 1 and batch.num_tokens > _QUICK_TOKENS)


@contextmanager
def _before_operations(running: RunningModel, operation: ModelOperation, halting: HaltingPass) -> Iterator[bool]:
    wanted = {path for path in operation.layers if "/" in path}

    def halt(place: str, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
        if place in wanted:
            halting.halt(partial(function, *args, **kwargs))

    with ForwardObserver(running.modules(), running.describe, on_layer=ignore, on_operation=halt, symbolic=False):
        yield False


@contextmanager
def _before_layers(
    running: RunningModel, places: list[Place], halting: HaltingPass, *, shortened: bool
) -> Iterator[bool]:
    with ExitStack() as swaps:
        if shortened:
            for place, layer in _decoder_layers_without(running, places[0]):
                swaps.enter_context(in_place_of(place, Recalled(layer)))
        for place in places:
            swaps.enter_context(in_place_of(place, Halted(place.layer, halting)))
        yield shortened


def _decoder_layers_without(running: RunningModel, place: Place) -> Iterator[tuple[Place, torch.nn.Module]]:
    """Decoder layers that need not be computed to reach a place that only one of them leads to."""
    layers = [layer for _, layer in decoder_layers(running.model)]
    for layer in layers[:-1]:
        if all(module is not place.layer for module in layer.modules()):
            yield running.places(layer)[0], layer
