"""Operation -> canonical identity: two models share a sweep when the numbers agree, whatever the names."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from pytest_dooly.core.batch import Limits
from pytest_dooly.core.configuration import ModelConfiguration
from pytest_dooly.core.document import Document
from pytest_dooly.core.environment import Environment, content_hash
from pytest_dooly.core.operation import Operation, OperationKind, TensorSpec, Trace, evaluate, is_request_dependent

__all__ = [
    "FLOATS",
    "ModelOperation",
    "ServedModel",
    "Signature",
    "SweptSymbol",
    "TensorIdentity",
    "attending_by",
    "data_parallel_size",
    "dtype_bytes",
    "engines_of",
    "experts_of",
    "fixed_size",
    "gathering_ranks",
    "is_weight_matrix",
    "model_operations",
    "portable",
    "served_key",
    "signature_of",
]

SweptSymbol = Literal["num_tokens", "num_reqs", "batch", "routing"]
"""What a signature is swept over; names the field of SweepPoint that is set (`routing`: with num_tokens)."""

Attribute = tuple[str, str | int | float | bool]
TensorIdentity = tuple[str, str, tuple[int | str, ...]]
"""Role, dtype and shape; configuration dimensions are numbers, request-dependent ones text."""

_DETAILS = {
    "method": "{}",
    "precision": "{}",
    "sliding_window": "w{}",
    "attention_chunk_size": "c{}",
    "soft_cap": "cap{:g}",
    "kv_cache_dtype": "kv_{}",
    "architecture": "{}",
    "ranks": "x{}",
    "data_parallel": "dp{}",
}
"""Attributes that a label shows, and how."""

_USUAL = frozenset({"unquantized", "kv_auto"})
"""Parts that a label leaves out."""

_TRACE_FORMAT = 6
"""Raised when the tracer records a model differently, so that a trace in the DB is not taken for a new one."""

FLOATS = frozenset({"bf16", "fp16", "fp32"})
"""Dtypes of weights that are not quantised."""

_STATEFUL = frozenset({OperationKind.ATTENTION, OperationKind.MIXER})


@dataclass(frozen=True)
class Signature(Document):
    """Canonical identity of an operation.

    Attributes:
        kind: what it is.
        name: the field's word for the kernel.
        tensors: (role, dtype, shape) of every input and parameter; configuration dimensions are numbers,
            request-dependent ones expressions over request symbols, as text.
        attributes: sorted (name, value) pairs of everything else that changes the kernel or its work.
        swept: the request symbol that its latency depends on.
    """

    kind: OperationKind
    name: str
    tensors: tuple[TensorIdentity, ...]
    attributes: tuple[Attribute, ...]
    swept: SweptSymbol

    def __hash__(self) -> int:
        return self._hash  # looked up once for each of many measurements

    @cached_property
    def _hash(self) -> int:
        return hash((self.kind, self.name, self.tensors, self.attributes, self.swept))

    @property
    def key(self) -> str:
        """Content hash: equal for equal operations, on every machine."""
        return content_hash(self.to_json())

    @property
    def window(self) -> int | None:
        """Most tokens that a query attends to: of a sliding window, or of its chunk, of which it sees half on average.

        None where it attends to all before it.
        """
        attributes = dict(self.attributes)
        widest = attributes.get("sliding_window") or attributes.get("attention_chunk_size")
        return int(widest) if widest else None

    @property
    def label(self) -> str:
        """Readable and stable, nearly always unique: `linear-4096x6144-bf16`, `attention-32h8kv128-bf16-w4096`."""
        shapes = {role: [dim for dim in shape if isinstance(dim, int)] for role, _, shape in self.tensors}
        attributes = dict(self.attributes)
        name = f"fused_add_{self.name}" if "residual" in shapes else self.name
        if self.kind is OperationKind.ATTENTION:
            sizes = "{num_heads}h{num_kv_heads}kv{head_size}".format(**attributes)
        elif self.kind is OperationKind.MOE and "top_k" in attributes:
            experts = [shape for role, shape in shapes.items() if role.endswith("w13_weight")]
            sizes = "{num_local_experts}e{top_k}".format(**attributes)
            sizes = "-".join([sizes, *("x".join(map(str, reversed(shape[1:]))) for shape in experts)])
        elif "weight" in shapes:
            sizes = "x".join(map(str, reversed(shapes["weight"])))
        else:
            # Positions and ids have shapes that say little of the work.
            telling = sorted(self.tensors, key=lambda tensor: tensor[1].startswith("int"))
            sizes = "x".join(map(str, next(filter(None, (shapes[role] for role, _, _ in telling)), [])))
        dtypes = [dtype for _, dtype, _ in self.tensors if not dtype.startswith("int")]
        shown = attributes.keys() - ({"method"} if "precision" in attributes else set())
        details = [text.format(attributes[key]) for key, text in _DETAILS.items() if key in shown]
        kept = (name, sizes, *dtypes[:1], "bias" if "bias" in shapes else "", *details)
        return "-".join(part for part in kept if part and part not in _USUAL)


@dataclass(frozen=True)
class ModelOperation(Document):
    """A signature as one model uses it.

    Attributes:
        signature: canonical identity.
        multiplicity: how often one forward pass runs it.
        layers: paths of the layers that run it, without repetition.
        origins: (role, dtype, shape) of every tensor with the origin of each dimension, for people.
    """

    signature: Signature
    multiplicity: int
    layers: tuple[str, ...]
    origins: tuple[tuple[str, str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class ServedModel:
    """What one serving configuration runs: all that the reading half knows of a model.

    Attributes:
        key: content hash of the configuration, its options and the engine that traced it.
        name: alias or directory, for people.
        architecture: the engine's name of the model class.
        limits: the engine's own bounds of a batch.
        operations: every operation of one forward pass, in order of first execution.
    """

    key: str
    name: str
    architecture: str
    limits: Limits
    operations: tuple[ModelOperation, ...]


def attending_by(model: ServedModel, backend: str) -> ServedModel:
    """The model with attention by another backend than that of its trace, under a key of its own.

    Args:
        model: as traced.
        backend: by the engine's name of it.
    """
    operations = tuple(dataclasses.replace(each, signature=_by(each.signature, backend)) for each in model.operations)
    return dataclasses.replace(model, key=content_hash([model.key, backend]), operations=operations)


def _by(signature: Signature, backend: str) -> Signature:
    if signature.name != "attention":
        return signature
    attributes = tuple((name, backend if name == "backend" else value) for name, value in signature.attributes)
    return dataclasses.replace(signature, attributes=attributes)


def data_parallel_size(model: ServedModel) -> int:
    """Engines that step together, since they share the experts of a mixture; 1 where none are shared."""
    return max((engines_of(operation.signature) for operation in model.operations), default=1)


def engines_of(signature: Signature) -> int:
    """Engines whose tokens an operation works on together."""
    return int(dict(signature.attributes).get("data_parallel", 1))


def experts_of(signature: Signature) -> int:
    """Experts of a mixture, all ranks' together, or those of a rank where no more is said; 0 of other operations."""
    attributes = dict(signature.attributes)
    return int(attributes.get("num_experts", attributes.get("num_local_experts", 0)))


def gathering_ranks(signature: Signature) -> int:
    """Ranks among which an operation's engines gather their tokens: each of a rank that has a share of them."""
    return engines_of(signature) * int(dict(signature.attributes).get("sequence_parallel", 1))


def signature_of(operation: Operation, symbols: Mapping[str, int]) -> Signature:
    """The canonical identity of an operation.

    Args:
        operation: as traced.
        symbols: value of every configuration symbol in its dimensions.
    """
    tensors = tuple(_identity(tensor, symbols) for tensor in operation.inputs + operation.parameters)
    return Signature(operation.kind, operation.name, tensors, operation.attributes, _swept(operation))


def fixed_size(shape: Sequence[int | str]) -> int:
    """Elements of a tensor for each value of its request-dependent dimensions: all, where it has none."""
    return math.prod(dim for dim in shape if isinstance(dim, int))


def is_weight_matrix(role: str, shape: Sequence[int | str]) -> bool:
    """Whether a tensor is a weight that is multiplied by, of one expert or of all."""
    return role.endswith("weight") and len(shape) > 1


def dtype_bytes(dtype: str) -> float:
    """Bytes of one element, by its short name (`bf16`: 2); 1 where that says no number of bits, as in `bool`."""
    bits = re.match(r"[a-z]+(\d+)", dtype)
    return 1.0 if bits is None else int(bits[1]) / 8


def served_key(configuration: ModelConfiguration, environment: Environment) -> str:
    """Key of the ServedModel that a configuration is traced as, by this version of ours and of the engine."""
    return content_hash([configuration.key, environment.engine, environment.engine_version, _TRACE_FORMAT])


def model_operations(trace: Trace) -> tuple[ModelOperation, ...]:
    """The trace's operations, equal signatures counted together, in order of first execution."""
    groups: dict[Signature, list[Operation]] = {}
    for operation in trace.operations:
        groups.setdefault(signature_of(operation, trace.symbols), []).append(operation)
    return tuple(
        ModelOperation(
            signature=signature,
            multiplicity=len(operations),
            layers=tuple(dict.fromkeys(operation.layer for operation in operations)),
            origins=tuple(
                (tensor.name, tensor.dtype, tuple(map(str, tensor.shape)))
                for tensor in operations[0].inputs + operations[0].parameters
            ),
        )
        for signature, operations in groups.items()
    )


def _identity(tensor: TensorSpec, symbols: Mapping[str, int]) -> TensorIdentity:
    sizes = [evaluate(dimension, symbols) for dimension in tensor.shape]
    return tensor.name, tensor.dtype, tuple(int(size) if size.is_Integer else str(size) for size in sizes)


def _swept(operation: Operation) -> SweptSymbol:
    if operation.kind in _STATEFUL or dict(operation.attributes).get("swept") == "batch":
        return "batch"
    if operation.kind is OperationKind.MOE:
        return "routing"
    names = {
        symbol.name
        for tensor in operation.inputs
        for dimension in tensor.shape
        if is_request_dependent(dimension)
        for symbol in dimension.free_symbols
    }
    return "num_reqs" if "num_reqs" in names and "num_tokens" not in names else "num_tokens"


_DEVICE_ATTRIBUTES = frozenset({"backend", "block_size", "dispatch"})


def portable(signature: Signature) -> Signature:
    """The signature without what only the device of its trace decides."""
    return dataclasses.replace(
        signature,
        tensors=tuple(tensor for tensor in signature.tensors if tensor[0] != "block_table"),
        attributes=tuple(pair for pair in signature.attributes if pair[0] not in _DEVICE_ATTRIBUTES),
    )
