"""What one engine step works on, and the points at which operations are timed."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from pytest_dooly.errors import ConfigurationError

__all__ = ["Batch", "Limits", "Request", "Routing", "SweepPoint"]

_ROUTED = re.compile(r"T([1-9]\d*)(?:E([1-9]\d*)M([1-9]\d*))?")
_GROUP = re.compile(r"(?:([1-9]\d*)x)?(\d+)(?:\+(\d+))?")

_CAPTURED = 512
"""Of vLLM's default: most tokens of a captured step, whatever the most requests."""


@dataclass(frozen=True, order=True)
class Request:
    """One request's share of a step.

    Attributes:
        query_len: new tokens in this step, at least 1.
        context_len: tokens already in the KV cache before this step.
    """

    query_len: int
    context_len: int = 0

    def __post_init__(self) -> None:
        if self.query_len < 1 or self.context_len < 0:
            raise ConfigurationError(
                f"a request needs query_len >= 1 and context_len >= 0, got {self.query_len}+{self.context_len}"
            )

    @property
    def seq_len(self) -> int:
        """Tokens in the KV cache after this step."""
        return self.query_len + self.context_len


@dataclass(frozen=True)
class Batch:
    """The requests of one engine step, in order.

    The text form groups equal neighbours: `8x1+512,128` is eight decodes at context 512 and one 128-token prefill.
    """

    requests: tuple[Request, ...]

    def __post_init__(self) -> None:
        if not self.requests:
            raise ConfigurationError("a batch needs at least one request")

    def __hash__(self) -> int:
        return self._hash  # thousands of requests, looked up thousands of times

    @cached_property
    def _hash(self) -> int:
        return hash(self.requests)

    @cached_property
    def groups(self) -> tuple[tuple[Request, int], ...]:
        """Equal neighbours and how many they are."""
        return tuple((request, len(list(same))) for request, same in itertools.groupby(self.requests))

    @classmethod
    def of(cls, pairs: Iterable[tuple[int, int]]) -> Batch:
        """The batch of `(query_len, context_len)` pairs."""
        return cls(tuple(Request(query_len, context_len) for query_len, context_len in pairs))

    @classmethod
    def uniform(cls, num_reqs: int, query_len: int, context_len: int = 0) -> Batch:
        """`num_reqs` equal requests."""
        return cls((Request(query_len, context_len),) * num_reqs)

    @classmethod
    def parse(cls, text: str) -> Batch:
        """The batch written as `[NUMx]QUERY_LEN[+CONTEXT_LEN]`, comma-separated; the inverse of `str`.

        Raises:
            ConfigurationError: the text is not of that form.
        """
        requests: list[Request] = []
        for group in text.split(","):
            match = _GROUP.fullmatch(group.strip())
            if match is None:
                raise ConfigurationError(
                    f"cannot read {group!r} as a batch: write [NUMx]QUERY_LEN[+CONTEXT_LEN], as in 8x1+512,128"
                )
            num, query_len, context_len = (int(part) if part else None for part in match.groups())
            assert query_len is not None
            requests += [Request(query_len, context_len or 0)] * (1 if num is None else num)
        return cls(tuple(requests))

    def __str__(self) -> str:
        return ",".join(
            f"{f'{n}x' if n > 1 else ''}{request.query_len}+{request.context_len}" for request, n in self.groups
        )

    def __repr__(self) -> str:
        return f"Batch.parse({str(self)!r})"  # a dataclass's own would show every request

    @property
    def num_reqs(self) -> int:
        """Number of requests; rows of the logits and of the sampler."""
        return len(self.requests)

    @property
    def num_tokens(self) -> int:
        """Sum of query_len; rows of every token-wise operation."""
        return sum(request.query_len for request in self.requests)


@dataclass(frozen=True)
class Routing:
    """How a step's tokens spread over the experts of a mixture.

    Attributes:
        activated: experts that get at least one token.
        busiest: tokens of the expert that gets most.
    """

    activated: int
    busiest: int


@dataclass(frozen=True)
class SweepPoint:
    """Values of the request symbols at which one operation is timed.

    Exactly one of the first three is set: `num_tokens` for token-wise operations, `num_reqs` for request-wise ones
    (logits, sampler), `batch` for operations that see every request's query_len and context_len (attention, step
    overhead). `routing` goes with `num_tokens`, for a mixture of experts. The text forms are `T64`, `T64E8M20` (64
    tokens over 8 activated experts, 20 of them at the busiest), `R4` and a batch's own.
    """

    num_tokens: int | None = None
    num_reqs: int | None = None
    batch: Batch | None = None
    routing: Routing | None = None

    def __post_init__(self) -> None:
        if sum(value is not None for value in (self.num_tokens, self.num_reqs, self.batch)) != 1:
            raise ValueError(f"exactly one of num_tokens, num_reqs and batch must be set: {vars(self)}")
        if self.routing is not None and self.num_tokens is None:
            raise ValueError(f"routing goes with num_tokens: {vars(self)}")

    @classmethod
    def parse(cls, text: str) -> SweepPoint:
        """The inverse of `str`."""
        routed = _ROUTED.fullmatch(text)
        if routed is not None:
            num_tokens, activated, busiest = (int(part) if part else None for part in routed.groups())
            routing = Routing(activated, busiest) if activated and busiest else None
            return cls(num_tokens=num_tokens, routing=routing)
        if text.startswith("R"):
            return cls(num_reqs=int(text[1:]))
        return cls(batch=Batch.parse(text))

    def __str__(self) -> str:
        if self.routing is not None:
            return f"T{self.num_tokens}E{self.routing.activated}M{self.routing.busiest}"
        if self.num_tokens is not None:
            return f"T{self.num_tokens}"
        if self.num_reqs is not None:
            return f"R{self.num_reqs}"
        return str(self.batch)

    def __repr__(self) -> str:
        return f"SweepPoint.parse({str(self)!r})"


@dataclass(frozen=True)
class Limits:
    """The engine's own bounds of a batch.

    Attributes:
        max_num_tokens: most tokens of one step (vLLM: max_num_batched_tokens).
        max_num_seqs: most requests of one step.
        max_model_len: most tokens of one request, prompt and output together.
        max_captured: most tokens of a step that a GPU's engine replays from a graph, 0 for none (vLLM:
            max_cudagraph_capture_size); None for vLLM's default.
    """

    max_num_tokens: int
    max_num_seqs: int
    max_model_len: int
    max_captured: int | None = None

    @property
    def captured_tokens(self) -> int:
        """Most tokens of a step that is replayed: twice the most requests, 512 at most, where nothing else is said."""
        usual = min(2 * self.max_num_seqs, _CAPTURED)
        return min(usual if self.max_captured is None else self.max_captured, self.max_num_tokens)
