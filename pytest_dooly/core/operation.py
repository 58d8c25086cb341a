"""Operations of a model and the origins of their dimensions, as plain data; checker and printer of a trace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import sympy

from pytest_dooly.core.document import Document
from pytest_dooly.errors import TraceError

__all__ = [
    "ADMISSION",
    "BETWEEN_LAYERS",
    "GAP",
    "LAUNCH",
    "REQUEST_SYMBOLS",
    "STEP",
    "Coverage",
    "FloorDiv",
    "Operation",
    "OperationKind",
    "TensorSpec",
    "Trace",
    "check_trace",
    "evaluate",
    "is_request_dependent",
]

REQUEST_SYMBOLS = frozenset({"num_tokens", "num_reqs", "query_len", "context_len", "tokens_per_expert"})
"""Symbols whose value a request decides; every other symbol belongs to the configuration.

`query_len` and `context_len` are those of each request, `tokens_per_expert` those of each expert: the router decides
it, so it belongs to the sweep point and not to the signature. Summed over experts it is num_tokens * top_k.
"""


STEP = "step"
"""What an engine does around the forward pass of a step: schedules, prepares inputs, hands on outputs."""

ADMISSION = "admission"
"""Name of the overhead that a request costs once, before its first step."""

LAUNCH = "layer_launch"
"""Name of the overhead that hides behind a GPU's work: what the host takes to launch a decoder layer."""

GAP = "layer_gap"
"""Name of the overhead that adds to a processor's work: what lies between the operations of a decoder layer."""

BETWEEN_LAYERS = frozenset({GAP, LAUNCH})
"""What a decoder layer costs besides its operations, where no graph is replayed."""


class FloorDiv(sympy.Function):
    """Integer division as an expression; prints as Python writes it, where sympy's own floor does not."""

    nargs = (2,)
    is_integer = True

    @classmethod
    def eval(cls, numerator: sympy.Expr, denominator: sympy.Expr) -> sympy.Expr | None:
        """A number once both sides are numbers."""
        if numerator.is_Integer and denominator.is_Integer:
            return sympy.Integer(int(numerator) // int(denominator))
        return numerator if denominator == 1 else None

    def _sympystr(self, printer: sympy.printing.str.StrPrinter) -> str:
        numerator, denominator = (
            printer._print(arg) if arg.is_Atom else f"({printer._print(arg)})" for arg in self.args
        )
        return f"({numerator} // {denominator})"


class OperationKind(StrEnum):
    """What an operation is; each kind is a pytest marker too (`-m dooly_linear`)."""

    LINEAR = "linear"
    NORM = "norm"
    ROTARY = "rotary"
    ACTIVATION = "activation"
    ATTENTION = "attention"
    MOE = "moe"
    MIXER = "mixer"
    EMBEDDING = "embedding"
    LOGITS = "logits"
    SAMPLER = "sampler"
    COLLECTIVE = "collective"
    OTHER = "other"
    OVERHEAD = "overhead"


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of an operation.

    Attributes:
        name: role in the operation, as in the engine's own code (`input`, `weight`, `query`).
        shape: origin of every dimension; a plain number where no configuration or request value made it.
        dtype: short name (`bf16`, `fp32`, `int64`).
    """

    name: str
    shape: tuple[sympy.Expr, ...]
    dtype: str


@dataclass(frozen=True)
class Operation:
    """One timed unit of a forward pass.

    Attributes:
        kind: what it is.
        name: the field's word for the kernel (`linear`, `rms_norm`, `silu_and_mul`); engine class names never.
        inputs: activations it reads, and what it reads of each request's state or of each expert's share.
        parameters: weights and buffers it reads.
        attributes: sorted (name, value) pairs of everything else that changes the kernel or its work.
        layer: path of the layer in the model, for people and to find it again; not part of the identity.
    """

    kind: OperationKind
    name: str
    inputs: tuple[TensorSpec, ...]
    parameters: tuple[TensorSpec, ...]
    attributes: tuple[tuple[str, str | int | float | bool], ...]
    layer: str


@dataclass(frozen=True)
class Trace:
    """One forward pass of a model as data.

    Attributes:
        architecture: the engine's name of the model class.
        symbols: value of every configuration symbol.
        operations: in the order of execution.
        ops_inside: torch operations that leaf layers enclose.
        ops_outside: torch operations that no leaf layer encloses; each is an operation of its own.
    """

    architecture: str
    symbols: Mapping[str, int]
    operations: tuple[Operation, ...]
    ops_inside: int = 0
    ops_outside: int = 0


@dataclass(frozen=True)
class Coverage(Document):
    """How much of a real forward pass falls inside recorded operations.

    Attributes:
        ops: torch and custom operators that a real forward pass ran.
        outside: (operator, times) of those that no recorded operation encloses.
    """

    ops: int
    outside: tuple[tuple[str, int], ...]

    def __post_init__(self) -> None:
        if self.ops < 1:
            raise ValueError(f"a forward pass runs operators, got {self.ops}")

    @property
    def share(self) -> float:
        """Share of the operators inside, 1 for all."""
        return 1 - sum(times for _, times in self.outside) / self.ops


def evaluate(expression: sympy.Expr, values: Mapping[str, int]) -> sympy.Expr:
    """The expression with `values` put in for its symbols; a sympy Integer once every symbol has a value."""
    known = {symbol: values[symbol.name] for symbol in expression.free_symbols if symbol.name in values}
    return sympy.sympify(expression.xreplace({symbol: sympy.Integer(value) for symbol, value in known.items()}))


def is_request_dependent(expression: sympy.Expr) -> bool:
    """Whether a request symbol occurs in the expression."""
    return any(symbol.name in REQUEST_SYMBOLS for symbol in expression.free_symbols)


def check_trace(trace: Trace) -> None:
    """Checks that every dimension evaluates to a positive number.

    Raises:
        TraceError: a dimension has an unknown symbol or a size below 1; names the operation.
    """
    request = dict.fromkeys(REQUEST_SYMBOLS, 1)
    for operation in trace.operations:
        for tensor in operation.inputs + operation.parameters:
            for dimension in tensor.shape:
                size = evaluate(dimension, {**trace.symbols, **request})
                if not (size.is_Integer and size > 0):
                    raise TraceError(
                        f"{operation.layer} ({operation.name}): dimension {dimension} of {tensor.name!r} has "
                        f"no size ({size}); the configuration symbols are {sorted(trace.symbols)}"
                    )
