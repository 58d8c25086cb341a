"""Operation -> canonical identity: two models share a sweep when the numbers agree, whatever the names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pytest_dooly.environment import content_hash
from pytest_dooly.operation import Operation, OperationKind, TensorSpec, evaluate, is_request_dependent

__all__ = ["ModelOperation", "Signature", "SweptSymbol", "signature_of"]

SweptSymbol = Literal["num_tokens", "num_reqs", "batch"]
"""What a signature is swept over; names the field of SweepPoint that is set."""


@dataclass(frozen=True)
class Signature:
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
    tensors: tuple[tuple[str, str, tuple[int | str, ...]], ...]
    attributes: tuple[tuple[str, str | int | float | bool], ...]
    swept: SweptSymbol

    def to_json(self) -> dict[str, Any]:
        """A JSON document that `from_json` reads back."""
        return {
            "kind": self.kind.value,
            "name": self.name,
            "tensors": [[role, dtype, list(shape)] for role, dtype, shape in self.tensors],
            "attributes": [list(pair) for pair in self.attributes],
            "swept": self.swept,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Signature:
        """The inverse of `to_json`."""
        return cls(
            kind=OperationKind(document["kind"]),
            name=document["name"],
            tensors=tuple((role, dtype, tuple(shape)) for role, dtype, shape in document["tensors"]),
            attributes=tuple((name, value) for name, value in document["attributes"]),
            swept=document["swept"],
        )

    @property
    def key(self) -> str:
        """Content hash: equal for equal operations, on every machine."""
        return content_hash(self.to_json())
