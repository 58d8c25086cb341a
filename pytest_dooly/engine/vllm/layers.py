"""How vLLM's leaf layers are described: kind, name and the attributes that change the kernel. Shared by versions."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from pytest_dooly.core.operation import OperationKind
from pytest_dooly.engine.base import Attribute, Layer, RequestSymbols
from pytest_dooly.engine.vllm.absent_gpu import described
from pytest_dooly.engine.vllm.arguments import MOE_PRECISION
from pytest_dooly.engine.vllm.quantisation import Weights, experts_kernel, method_of, packed, precision_of

__all__ = ["LayerCatalogue", "decoder_layers", "outermost_leaves"]

_KIND_OF_MODULE = (
    ("vllm.model_executor.layers.activation", OperationKind.ACTIVATION),
    ("vllm.model_executor.layers.layernorm", OperationKind.NORM),
    ("vllm.model_executor.layers.rotary_embedding", OperationKind.ROTARY),
)

_OUTPUTS = frozenset({"output", "output_shape"})
"""Arguments that a layer only writes to."""

_NO_FACT = re.compile(r"prefix|layer_name|layer_idx|layer_id|tp_rank|tp_size|tp_world_size")


class LayerCatalogue:
    """Describes modules of vLLM's model zoo.

    A leaf is a layer class that vLLM itself registers as one unit (`CustomOp`, a linear, an embedding, attention, ...)
    or any module without children.
    """

    def __init__(self, block_size: int) -> None:
        from vllm.model_executor.custom_op import CustomOp
        from vllm.model_executor.layers.attention import Attention, MLAAttention
        from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
        from vllm.model_executor.layers.fused_moe.runner.moe_runner_interface import MoERunnerInterface
        from vllm.model_executor.layers.linear import LinearBase
        from vllm.model_executor.layers.logits_processor import LogitsProcessor
        from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
        from vllm.v1.sample.sampler import Sampler

        self._block_size = block_size
        self._describers: tuple[tuple[type, Callable[[Any], Layer]], ...] = (
            (Attention, self._attention),
            (MLAAttention, self._latent),
            (AttentionLayerBase, self._mixer),
            (MoERunnerInterface, _experts),
            (LinearBase, _linear),
            (VocabParallelEmbedding, _embedding),
            (LogitsProcessor, _logits),
            (Sampler, _sampler),
            (CustomOp, self._operator),
        )

    def describe(self, module: torch.nn.Module) -> Layer | None:
        """The layer that the module is a leaf for, or None for one that only composes others."""
        for cls, describer in self._describers:
            if isinstance(module, cls):
                return describer(module)
        if any(True for _ in module.children()):
            return None
        return _plain(module)

    def _attention(self, layer: Any) -> Layer:
        implementation = layer.impl
        attributes: dict[str, str | int | float | bool | None] = {
            "backend": layer.attn_backend.get_name(),
            "block_size": int(self._block_size),
            "head_size": int(layer.head_size),
            "kv_cache_dtype": layer.kv_cache_dtype,
            "num_heads": int(layer.num_heads),
            "num_kv_heads": int(layer.num_kv_heads),
            "sinks": bool(getattr(layer, "has_sink", False)) or None,
            "sliding_window": int(layer.sliding_window) if layer.sliding_window else None,
            "attention_chunk_size": int(getattr(layer, "attention_chunk_size", None) or 0) or None,
            "soft_cap": float(getattr(implementation, "logits_soft_cap", None) or 0) or None,
            "shares_kv": bool(getattr(layer, "kv_sharing_target_layer_name", None)) or None,
        }

        def cache(request: RequestSymbols) -> Mapping[str, tuple[torch.dtype, Sequence[Any]]]:
            seq_len = request.context_len + request.query_len
            stored = (seq_len, layer.num_kv_heads, layer.head_size)
            return {
                "keys": (_cache_dtype(layer), stored),
                "values": (_cache_dtype(layer), stored),
                "block_table": (torch.int32, ((seq_len + self._block_size - 1) // self._block_size,)),
            }

        return Layer(
            OperationKind.ATTENTION,
            "attention",
            _pairs(attributes),
            ignored=frozenset({"output_shape"}),
            implied=cache,
        )

    def _latent(self, layer: Any) -> Layer:
        whole = "hidden_states" in inspect.signature(layer.forward).parameters and hasattr(layer, "o_proj")
        return self._latent_layer(layer) if whole else self._latent_attention(layer)

    def _latent_layer(self, layer: Any) -> Layer:
        """Latent attention from hidden states to hidden states: projections, norms, rotary and indexer within one."""
        attention = self._latent_attention(layer)
        parameters, weights = _within(layer)
        attributes = dict(attention.attributes)
        attributes |= {"method": method_of(layer.q_b_proj), "hidden_size": int(layer.o_proj.output_size)}
        attributes["q_lora_rank"] = int(layer.q_lora_rank)
        precision = precision_of(layer.q_b_proj)
        if precision is not None:
            attributes["precision"] = precision
        indexer = getattr(layer, "indexer", None)
        if indexer is not None:
            attributes |= {
                "index_heads": int(indexer.n_head),
                "index_head_size": int(indexer.head_dim),
                "index_top_k": int(indexer.topk_tokens),
            }

        def cache(request: RequestSymbols) -> Mapping[str, tuple[torch.dtype, Sequence[Any]]]:
            seq_len = request.context_len + request.query_len
            cached = dict(attention.implied(request)) if attention.implied is not None else {}
            if indexer is not None:
                cached["index_keys"] = indexer.k_cache.dtype, (seq_len, indexer.k_cache.head_dim)
            return {**cached, **weights}

        def output(positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
            return torch.empty_like(hidden_states)

        return Layer(
            OperationKind.ATTENTION,
            "mla_layer",
            _pairs(attributes),
            parameters,
            implied=cache,
            stand_in=output,
        )

    def _latent_attention(self, layer: Any) -> Layer:
        """Multi-head latent attention: one compressed key for all heads, expanded by `kv_b_proj` or absorbed."""
        attributes: dict[str, str | int | float | bool | None] = {
            "backend": layer.attn_backend.get_name(),
            "block_size": int(self._block_size),
            "kv_cache_dtype": layer.kv_cache_dtype,
            "sliding_window": int(layer.sliding_window) if getattr(layer, "sliding_window", None) else None,
            "sparse": bool(getattr(layer, "use_sparse", False)) or None,
        }
        sizes = ("head_size", "num_heads", "num_kv_heads", "kv_lora_rank", "v_head_dim")
        attributes |= {name: int(getattr(layer, name)) for name in (*sizes, "qk_nope_head_dim", "qk_rope_head_dim")}

        parameters, weights = _within(layer)

        def cache(request: RequestSymbols) -> Mapping[str, tuple[torch.dtype, Sequence[Any]]]:
            seq_len = request.context_len + request.query_len
            return {
                "latents": (_cache_dtype(layer), (seq_len, layer.head_size)),
                "block_table": (torch.int32, ((seq_len + self._block_size - 1) // self._block_size,)),
                **weights,
            }

        return Layer(
            OperationKind.ATTENTION,
            "mla_attention",
            _pairs(attributes),
            parameters,
            ignored=frozenset({"output_shape"}),
            implied=cache,
        )

    def _mixer(self, layer: Any) -> Layer:
        """A layer whose state is no keys and values: state space, linear attention, short convolution."""

        def state(_: RequestSymbols) -> Mapping[str, tuple[torch.dtype, Sequence[Any]]]:
            shapes = zip(layer.get_state_dtype(), layer.get_state_shape(), strict=False)
            return {f"state{i}": (dtype, shape) for i, (dtype, shape) in enumerate(shapes)}

        known = hasattr(layer, "get_state_shape")
        name = getattr(layer, "name", None) or _snake(type(layer).__name__)
        parameters = dict(layer.named_parameters())
        return Layer(
            OperationKind.MIXER, name, _facts_of(layer), parameters, ignored=_OUTPUTS, implied=state if known else None
        )

    def _operator(self, layer: Any) -> Layer:
        cls = _defining_class(layer)
        name = getattr(cls, "name", None) or _snake(cls.__name__)
        kind = next((kind for path, kind in _KIND_OF_MODULE if cls.__module__.startswith(path)), OperationKind.OTHER)
        attributes: dict[str, str | int | float | bool | None] = {"dispatch": layer._forward_method.__name__}
        parameters = dict(layer.named_parameters(recurse=False))
        if kind is OperationKind.ROTARY:
            attributes |= {key: int(getattr(layer, key)) for key in ("head_size", "rotary_dim") if hasattr(layer, key)}
            attributes["neox"] = bool(getattr(layer, "is_neox_style", True))
        # A kernel that is not here: what vLLM does in its place in plain PyTorch has the same shapes.
        absent = described() and layer._forward_method.__name__ == "forward_cuda"
        stand_in = layer.forward_native if absent else None
        return Layer(kind, name, _pairs(attributes), parameters, called_as=_named_forward(layer), stand_in=stand_in)


def outermost_leaves(
    model: torch.nn.Module, describe: Callable[[torch.nn.Module], Layer | None]
) -> list[torch.nn.Module]:
    """The leaf layers that no other leaf layer encloses."""
    if describe(model) is not None:
        return [model]
    return [leaf for child in model.children() for leaf in outermost_leaves(child, describe)]


def decoder_layers(model: torch.nn.Module) -> list[tuple[str, torch.nn.Module]]:
    """Path and module of every decoder layer: the members of the model's `layers` lists."""
    return [
        (f"{path}.{name}" if path else name, layer)
        for path, group in model.named_modules()
        if isinstance(group, torch.nn.ModuleList) and path.rpartition(".")[2] == "layers"
        for name, layer in group.named_children()
    ]


def _experts(layer: Any) -> Layer:
    """A mixture of experts, whole: router, gate and shared experts run within the engine's one operator."""
    routed = layer.routed_experts
    config = routed.moe_config
    attributes: dict[str, str | int | float | bool | None] = {
        "method": method_of(routed),
        "backend": experts_kernel(routed),
        "precision": _told_precision() or precision_of(routed),
        "num_experts": int(config.num_experts),
        "num_local_experts": int(config.num_local_experts),
        "top_k": int(config.experts_per_token),
        "activation": getattr(routed.activation, "value", str(routed.activation)),
        "renormalize": bool(routed.renormalize),
        "scoring": routed.scoring_func,
        "expert_groups": int(routed.num_expert_group) if routed.use_grouped_topk else None,
        "groups_chosen": int(routed.topk_group) if routed.use_grouped_topk else None,
        "weighted_input": bool(routed.apply_router_weight_on_input) or None,
    }
    parallel = config.moe_parallel_config
    if int(parallel.dp_size) > 1:
        # The engine's operator takes in what all engines have, and gives back to each its own.
        attributes["data_parallel"] = int(parallel.dp_size)
        attributes["sequence_parallel"] = int(parallel.sp_size) if int(parallel.sp_size) > 1 else None

    inner, hidden = config.intermediate_size_per_partition, config.hidden_dim
    wide = (2 if config.is_act_and_mul else 1) * inner
    shapes = {"w13_weight": (wide, hidden), "w2_weight": (hidden, inner)}
    found = [packed(routed, role, (config.num_local_experts, *shape)) for role, shape in shapes.items()]
    names = frozenset().union(*(names for names, _ in found))
    parameters, others = _within(layer)
    parameters = {name: value for name, value in parameters.items() if name.rpartition(".")[2] not in names}

    def share(request: RequestSymbols) -> Mapping[str, tuple[torch.dtype, Sequence[Any]]]:
        weights = {role: weight for _, implied in found for role, weight in implied.items()}
        return {"expert_input": (config.in_dtype, (request.tokens_per_expert, hidden)), **weights, **others}

    return Layer(OperationKind.MOE, "fused_moe", _pairs(attributes), parameters, implied=share)


def _told_precision() -> str | None:
    """What experts are computed from, where the options say so; a layer that runs is without its configuration."""
    from vllm.config import get_current_vllm_config_or_none

    config = get_current_vllm_config_or_none()
    told = None if config is None else config.additional_config
    return told.get(MOE_PRECISION) if isinstance(told, dict) else None


def _cache_dtype(layer: Any) -> torch.dtype:
    from vllm.config import get_current_vllm_config
    from vllm.utils.torch_utils import kv_cache_dtype_str_to_dtype

    return kv_cache_dtype_str_to_dtype(layer.kv_cache_dtype, get_current_vllm_config().model_config)


def _facts_of(layer: torch.nn.Module) -> tuple[Attribute, ...]:
    """Every plain attribute of a layer that does not name it or its rank."""
    known = {
        name: int(value) if isinstance(value, int) and not isinstance(value, bool) else value
        for name, value in vars(layer).items()
        if isinstance(value, bool | int | str) and not name.startswith("_") and not _NO_FACT.search(name)
    }
    return _pairs({name: value for name, value in known.items() if name != "training"})


def _linear(layer: Any) -> Layer:
    attributes = {"method": method_of(layer), "precision": precision_of(layer)}
    names, implied = packed(layer, "weight", _linear_shape(layer))
    parameters = {name: value for name, value in _weights(layer).items() if name not in names}
    return Layer(OperationKind.LINEAR, "linear", _pairs(attributes), parameters, implied=lambda _: implied)


def _linear_shape(layer: Any) -> list[Any]:
    """Rows and columns of a rank's weight, with their origins, however it is packed."""
    return [getattr(layer, f"{size}_per_partition", getattr(layer, size)) for size in ("output_size", "input_size")]


def _within(layer: torch.nn.Module) -> tuple[dict[str, torch.nn.Parameter], Weights]:
    """Parameters of a layer that encloses others by path, and what stands for those of its linears that are packed."""
    from vllm.model_executor.layers.linear import LinearBase

    replaced: set[str] = set()
    weights: dict[str, tuple[torch.dtype, Sequence[Any]]] = {}
    for path, linear in layer.named_modules():
        if isinstance(linear, LinearBase):
            names, implied = packed(linear, "weight", _linear_shape(linear))
            replaced |= {f"{path}.{name}" for name in names}
            weights |= {f"{path}.{role}": weight for role, weight in implied.items()}
    return {name: value for name, value in layer.named_parameters() if name not in replaced}, weights


def _embedding(layer: Any) -> Layer:
    return Layer(OperationKind.EMBEDDING, "embedding", (), _weights(layer))


def _logits(layer: Any) -> Layer:
    attributes = {"scaled": layer.scale != 1.0 or None, "soft_cap": layer.soft_cap}
    return Layer(OperationKind.LOGITS, "logits", _pairs(attributes))


def _sampler(layer: Any) -> Layer:
    attributes = (("logprobs", False), ("sampling", "greedy"))
    # Nothing follows the sampler, and its CPU argmax has no fake kernel in vLLM 0.32.
    return Layer(
        OperationKind.SAMPLER,
        "sampler",
        attributes,
        ignored=frozenset({"sampling_metadata"}),
        stand_in=lambda logits, sampling_metadata: None,
    )


def _plain(layer: torch.nn.Module) -> Layer:
    name = _snake(type(layer).__name__)
    kind = OperationKind.NORM if "norm" in name else OperationKind.OTHER
    return Layer(kind, name, (), dict(layer.named_parameters(recurse=False)))


def _weights(layer: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value for name, value in layer.named_parameters(recurse=False) if value.dim() > 0}


def _defining_class(layer: Any) -> type:
    """The class that a CustomOp's kernel comes from: a subclass that only computes another table has the same one."""
    classes = [cls for cls in type(layer).__mro__ if any(name.startswith("forward_") for name in vars(cls))]
    return classes[0] if classes else type(layer)


def _named_forward(layer: Any) -> Callable[..., Any]:
    """The first of the layer's forwards that names its arguments: dispatching ones take `*args`."""
    forwards: list[Callable[..., Any]] = [layer._forward_method, layer.forward_native]
    for forward in forwards:
        kinds = {parameter.kind for parameter in inspect.signature(forward).parameters.values()}
        if inspect.Parameter.VAR_POSITIONAL not in kinds:
            return forward
    return forwards[0]


def _pairs(attributes: Mapping[str, str | int | float | bool | None]) -> tuple[Attribute, ...]:
    return tuple((name, value) for name, value in sorted(attributes.items()) if value is not None)


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
