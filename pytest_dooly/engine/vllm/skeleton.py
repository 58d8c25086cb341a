"""A model of vLLM without weights: built on fake tensors, it shows its layers and runs on shapes alone."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from pytest_dooly.core.configuration import ModelConfiguration
from pytest_dooly.core.operation import Operation, OperationKind
from pytest_dooly.engine.base import Layer, Origins
from pytest_dooly.engine.vllm.arguments import limits_of
from pytest_dooly.engine.vllm.batches import position_axes
from pytest_dooly.engine.vllm.device import absent_gpu, device_of
from pytest_dooly.engine.vllm.identity import layer_identity
from pytest_dooly.engine.vllm.installation import installed_version
from pytest_dooly.engine.vllm.layers import LayerCatalogue, decoder_layers
from pytest_dooly.engine.vllm.parallel import COLLECTIVES, one_engine
from pytest_dooly.engine.vllm.refusals import first_line
from pytest_dooly.engine.vllm.sampling import greedy_sampling
from pytest_dooly.errors import ConfigurationError, TraceError, reason_of

__all__ = ["VllmSkeleton", "built"]


class VllmSkeleton:
    """A model built on fake tensors; see `Skeleton`."""

    def __init__(self, model: torch.nn.Module, config: Any, *, between_layers: str | None) -> None:
        """Looks at a model.

        Args:
            model: as `built`.
            config: vLLM's configuration.
            between_layers: the overhead of a decoder layer, None where it has none.
        """
        from vllm.v1.sample.sampler import Sampler

        self.architecture: str = config.model_config.architecture
        self.limits = limits_of(config)
        self.collectives = COLLECTIVES
        self._model = model
        self._config = config
        self._between_layers = between_layers
        self._sampler = Sampler()
        self._catalogue = LayerCatalogue(config.cache_config.block_size)
        _as_if_loaded(model)

    def modules(self) -> Iterator[tuple[str, torch.nn.Module]]:
        """Every module that a forward pass may call, with its path."""
        yield from self._model.named_modules()
        yield from self._sampler.named_modules(prefix="sampler")

    def describe(self, module: torch.nn.Module) -> Layer | None:
        """The layer that the module is a leaf for."""
        return self._catalogue.describe(module)

    def decoder_layers(self) -> Iterator[tuple[str, torch.nn.Module, Hashable]]:
        """Path, module and identity of every decoder layer."""
        for path, layer in decoder_layers(self._model):
            yield path, layer, layer_identity(path, layer)

    def forward(self, num_tokens: int | torch.SymInt, num_reqs: int | torch.SymInt) -> None:
        """Runs the model, the logits and the sampler once."""
        from vllm.forward_context import set_forward_context

        device = next(self._model.parameters()).device
        with ExitStack() as context:
            with one_engine(self._config):
                context.enter_context(set_forward_context(None, self._config, num_tokens=int(num_tokens)))
            shapes = (num_tokens,), (*position_axes(self._config.model_config), num_tokens)
            ids, positions = (torch.empty(shape, dtype=torch.int64, device=device) for shape in shapes)
            hidden = self._model(ids, positions)
            logits = self._model.compute_logits(hidden.new_empty((num_reqs, hidden.shape[-1])))
            self._sampler(logits=logits, sampling_metadata=greedy_sampling(device))

    def overheads(self) -> Sequence[Operation]:
        """The step around the forward pass, the admission of a request, and what a layer costs beyond its leaves."""
        gaps = [
            _overhead(self._between_layers, path, architecture=self.architecture, layer=type(layer).__name__)
            for path, layer in decoder_layers(self._model)
            if self._between_layers is not None
        ]
        return (*gaps, _overhead("step", "", swept="batch"), _overhead("admission", ""))


def built(configuration: ModelConfiguration, config: Any, origins: Origins) -> torch.nn.Module:
    """The model, to be built while `patches.without_weights` is open.

    Args:
        configuration: what is served.
        config: vLLM's own, its integers planted.
        origins: the modes under which constructors run.

    Raises:
        ConfigurationError: the attention backend that was asked for cannot be had.
        TraceError: the model cannot be built without weights.
    """
    from vllm.model_executor.model_loader.utils import initialize_model

    try:
        # Fake tensors of a GPU that is not here stay on the CPU.
        with origins.building(), torch.device("cpu" if absent_gpu(configuration) else device_of(configuration)):
            model: torch.nn.Module = initialize_model(vllm_config=config)
    except Exception as error:
        if configuration.options.attention_backend and "backend" in str(error).lower():
            raise _wrong_backend(configuration, first_line(error)) from error
        options = configuration.options
        shared = isinstance(error, AssertionError) and options.num_ranks > 1
        hint = f"; tp times dp is {options.num_ranks}, which sizes must divide by: name others" if shared else ""
        raise TraceError(
            f"cannot build {config.model_config.architecture} of {configuration.name} without weights: "
            + reason_of(error)
            + hint
        ) from error
    _check_backend(configuration, model)
    return model


def _check_backend(configuration: ModelConfiguration, model: torch.nn.Module) -> None:
    """A platform without the attention backend that was asked for may take its own and say nothing."""
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

    asked = configuration.options.attention_backend
    layers = [module for module in model.modules() if isinstance(module, AttentionLayerBase)]
    taken = {layer.attn_backend.get_name() for layer in layers if hasattr(layer, "attn_backend")}
    if asked and taken and asked.upper() not in taken:
        raise _wrong_backend(configuration, f"{device_of(configuration)} runs {' and '.join(sorted(taken))} instead")


def _wrong_backend(configuration: ModelConfiguration, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"vLLM {installed_version()} cannot serve {configuration.name} with attention backend "
        f"{configuration.options.attention_backend}: {reason}"
    )


def _as_if_loaded(model: torch.nn.Module) -> None:
    """Gives every module what loading would have set, and operators that fake tensors can go through."""
    from vllm.model_executor.layers.fused_moe.runner import moe_runner
    from vllm.model_executor.layers.fused_moe.runner.moe_runner_interface import MoERunnerInterface
    from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod

    for module in model.modules():
        if getattr(module, "replicated_embed", False):
            module.replicated_embed = False  # one Triton kernel for the embedding and a norm: traced as the two layers
        if isinstance(module, MoERunnerInterface):
            # The engine's own shape functions of its two operators, which the CPU path calls unregistered.
            shared = module._shared_experts is not None
            # Padding for a kernel of some sizes is the kernel's own.
            module._maybe_pad_hidden_states = lambda _, hidden_states: (hidden_states, None, None)
            module._forward_entry = moe_runner._moe_forward_shared_fake if shared else moe_runner._moe_forward_fake
        # Set by process_weights_after_loading, which packs real weights.
        if isinstance(getattr(module, "weight", None), torch.Tensor) and not hasattr(module, "cpu_linear"):
            module.cpu_linear = torch.nn.functional.linear
        if isinstance(module, LinearBase) and not isinstance(module.quant_method, UnquantizedLinearMethod):
            # Its kernel takes weights as they are after loading, scaled and packed; only the shape is known before.
            module.quant_method.apply = _shape_of_linear
            module.requires_unquantized_input = True  # no kernel that quantises its input on the way


def _shape_of_linear(layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """What a linear returns: as many columns as this rank holds."""
    columns = getattr(layer, "output_size_per_partition", layer.output_size)
    return torch.empty((*x.shape[:-1], columns), dtype=x.dtype, device=x.device)


def _overhead(name: str, path: str, **attributes: str) -> Operation:
    return Operation(OperationKind.OVERHEAD, name, (), (), tuple(sorted(attributes.items())), path)
