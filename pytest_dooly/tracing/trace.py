"""One forward pass -> the operations that it runs, with the origin of every dimension."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch.utils._pytree import tree_leaves, tree_map

from pytest_dooly.core.batch import Batch, Limits
from pytest_dooly.core.configuration import ModelConfiguration
from pytest_dooly.core.operation import Coverage, Operation, OperationKind, TensorSpec, Trace, check_trace
from pytest_dooly.engine import load_engine
from pytest_dooly.engine.base import Engine, Layer, RequestSymbols, Session, Skeleton
from pytest_dooly.engine.collection import without_collection
from pytest_dooly.engine.forward import ForwardObserver
from pytest_dooly.errors import TraceError, reason_of
from pytest_dooly.tracing.apart import in_own_process
from pytest_dooly.tracing.origin import Symbols

__all__ = ["cover", "observe", "trace"]

# Values that the engine's own branches see: primes that no model has as a size.
_NUM_TOKENS, _NUM_REQS = 37, 5
_IMPLIED = {"query_len": 11, "context_len": 13, "tokens_per_expert": 17}

# A mixed batch that a small model takes, and the KV cache that it needs.
_SOME_BATCH, _SOME_TOKENS = Batch.of([(1, 24), (1, 40), (16, 8), (32, 0)]), 1024

_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float64": "fp64"}


def trace(
    engine: Engine, configuration: ModelConfiguration, *, num_tokens: int = _NUM_TOKENS, num_reqs: int = _NUM_REQS
) -> tuple[Trace, Limits]:
    """Every operation of one forward pass and the engine's bounds of a batch; needs no weights and no GPU.

    For a device that is not here it takes a process of its own, since an engine settles on one for all of a process.

    Args:
        engine: adapter of the serving engine.
        configuration: what is served.
        num_tokens: what `num_tokens` counts as wherever the engine decides by it.
        num_reqs: the same for `num_reqs`.

    Raises:
        ConfigurationError: the engine refuses the configuration.
        TraceError: an operation or the architecture cannot be traced; names it.
        WorkerError: a process of its own was ended.
    """
    if engine.absent_device(configuration) is not None:
        return in_own_process(_traced_by, engine.name, configuration, num_tokens, num_reqs)
    return _traced(engine, configuration, num_tokens, num_reqs)


def _traced_by(engine: str, configuration: ModelConfiguration, num_tokens: int, num_reqs: int) -> tuple[Trace, Limits]:
    """The same in a process where that engine has served nothing yet."""
    return _traced(load_engine(engine), configuration, num_tokens, num_reqs)


def _traced(engine: Engine, configuration: ModelConfiguration, num_tokens: int, num_reqs: int) -> tuple[Trace, Limits]:
    symbols = Symbols()
    # What an earlier session left must not be destroyed under our modes, where its destructors would meet symbols.
    with without_collection(), engine.skeleton(configuration, symbols) as skeleton:
        record = _Record(symbols, skeleton.collectives, configuration.options.tensor_parallel_size)
        observer = record.observer(skeleton, symbolic=True)
        tokens, reqs = symbols.request("num_tokens", num_tokens), symbols.request("num_reqs", num_reqs)
        try:
            repeats = _Repeats(record, observer)
            with torch.inference_mode(), symbols.building(), observer, repeats.taken(skeleton.decoder_layers()):
                skeleton.forward(tokens, reqs)
        except Exception as error:
            raise TraceError(
                f"cannot trace {skeleton.architecture} of {configuration.name}: {observer.where()} failed with "
                + reason_of(error)
            ) from error
        traced = Trace(
            architecture=skeleton.architecture,
            symbols=dict(symbols.values),
            operations=(*record.operations, *skeleton.overheads()),
            ops_inside=observer.ops_inside,
            ops_outside=observer.ops_outside,
        )
        limits = skeleton.limits
    check_trace(traced)
    return traced, limits


def observe(session: Session, batch: Batch) -> Trace:
    """Every operation of one real forward pass, with the sizes that it really has.

    Args:
        session: a running engine.
        batch: what the pass works on.
    """
    record = _Record(Symbols(), session.collectives, ranks=1)
    observer = record.observer(session, symbolic=False)
    session.forward(batch, observer)
    return Trace(session.architecture, {}, tuple(record.operations), observer.ops_inside, observer.ops_outside)


def cover(engine: Engine, configuration: ModelConfiguration) -> Coverage:
    """How much of a real forward pass falls inside recorded operations, on a small model of the same architecture.

    The pass works on a prompt's chunk beside decodes. An operation outside of every layer counts as inside where the
    trace recorded it as an operation of its own, at the same place.

    Raises:
        EngineError: the engine cannot run the small model here.
    """
    with engine.small(configuration) as small:
        recorded = {operation.layer for operation in trace(engine, small)[0].operations}
        session = engine.open(small, kv_tokens=_SOME_TOKENS)
        try:
            observed = observe(session, _SOME_BATCH)
        finally:
            session.close()
    own = [each for each in observed.operations if each.kind is OperationKind.OTHER]
    outside = Counter(each.name for each in own if each.layer not in recorded)
    return Coverage(observed.ops_inside + observed.ops_outside, tuple(sorted(outside.items())))


class _Record:
    """Turns calls of a forward pass into operations."""

    def __init__(self, symbols: Symbols, collectives: Mapping[str, str], ranks: int) -> None:
        self.operations: list[Operation] = []
        self._symbols = symbols
        self._collectives = collectives
        self._ranks = ranks
        self._requests = RequestSymbols(**{name: symbols.request(name, value) for name, value in _IMPLIED.items()})

    def observer(self, model: Skeleton | Session, *, symbolic: bool) -> ForwardObserver:
        """Follows a forward pass of the model and records it here."""
        return ForwardObserver(
            model.modules(),
            model.describe,
            on_layer=self.layer,
            on_operation=self.operation,
            collectives=self._collectives,
            symbolic=symbolic,
        )

    def layer(self, path: str, layer: Layer, arguments: Mapping[str, Any]) -> None:
        inputs = [
            self._tensor(name, tensor)
            for argument, value in arguments.items()
            if argument not in layer.ignored
            for name, tensor in _named_tensors(argument, value)
        ]
        weights = [
            self._tensor(name, weight)
            for value in arguments.values()
            if isinstance(value, torch.nn.Module)
            for name, weight in value.named_parameters(recurse=False)
        ]
        parameters = [self._tensor(name, weight) for name, weight in layer.parameters.items()]
        self.operations.append(
            Operation(
                layer.kind,
                layer.name,
                (*inputs, *self._implied(layer)),
                (*weights, *parameters),
                layer.attributes,
                path,
            )
        )

    def operation(self, place: str, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        leaves = enumerate(tree_leaves((args, kwargs)))
        inputs = tuple(self._tensor(f"arg{i}", leaf) for i, leaf in leaves if isinstance(leaf, torch.Tensor))
        schema = func._schema.name
        if schema in self._collectives:
            name, attributes = self._collectives[schema], (("ranks", self._ranks),)
            self.operations.append(Operation(OperationKind.COLLECTIVE, name, inputs, (), attributes, place))
            return
        name = schema.replace("::", ".")
        attributes = (("overload", func._overloadname),)
        self.operations.append(Operation(OperationKind.OTHER, name, inputs, (), attributes, place))

    def _implied(self, layer: Layer) -> Iterator[TensorSpec]:
        if layer.implied is not None:
            for name, (dtype, shape) in layer.implied(self._requests).items():
                yield TensorSpec(name, tuple(map(self._symbols.expression, shape)), _short(dtype))

    def repeat(self, operations: Iterable[Operation], path: str, other: str) -> None:
        """Records operations of the layer at `path` again for the one at `other`; shared modules keep their place."""
        for each in operations:
            inside = each.layer == path or each.layer.startswith((f"{path}.", f"{path}/"))
            self.operations.append(replace(each, layer=other + each.layer.removeprefix(path)) if inside else each)

    def _tensor(self, name: str, tensor: torch.Tensor) -> TensorSpec:
        return TensorSpec(name, tuple(map(self._symbols.expression, tensor.shape)), _short(tensor.dtype))


class _Repeats:
    """Runs each distinct decoder layer once; for its equals, repeats what was recorded."""

    def __init__(self, record: _Record, observer: ForwardObserver) -> None:
        self._record = record
        self._observer = observer
        self._known: dict[Hashable, _Passage] = {}

    @contextmanager
    def taken(self, layers: Iterable[tuple[str, torch.nn.Module, Hashable]]) -> Iterator[None]:
        """While open, layers run through here."""
        with ExitStack() as patches:
            for path, layer, identity in layers:
                run = partial(self._run, path, identity, layer.forward)
                patches.enter_context(mock.patch.object(layer, "forward", run))
            yield

    def _run(self, path: str, identity: Hashable, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        record, observer = self._record, self._observer
        key = identity, str(tree_map(self._shape, (args, kwargs)))
        if key in self._known:
            known = self._known[key]
            record.repeat(known.operations, known.path, path)
            observer.ops_inside += known.ops_inside
            observer.ops_outside += known.ops_outside
            return known.output
        start, inside, outside = len(record.operations), observer.ops_inside, observer.ops_outside
        output = forward(*args, **kwargs)
        operations = tuple(record.operations[start:])
        self._known[key] = _Passage(
            path, operations, observer.ops_inside - inside, observer.ops_outside - outside, output
        )
        return output

    def _shape(self, value: object) -> object:
        """What an operation may depend on of a layer's argument."""
        return (value.dtype, tuple(map(str, value.shape))) if isinstance(value, torch.Tensor) else value


@dataclass(frozen=True)
class _Passage:
    """What one decoder layer did on arguments of some shapes."""

    path: str
    operations: tuple[Operation, ...]
    ops_inside: int
    ops_outside: int
    output: Any


def _short(dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    return _DTYPES.get(name, name)


def _named_tensors(name: str, value: object) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _named_tensors(f"{name}{i}", item)
