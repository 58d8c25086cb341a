"""The model of a running engine: its layers, where they are kept, and forward passes over a batch of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch

from pytest_dooly.core.batch import Batch, SweepPoint
from pytest_dooly.engine.base import Clock, Layer
from pytest_dooly.engine.stand_ins import Place, Recalled, Timed, Untimed, in_place_of, places_of_layers
from pytest_dooly.engine.vllm.arguments import limits_of
from pytest_dooly.engine.vllm.batches import attention_metadata, batch_at, ordered, position_axes, positions_of
from pytest_dooly.engine.vllm.layers import LayerCatalogue, decoder_layers, outermost_leaves
from pytest_dooly.engine.vllm.sampling import greedy_sampling

__all__ = ["RunningModel"]

_ALONE = nullcontext()


class RunningModel:
    """A model that vLLM has loaded, its sampler among its layers.

    Attributes:
        model: out of the wrapper that replays its graphs.
        device: that it runs on.
        architecture: vLLM's name of the model class.
        limits: the engine's own bounds of a batch.
        vocab_size: tokens that it knows.
        by_path: modules of the model, and the sampler.
        leaves: the leaf layers that no other leaf layer encloses.
    """

    def __init__(self, runner: Any) -> None:
        """Looks at a model.

        Args:
            runner: vLLM's own, which keeps the model and the sampler.
        """
        self.model: torch.nn.Module = runner.get_model()
        self.device: torch.device = runner.device
        self._runner = runner
        self._config = runner.vllm_config
        self.architecture: str = self._config.model_config.architecture
        self.limits = limits_of(self._config)
        self.vocab_size = int(self._config.model_config.get_vocab_size())
        self.by_path: Mapping[str, torch.nn.Module] = {**dict(self.model.named_modules()), "sampler": runner.sampler}
        self._catalogue = LayerCatalogue(self._config.cache_config.block_size)
        self.leaves = (*outermost_leaves(self.model, self._catalogue.describe), runner.sampler)
        self._places = places_of_layers(self.model, runner)

    def modules(self) -> Iterator[tuple[str, torch.nn.Module]]:
        """Every module that a forward pass may call; see `Session.modules`."""
        yield from self.model.named_modules()
        yield from self._runner.sampler.named_modules(prefix="sampler")

    def describe(self, module: torch.nn.Module) -> Layer | None:
        """The layer that the module is a leaf for."""
        return self._catalogue.describe(module)

    def places(self, layer: torch.nn.Module) -> Sequence[Place]:
        """Where the layer is kept, more than once where it is shared."""
        return self._places[id(layer)]

    def ordered(self, batch: Batch) -> Batch:
        """The batch as the engine's runner orders it."""
        return ordered(batch, self._runner.reorder_batch_threshold)

    def batch_at(self, point: SweepPoint) -> Batch:
        """The batch that a layer works on at a sweep point."""
        return batch_at(point, self.limits.max_model_len, self._runner.reorder_batch_threshold)

    @contextmanager
    def context(self, batch: Batch) -> Iterator[None]:
        """What layers look up while a forward pass over the batch runs."""
        from vllm.config import set_current_vllm_config
        from vllm.forward_context import set_forward_context

        metadata: dict[str, Any] = {}
        slots: dict[str, torch.Tensor] = {}
        for groups in self._runner.attn_groups:
            for group in groups:
                built, slot_mapping = attention_metadata(group, batch, self.device)
                metadata |= dict.fromkeys(group.layer_names, built)
                slots |= dict.fromkeys(group.layer_names, slot_mapping)
        context = set_forward_context(metadata, self._config, num_tokens=batch.num_tokens, slot_mapping=slots)
        with set_current_vllm_config(self._config), context:
            yield

    def forward(self, batch: Batch, within: AbstractContextManager[object] = _ALONE) -> None:
        """Runs the model, the logits and the sampler once, in the batch's context; see `Session.forward`."""
        ids = torch.randint(1, self.vocab_size, (batch.num_tokens,), device=self.device)
        axes = position_axes(self._config.model_config)
        positions = positions_of(batch).to(self.device).expand(*axes, -1).contiguous()
        metadata = greedy_sampling(self.device)
        metadata.logitsprocs = self._runner.input_batch.logitsprocs
        with within:
            hidden = self.model(ids, positions)
        rows = hidden[: batch.num_reqs].clone()
        with within:
            logits = self.model.compute_logits(rows)
            self._runner.sampler(logits=logits, sampling_metadata=metadata)

    def time_layers(self, batch: Batch, clock: Clock) -> Mapping[str, Sequence[float]]:
        """Seconds of every layer within one forward pass; see `Session.time_layers`."""
        paths = {id(module): path for path, module in self.by_path.items()}
        leaves = {paths[id(leaf)]: leaf for leaf in self.leaves}
        decoders = dict(decoder_layers(self.model))
        calls: dict[str, list[tuple[Any, Any]]] = {path: [] for path in (*leaves, *decoders)}
        with self.context(batch), ExitStack() as swaps:
            for path, layer in {**leaves, **decoders}.items():
                for place in self.places(layer):
                    swaps.enter_context(in_place_of(place, Timed(layer, clock, calls[path])))
            self.forward(batch)
        # Differences come last, since a device's clock waits for the device to read one.
        latencies_s = {path: [end - start for start, end in pairs] for path, pairs in calls.items()}
        for path, layer in decoders.items():
            within = {id(module) for module in layer.modules()}
            # A layer that several decoder layers share is called as often by each.
            spent_s = sum(
                sum(latencies_s[leaf]) / len(self.places(module))
                for leaf, module in leaves.items()
                if id(module) in within
            )
            latencies_s[path] = [latency_s - spent_s for latency_s in latencies_s[path]]
        return latencies_s

    @contextmanager
    def untimed(self, layers: Sequence[torch.nn.Module], clock: Clock) -> Iterator[None]:
        """Stops the clock while one of the layers runs."""
        with ExitStack() as swaps:
            for layer in layers:
                for place in self.places(layer):
                    swaps.enter_context(in_place_of(place, Untimed(layer, clock)))
            yield

    @contextmanager
    def pass_untimed(self, clock: Clock, evict: Callable[[], object]) -> Iterator[None]:
        """Stops the clock during the engine's forward passes, whose output is recalled after `evict`."""
        # What surrounds the forward pass is timed with it, and does not depend on what it computes.
        model = Untimed(Recalled(self.model, evict), clock)
        patches = mock.patch.multiple(self._runner, model=model, sampler=Untimed(self._runner.sampler, clock))
        processors = [module for module in self.model.modules() if type(module).__name__ == "LogitsProcessor"]
        with patches, self.untimed(processors, clock):
            yield
