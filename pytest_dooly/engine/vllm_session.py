"""A running vLLM of which single layers are taken: KV cache, metadata and inputs are the engine's own."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import torch
from torch.utils._pytree import tree_leaves, tree_map

from pytest_dooly.batch import Batch, Limits, SweepPoint
from pytest_dooly.configuration import ModelConfiguration
from pytest_dooly.engine.base import Clock, IsolatedCall, Layer, RequestTiming
from pytest_dooly.engine.forward import ForwardObserver
from pytest_dooly.engine.vllm_layers import LayerCatalogue, greedy_sampling, outermost_leaves
from pytest_dooly.engine.vllm_parallel import COLLECTIVES
from pytest_dooly.engine.vllm_small import at_depth
from pytest_dooly.errors import EngineError
from pytest_dooly.operation import LAUNCH, OperationKind
from pytest_dooly.signature import ModelOperation

__all__ = ["VllmSession"]

# A step's context where only the number of requests matters.
_SOME_CONTEXT = 16
# Operations to run before one that is timed: qkv projection, its norms and rotary come before attention.
_MAX_CHAIN = 5
# Layers beyond which more rotation costs memory and start-up for nothing.
_MAX_LAYERS = 64

_ALONE = nullcontext()


def _ignore(*_: object) -> None:
    """What an observer calls that is asked for nothing."""


class _Reached(Exception):  # noqa: N818 - ends a forward pass early, no error
    """The last place that matters has been reached."""


@dataclass(frozen=True)
class _Call:
    """One call in a forward pass, its arguments copied before it ran."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def copy(self) -> _Call:
        """The same call on tensors of its own."""
        return _Call(self.function, tree_map(_clone, self.args), tree_map(_clone, self.kwargs))

    def restore(self, original: _Call) -> None:
        """Writes the original's values into the tensors, which a call in place has changed."""
        mine, theirs = tree_leaves((self.args, self.kwargs)), tree_leaves((original.args, original.kwargs))
        for tensor, value in zip(mine, theirs, strict=True):
            if isinstance(tensor, torch.Tensor):
                tensor.copy_(value)


class _Untimed:
    """A layer that stops the clock while it runs, in place of the layer itself.

    A forward hook would do the same, but costs microseconds that the clock would count.
    """

    def __init__(self, layer: Any, clock: Clock) -> None:
        self._layer = layer
        self._clock = clock

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._clock.pause()
        try:
            return self._layer(*args, **kwargs)
        finally:
            self._clock.resume()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


class _Recalled:
    """A model that computes once for each shape of its input, then answers from memory and leaves the caches as cold.

    What surrounds the forward pass is timed with it, and does not depend on what it computes.
    """

    def __init__(self, model: Any, ballast: torch.Tensor) -> None:
        self._model = model
        self._outputs: dict[tuple[torch.Size, ...], Any] = {}
        self._ballast = ballast

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        shapes = tuple(leaf.shape for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor))
        if shapes not in self._outputs:
            self._outputs[shapes] = self._model(*args, **kwargs)
        else:
            self._ballast.add_(1)
        return self._outputs[shapes]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class VllmSession:
    """vLLM's engine in this process; see `Session`."""

    def __init__(
        self,
        configuration: ModelConfiguration,
        arguments: Mapping[str, Any],
        *,
        isolating: Sequence[ModelOperation],
        kv_tokens: int,
    ) -> None:
        """Starts the engine.

        Args:
            configuration: what is served.
            arguments: of `vllm.LLM`.
            isolating: operations to be timed one by one; empty for the whole model.
            kv_tokens: tokens that the KV cache must hold at once.

        Raises:
            EngineError: the engine does not start.
        """
        self._files = ExitStack()
        arguments = dict(arguments)
        if isolating:
            arguments["model"] = str(self._with_layers(configuration, _layers_needed(isolating)))
        self._llm = _start(arguments, kv_tokens)
        self._runner = self._llm.llm_engine.model_executor.driver_worker.worker.model_runner
        self._model: torch.nn.Module = self._runner.get_model()  # out of the wrapper that replays its graphs
        self._config = self._runner.vllm_config
        self.architecture: str = self._config.model_config.architecture
        self.collectives = COLLECTIVES
        self._modules = {**dict(self._model.named_modules()), "sampler": self._runner.sampler}
        self._catalogue = LayerCatalogue(self._config.cache_config.block_size)
        self._leaves = [*outermost_leaves(self._model, self._catalogue.describe), self._runner.sampler]
        self._captured: tuple[Batch | None, dict[str, _Call]] = (None, {})
        self._order = self._order_of_calls() if isolating else []
        self._places = {place for operation in isolating for path in operation.layers for place in self._chain(path)}

    def modules(self) -> Iterator[tuple[str, torch.nn.Module]]:
        """Every module that a forward pass may call; see `Session.modules`."""
        yield from self._model.named_modules()
        yield from self._runner.sampler.named_modules(prefix="sampler")

    def describe(self, module: torch.nn.Module) -> Layer | None:
        """The layer that the module is a leaf for."""
        return self._catalogue.describe(module)

    def forward(self, batch: Batch, within: AbstractContextManager[object]) -> None:
        """Runs the model, the logits and the sampler once for real; see `Session.forward`."""
        batch = self._ordered(batch)
        with torch.inference_mode(), self._forward_context(batch):
            self._forward(batch, within)

    @property
    def limits(self) -> Limits:
        """The engine's own bounds of a batch."""
        scheduler = self._config.scheduler_config
        return Limits(scheduler.max_num_batched_tokens, scheduler.max_num_seqs, self._config.model_config.max_model_len)

    @contextmanager
    def isolate(self, operation: ModelOperation, point: SweepPoint, clock: Clock) -> Iterator[IsolatedCall]:
        """The operation alone; see `Session.isolate`."""
        name = operation.signature.name
        with torch.inference_mode():
            if operation.signature.kind is not OperationKind.OVERHEAD or name == LAUNCH:
                with self._layer_call(operation, point) as call:
                    yield call
            elif name == "layer_gap":
                with self._layer_call(operation, point) as call, self._untimed(self._leaves, clock):
                    yield call
            elif name == "admission":
                with self._requests_of_its_own():
                    yield self._admission_call(point)
            elif name == "step":
                model, sampler = (
                    _Untimed(_Recalled(self._model, self._ballast), clock),
                    _Untimed(self._runner.sampler, clock),
                )
                patches = mock.patch.multiple(self._runner, model=model, sampler=sampler)
                with self._requests_of_its_own(), patches, self._untimed(self._logits_processors(), clock):
                    yield self._step_call(point)
            else:
                raise EngineError(f"cannot isolate {name!r}: this adapter does not know that overhead")

    def generate(self, prompt_len: int, output_len: int, concurrency: int) -> tuple[RequestTiming, ...]:
        """The engine's own timings; see `Session.generate`."""
        prompts = [self._prompt(prompt_len) for _ in range(concurrency)]
        outputs = self._llm.generate(prompts, _sampling(output_len), use_tqdm=False)
        return tuple(_timing(output.metrics, output_len) for output in outputs)

    def close(self) -> None:
        """Frees what the engine holds."""
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        self._captured = (None, {})
        self._modules.clear()
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm, self._runner, self._model
        cleanup_dist_env_and_memory()
        self._files.close()

    # Isolation of layers

    @contextmanager
    def _layer_call(self, operation: ModelOperation, point: SweepPoint) -> Iterator[IsolatedCall]:
        """A layer on the inputs of a real forward pass, each time after the operations that precede it there.

        What precedes leaves the caches as a layer finds them in a model: its weights and the interpreter's own data
        evicted, its inputs just written.
        """
        batch = self._batch(point)
        chains = [self._chain(path) for path in operation.layers if path in self._modules or "/" in path]
        with self._forward_context(batch):
            places = chains[min(1, len(chains) - 1)]  # a layer within the model, and soon reached
            chains = [chain for chain in chains if _roles(chain) == _roles(places)]
            calls = self._capture(batch, places, alone=point.batch is not None)
            chain, call = [calls[place] for place in places[:-1]], calls[places[-1]].copy()
            # A GPU's cache is flushed: it is so large that few layers fill it, and a graph replays the same one anyway.
            flushed = self._runner.device.type == "cuda"
            rotation = itertools.cycle([places] if flushed else chains)
            function = call.function

            # Where there are no other layers to rotate to, one weight would stay in the cache from round to round.
            ballast = self._ballast if flushed or (len(chains) == 1 and _reads_a_matrix(operation)) else None

            def before() -> None:
                nonlocal function
                if ballast is not None:
                    ballast.add_(1)
                path = next(rotation)
                for place, preceding in zip(path[:-1], chain, strict=False):
                    self._modules.get(place, preceding.function)(*preceding.args, **preceding.kwargs)
                call.restore(calls[places[-1]])
                function = self._modules.get(path[-1], call.function)

            def run() -> object:
                return function(*call.args, **call.kwargs)

            yield IsolatedCall(run, before)

    @cached_property
    def _ballast(self) -> torch.Tensor:
        """What evicts everything else from the last-level cache when it is written to."""
        return torch.zeros(2 * _last_level_cache_bytes(), dtype=torch.uint8, device=self._runner.device)

    def _chain(self, path: str) -> tuple[str, ...]:
        """The path, after those of the layers called before it, back to the nearest one that streams weights."""
        if path not in self._order:
            return (path,)
        end = self._order.index(path)
        start = end - 1
        while start > 0 and end - start < _MAX_CHAIN and not self._streams_weights(self._order[start]):
            start -= 1
        return tuple(self._order[max(0, start) : end + 1])

    def _streams_weights(self, path: str) -> bool:
        layer = self._catalogue.describe(self._modules[path])
        return layer is not None and layer.kind in (OperationKind.LINEAR, OperationKind.MOE)

    def _capture(self, batch: Batch, places: Sequence[str], *, alone: bool) -> dict[str, _Call]:
        """Calls at places in a forward pass over the batch, their arguments copied.

        Args:
            batch: what the pass works on.
            places: paths of layers, or of operations outside of layers; the last is reached last.
            alone: no other operation is timed at this batch, so only these places matter.
        """
        if self._captured[0] != batch or not self._captured[1].keys() >= set(places):
            self._captured = batch, {}
            calls: dict[str, _Call] = {}
            with ExitStack() as hooks:
                self._copy_calls(calls, set(places) if alone else self._places, places[-1] if alone else None, hooks)
                with suppress(_Reached):
                    self._forward(batch)
            self._captured = batch, calls
        return self._captured[1]

    def _copy_calls(self, calls: dict[str, _Call], places: set[str], last: str | None, hooks: ExitStack) -> None:
        def copy(place: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            if place in places and place not in calls:
                calls[place] = _Call(function, args, dict(kwargs)).copy()
            if place == last:
                raise _Reached

        if any("/" in place for place in places):
            hooks.enter_context(self._observer(on_operation=copy))
        for path in places & self._modules.keys():
            module = self._modules[path]
            noted = partial(_noted, copy, path, module, module.forward)
            hooks.enter_context(mock.patch.object(module, "forward", noted))

    def _order_of_calls(self) -> list[str]:
        """Paths of the leaf layers in the order in which a forward pass calls them; none within another."""
        order: list[str] = []

        def note(path: str, layer: Layer, arguments: Mapping[str, Any]) -> None:
            order.append(path)

        self.forward(Batch.uniform(1, 1), self._observer(on_layer=note))
        return order

    def _observer(
        self, on_layer: Callable[..., None] = _ignore, on_operation: Callable[..., None] = _ignore
    ) -> ForwardObserver:
        return ForwardObserver(
            self.modules(), self.describe, on_layer=on_layer, on_operation=on_operation, symbolic=False
        )

    def _forward(self, batch: Batch, within: AbstractContextManager[object] = _ALONE) -> None:
        device = self._runner.device
        ids = torch.randint(1, self._vocabulary, (batch.num_tokens,), device=device)
        positions = _positions(batch).to(device)
        metadata = greedy_sampling(device)
        metadata.logitsprocs = self._runner.input_batch.logitsprocs
        with within:
            hidden = self._model(ids, positions)
        rows = hidden[: batch.num_reqs].clone()
        with within:
            logits = self._model.compute_logits(rows)
            self._runner.sampler(logits=logits, sampling_metadata=metadata)

    @contextmanager
    def _forward_context(self, batch: Batch) -> Iterator[None]:
        from vllm.config import set_current_vllm_config
        from vllm.forward_context import set_forward_context

        metadata: dict[str, Any] = {}
        slots: dict[str, torch.Tensor] = {}
        for groups in self._runner.attn_groups:
            for group in groups:
                built, slot_mapping = _attention_metadata(group, batch, self._runner.device)
                metadata |= dict.fromkeys(group.layer_names, built)
                slots |= dict.fromkeys(group.layer_names, slot_mapping)
        context = set_forward_context(metadata, self._config, num_tokens=batch.num_tokens, slot_mapping=slots)
        with set_current_vllm_config(self._config), context:
            yield

    def _batch(self, point: SweepPoint) -> Batch:
        if point.batch is not None:
            return self._ordered(point.batch)
        if point.num_reqs is not None:
            return Batch.uniform(point.num_reqs, 1, _SOME_CONTEXT)
        assert point.num_tokens is not None
        whole, rest = divmod(point.num_tokens, self.limits.max_model_len)
        return Batch.of([(self.limits.max_model_len, 0)] * whole + [(rest, 0)] * bool(rest))

    def _ordered(self, batch: Batch) -> Batch:
        """The batch as the engine's runner orders it where the attention backend treats decodes apart.

        Decodes come first, then chunks of prompts, then their beginnings: one that finds them in another order takes
        all for prefills. Source: `reorder_batch_to_split_decodes_and_prefills` of vLLM.
        """
        longest_decode = self._runner.reorder_batch_threshold
        if longest_decode is None:
            return batch
        requests = sorted(batch.requests, key=lambda r: (r.context_len == 0, r.query_len > longest_decode))
        return Batch(tuple(requests))

    # Isolation of what surrounds the layers

    def _admission_call(self, point: SweepPoint) -> IsolatedCall:
        assert point.num_tokens is not None
        prompt = self._prompt(min(point.num_tokens, self.limits.max_model_len - 1))
        return IsolatedCall(
            run=lambda: self._llm.enqueue([prompt], _sampling(1), use_tqdm=False), before=self._abort_everything
        )

    def _step_call(self, point: SweepPoint) -> IsolatedCall:
        batch = point.batch
        assert batch is not None
        engine = self._llm.llm_engine
        decoding = all(request.query_len == 1 and request.context_len for request in batch.requests)

        def start() -> None:
            self._abort_everything()
            for request in batch.requests:
                prompt_len = request.context_len if decoding else request.query_len
                output_len = self.limits.max_model_len - prompt_len
                self._llm.enqueue([self._prompt(prompt_len)], _sampling(output_len), use_tqdm=False)
            while decoding and not self._all_decode(batch.num_reqs):
                engine.step()

        def keep_decoding() -> None:
            if not (self._all_decode(batch.num_reqs) and self._room_for_a_token()):
                start()

        return IsolatedCall(engine.step, before=keep_decoding if decoding else start)

    @contextmanager
    def _untimed(self, layers: Sequence[torch.nn.Module], clock: Clock) -> Iterator[None]:
        """Stops the clock while one of the layers runs."""
        wanted = {id(layer) for layer in layers}
        with ExitStack() as swaps:
            for parent in self._model.modules():
                for name, child in parent._modules.items():
                    if id(child) in wanted:
                        swaps.enter_context(mock.patch.dict(parent._modules, {name: _Untimed(child, clock)}))
            yield

    def _logits_processors(self) -> list[torch.nn.Module]:
        return [module for module in self._model.modules() if type(module).__name__ == "LogitsProcessor"]

    # The engine's requests

    @property
    def _scheduler(self) -> Any:
        return self._llm.llm_engine.engine_core.engine_core.scheduler

    def _all_decode(self, num_reqs: int) -> bool:
        running = self._scheduler.running
        return len(running) == num_reqs and all(r.num_computed_tokens >= r.num_prompt_tokens for r in running)

    def _room_for_a_token(self) -> bool:
        return all(request.num_tokens + 2 < self.limits.max_model_len for request in self._scheduler.running)

    @contextmanager
    def _requests_of_its_own(self) -> Iterator[None]:
        """No request outlives the case that made it."""
        try:
            yield
        finally:
            self._abort_everything()

    def _abort_everything(self) -> None:
        engine = self._llm.llm_engine
        engine.abort_request(list(engine.output_processor.request_states), internal=True)
        while engine.has_unfinished_requests():
            engine.step()

    def _prompt(self, prompt_len: int) -> dict[str, list[int]]:
        return {"prompt_token_ids": [random.randrange(1, self._vocabulary) for _ in range(prompt_len)]}

    @property
    def _vocabulary(self) -> int:
        return int(self._config.model_config.get_vocab_size())

    def _with_layers(self, configuration: ModelConfiguration, num_layers: int) -> Path:
        """A directory with the configuration of the same model at another depth."""
        folder = Path(self._files.enter_context(tempfile.TemporaryDirectory(prefix="dooly-")))
        document = at_depth(configuration.document, num_layers)
        (folder / "config.json").write_text(json.dumps(document), encoding="utf-8")
        return folder


def _layers_needed(operations: Sequence[ModelOperation]) -> int:
    """Layers that hold every operation, and enough weights that none stays in the cache between two uses."""
    last = max((int(part) for o in operations for part in o.layers[0].split(".") if part.isdigit()), default=0)
    layer_bytes = [
        2 * math.prod(dim for dim in shape if isinstance(dim, int))
        for operation in operations
        if len(operation.layers) > 1
        for role, _, shape in operation.signature.tensors
        if role == "weight" and len(shape) > 1
    ]
    rotation = math.ceil(2 * _last_level_cache_bytes() / min(layer_bytes, default=2 * _last_level_cache_bytes()))
    affordable = psutil.virtual_memory().available // 3 // max(1, sum(layer_bytes))
    return max(last + 1, min(rotation, affordable, _MAX_LAYERS))


def _reads_a_matrix(operation: ModelOperation) -> bool:
    return any(role.endswith("weight") and len(shape) > 1 for role, _, shape in operation.signature.tensors)


def _last_level_cache_bytes() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).L2_cache_size)
    size = os.sysconf("SC_LEVEL3_CACHE_SIZE") if "SC_LEVEL3_CACHE_SIZE" in os.sysconf_names else 0
    return size if size > 0 else 32 * 2**20


def _start(arguments: dict[str, Any], kv_tokens: int) -> Any:
    from vllm import LLM
    from vllm.engine.arg_utils import EngineArgs

    try:
        block_size = EngineArgs(**arguments).create_engine_config().cache_config.block_size
        max_len = arguments.get("max_model_len") or 0
        blocks = math.ceil(max(kv_tokens, max_len) / block_size) + arguments.get("max_num_seqs", 256) + 1
        # The number of blocks decides; the budget in bytes only has to pass vLLM's check of free memory.
        return LLM(**arguments, disable_log_stats=False, kv_cache_memory_bytes=2**30, num_gpu_blocks_override=blocks)
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), "no message")
        raise EngineError(f"vLLM does not start: {type(error).__name__}: {first}") from error


def _attention_metadata(group: Any, batch: Batch, device: torch.device) -> tuple[Any, torch.Tensor]:
    """The backend's own metadata of a batch, whose requests lie in consecutive KV blocks.

    Returns:
        metadata as the backend's builder makes it, and slot_mapping of shape (num_tokens,).
    """
    from vllm.v1.attention.backend import CommonAttentionMetadata

    block = group.kv_cache_spec.block_size
    query_lens = torch.tensor([request.query_len for request in batch.requests])
    seq_lens = torch.tensor([request.seq_len for request in batch.requests], dtype=torch.int32)
    starts = torch.zeros(batch.num_reqs + 1, dtype=torch.int32)
    starts[1:] = query_lens.cumsum(0)
    num_blocks = -(-seq_lens // block)
    table = torch.zeros(batch.num_reqs, int(num_blocks.max()), dtype=torch.int32)
    first, slots = 1, []
    for row, request in enumerate(batch.requests):
        count = int(num_blocks[row])
        table[row, :count] = torch.arange(first, first + count)
        first += count
        position = torch.arange(request.context_len, request.seq_len)
        slots.append(table[row][position // block].long() * block + position % block)
    slot_mapping = torch.cat(slots).to(device)
    common = CommonAttentionMetadata(
        query_start_loc=starts.to(device),
        query_start_loc_cpu=starts,
        seq_lens=seq_lens.to(device),
        num_reqs=batch.num_reqs,
        num_actual_tokens=batch.num_tokens,
        max_query_len=int(query_lens.max()),
        max_seq_len=int(seq_lens.max()),
        block_table_tensor=table.to(device),
        slot_mapping=slot_mapping,
        seq_lens_cpu_upper_bound=seq_lens,
        is_prefilling=torch.tensor([r.query_len > 1 or r.context_len == 0 for r in batch.requests]),
        positions=_positions(batch).to(device),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of fields that FlashInfer's builder still reads
        return group.get_metadata_builder().build(common_prefix_len=0, common_attn_metadata=common), slot_mapping


def _positions(batch: Batch) -> torch.Tensor:
    """Place of every new token in its sequence, shape (num_tokens,)."""
    return torch.cat([torch.arange(request.context_len, request.seq_len) for request in batch.requests])


def _roles(chain: Sequence[str]) -> tuple[str, ...]:
    """What the layers of a chain are within their decoder layers; equal roles take equal arguments."""
    return tuple(path.rpartition(".")[2] for path in chain)


def _noted(
    copy: Callable[..., None],
    path: str,
    module: torch.nn.Module,
    forward: Callable[..., Any],
    *args: Any,
    **kwargs: Any,
) -> Any:
    copy(path, module, args, kwargs)
    return forward(*args, **kwargs)


def _clone(value: Any) -> Any:
    # Keeps the strides: a query that is a slice of qkv is read with them.
    if not isinstance(value, torch.Tensor):
        return value
    storage = value.untyped_storage().clone()
    return torch.empty(0, dtype=value.dtype, device=value.device).set_(
        storage, value.storage_offset(), value.size(), value.stride()
    )


def _sampling(output_len: int) -> Any:
    from vllm import SamplingParams

    return SamplingParams(temperature=0, max_tokens=output_len, ignore_eos=True, detokenize=False)


def _timing(metrics: Any, output_len: int) -> RequestTiming:
    decode_s = metrics.last_token_ts - metrics.first_token_ts
    return RequestTiming(metrics.first_token_latency, decode_s / (output_len - 1) if output_len > 1 else None)
