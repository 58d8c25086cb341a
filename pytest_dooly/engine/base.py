"""What the rest of the code asks of a serving engine: describe itself, show a model's skeleton, open a session.

Everything that touches an engine's internals lives behind these protocols, one adapter per engine version where
versions differ. Engine objects are passed in; no other room imports an engine.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch

from pytest_dooly.core.batch import Batch, Limits, SweepPoint
from pytest_dooly.core.configuration import ModelConfiguration
from pytest_dooly.core.environment import Environment
from pytest_dooly.core.operation import Operation, OperationKind
from pytest_dooly.core.replay import Replay
from pytest_dooly.core.signature import ModelOperation
from pytest_dooly.core.traffic import Traffic
from pytest_dooly.scheduling.scheduler import Scheduler, SchedulerOptions

if TYPE_CHECKING:
    from pytest_dooly.core.workload import Workload

__all__ = [
    "Clock",
    "Engine",
    "IsolatedCall",
    "Layer",
    "Origins",
    "RequestSymbols",
    "RequestTiming",
    "Session",
    "Skeleton",
    "TrafficServer",
]

Attribute = tuple[str, str | int | float | bool]


@dataclass(frozen=True)
class RequestSymbols:
    """Request symbols that no argument of a layer shows.

    Attributes:
        query_len: new tokens of one request.
        context_len: tokens of one request that are in the KV cache already.
        tokens_per_expert: tokens that are routed to one expert.
    """

    query_len: Any
    context_len: Any
    tokens_per_expert: Any


@dataclass(frozen=True)
class Layer:
    """How the engine describes one of its leaf layers.

    Attributes:
        kind: what it is.
        name: the field's word for the kernel.
        attributes: sorted (name, value) pairs of everything but shapes and dtypes that changes the kernel or its work.
        parameters: the weights that the kernel reads, by role.
        ignored: names of forward arguments that are no input of the kernel.
        called_as: names the arguments, where the module's own forward only dispatches.
        stand_in: gives the output's shape in place of the module's forward, where its operators cannot run on fake
            tensors; None where they can.
        implied: dtype and shape of what the kernel reads besides its arguments and parameters: a request's share of the
            KV cache or of another state, an expert's share of the tokens; None where there is nothing.
    """

    kind: OperationKind
    name: str
    attributes: tuple[Attribute, ...] = ()
    parameters: Mapping[str, torch.Tensor] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    called_as: Callable[..., Any] | None = None
    stand_in: Callable[..., Any] | None = None
    implied: Callable[[RequestSymbols], Mapping[str, tuple[torch.dtype, Sequence[Any]]]] | None = None


class Origins(Protocol):
    """How symbols get into a model.

    Attributes:
        integer: stands in for `int` in modules that round sizes with it, where the built-in would forget the origin.
    """

    integer: type[int]

    def plant(self, name: str, value: int) -> int:
        """What takes the place of a configuration integer."""

    def building(self) -> AbstractContextManager[object]:
        """The modes under which constructors and the forward pass run."""


class Skeleton(Protocol):
    """A model without weights, built under the caller's tracing modes.

    Attributes:
        architecture: the engine's name of the model class.
        limits: the engine's own bounds of a batch.
        collectives: operators of the engine that communicate, by schema name; what the field calls them.
    """

    architecture: str
    limits: Limits
    collectives: Mapping[str, str]

    def modules(self) -> Iterator[tuple[str, torch.nn.Module]]:
        """Every module that a forward pass may call, with its path; parents before children."""

    def describe(self, module: torch.nn.Module) -> Layer | None:
        """The layer that the module is a leaf for, or None for one that only composes others."""

    def decoder_layers(self) -> Iterator[tuple[str, torch.nn.Module, Hashable]]:
        """Path, module and identity of every decoder layer; equal ones do the same on equal arguments."""

    def forward(self, num_tokens: int | torch.SymInt, num_reqs: int | torch.SymInt) -> None:
        """Runs the model, the logits and the sampler once."""

    def overheads(self) -> Sequence[Operation]:
        """What a step costs outside of its layers, as operations without tensors."""


class Clock(Protocol):
    """Reads a device's time, and can be stopped while something runs that is not to be counted."""

    def now(self) -> Any:
        """A reading; the difference of two is the elapsed device time in seconds."""

    def pause(self) -> None:
        """Stops the clock."""

    def resume(self) -> None:
        """Lets the clock go on."""


def ignore(*_: object) -> None:
    """What is called where nothing is to be done."""


@dataclass(frozen=True)
class IsolatedCall:
    """One operation ready to be timed.

    Attributes:
        run: executes it once.
        before: called before every run, outside of the timed region.
        again: in place of it before the very same call is made once more, as the replay of a graph does.
    """

    run: Callable[[], object]
    before: Callable[[], None] = ignore
    again: Callable[[], None] | None = None


@dataclass(frozen=True)
class RequestTiming:
    """What the engine itself reports of one request.

    Attributes:
        ttft_s: arrival to first token, in seconds.
        tpot_s: (latency - TTFT) / (output_len - 1) in seconds; None for one output token.
    """

    ttft_s: float
    tpot_s: float | None


class Session(Protocol):
    """A running engine with random weights, of which single layers can be taken.

    Attributes:
        architecture: the engine's name of the model class.
        collectives: as of a Skeleton.
    """

    architecture: str
    collectives: Mapping[str, str]

    def modules(self) -> Iterator[tuple[str, torch.nn.Module]]:
        """Every module that a forward pass may call, with its path; parents before children."""

    def describe(self, module: torch.nn.Module) -> Layer | None:
        """The layer that the module is a leaf for, or None for one that only composes others."""

    def forward(self, batch: Batch, within: AbstractContextManager[object]) -> None:
        """Runs the model, the logits and the sampler once for real, on random tokens.

        Args:
            batch: what the pass works on.
            within: entered while the engine's own code runs, and left where inputs are made for it; more than once.
        """

    def isolate(
        self, operation: ModelOperation, point: SweepPoint, clock: Clock
    ) -> AbstractContextManager[IsolatedCall]:
        """The operation alone, on inputs, KV cache and metadata made by the engine's own initialisation.

        Raises:
            EngineError: the engine cannot run the operation at this point.
        """

    def time_layers(self, batch: Batch, clock: Clock) -> Mapping[str, Sequence[float]]:
        """Seconds of every layer within one forward pass, by path; of a decoder layer, without its leaf layers.

        A layer that is called more than once, or from several places, has one entry for each call.
        """

    def generate(self, workload: Workload) -> tuple[RequestTiming, ...]:
        """The engine's own timings of every request of a workload, of random tokens."""

    def close(self) -> None:
        """Frees what the engine holds."""


class TrafficServer(AbstractContextManager["TrafficServer"], Protocol):
    """The engine behind its own HTTP server on this machine, and its own client; up while its context lasts.

    Attributes:
        options: what it schedules by, known before it is up.
    """

    options: SchedulerOptions

    def replay(self, traffic: Traffic) -> Replay:
        """Sends every request at its time, streaming, with tokens that no earlier replay had.

        Raises:
            EngineError: the server or the client has died, or no request succeeded.
        """


class Engine(Protocol):
    """A serving engine of one version.

    Attributes:
        name: of the engine.
        version: of the engine.
    """

    name: str
    version: str

    def environment(self, configuration: ModelConfiguration) -> Environment:
        """What latencies measured here are true for."""

    def absent_device(self, configuration: ModelConfiguration) -> str | None:
        """Product of the device that the configuration is for, where it is not here: it can be traced, not timed."""

    def accelerators(self, configuration: ModelConfiguration) -> tuple[str, ...]:
        """Accelerators that may serve the configuration, by their names in CUDA_VISIBLE_DEVICES; empty on a CPU."""

    def prepare(self) -> None:
        """Imports what it runs on, which the first trace or start takes seconds for else.

        Raises:
            EngineError: it cannot be imported.
        """

    def skeleton(self, configuration: ModelConfiguration, origins: Origins) -> AbstractContextManager[Skeleton]:
        """The model without weights.

        Args:
            configuration: what is served.
            origins: plants a symbol in place of every configuration integer.

        Raises:
            ConfigurationError: the engine refuses the configuration.
            TraceError: the model cannot be built without weights.
        """

    def small(self, configuration: ModelConfiguration) -> AbstractContextManager[ModelConfiguration]:
        """A model of the same architecture whose real forward pass takes a moment, in a directory of its own.

        Raises:
            ConfigurationError: the configuration cannot be had as a document.
        """

    def open(
        self, configuration: ModelConfiguration, *, isolating: Sequence[ModelOperation] = (), kv_tokens: int = 0
    ) -> Session:
        """A running engine.

        Args:
            configuration: what is served.
            isolating: operations to be timed one by one; the session then holds just the layers that this takes.
                Without them it is the whole model.
            kv_tokens: tokens that the KV cache must hold at once; at least one request of max_model_len.

        Raises:
            EngineError: the engine does not start, out of memory for one.
        """

    def scheduler(self, options: SchedulerOptions) -> Scheduler:
        """The engine's own scheduler over virtual requests, without weights and without a GPU.

        Raises:
            ConfigurationError: the engine refuses the options.
            EngineError: it has no scheduler of its own, or cannot be imported.
        """

    def server(self, configuration: ModelConfiguration, *, port: int = 0) -> TrafficServer:
        """A server that is not up yet, of the whole model with random weights and prefix caching.

        Args:
            configuration: what is served.
            port: on loopback; 0 for any that is free.

        Raises:
            ConfigurationError: the engine refuses the configuration, or the port is taken.
            EngineError: the engine has no server of its own; when it is to come up: it does not.
        """
