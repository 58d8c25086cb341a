"""A running vLLM of which single layers are taken: KV cache, metadata and inputs are the engine's own."""

from __future__ import annotations

import itertools
import json
import math
import random
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import torch
from torch.utils._pytree import tree_leaves

from pytest_dooly.core.batch import Batch, Limits, SweepPoint
from pytest_dooly.core.configuration import ModelConfiguration
from pytest_dooly.core.operation import LAUNCH, OperationKind
from pytest_dooly.core.signature import ModelOperation, Signature, fixed_size
from pytest_dooly.core.workload import Workload
from pytest_dooly.engine.base import Clock, IsolatedCall, Layer, RequestTiming, ignore
from pytest_dooly.engine.forward import ForwardObserver
from pytest_dooly.engine.halting import Halted, HaltingPass
from pytest_dooly.engine.stand_ins import Place, Recalled, Timed, Untimed, in_place_of, places_of_layers
from pytest_dooly.engine.vllm.layers import LayerCatalogue, decoder_layers, greedy_sampling, outermost_leaves
from pytest_dooly.engine.vllm.parallel import COLLECTIVES
from pytest_dooly.engine.vllm.routing import routed_as, routed_at_random
from pytest_dooly.engine.vllm.small import at_depth
from pytest_dooly.errors import EngineError

__all__ = ["VllmSession"]

# A step's context where only the number of requests matters.
_SOME_CONTEXT = 16
# Tokens up to which a whole pass is quick enough to be run for the one call of an operation in it.
_QUICK_TOKENS = 64
_CACHE_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}
# Assumed where the kernel does not say.
_USUAL_CACHE_BYTES = 32 * 2**20
# Layers beyond which more rotation costs memory and start-up for nothing.
_MAX_LAYERS = 64

_ALONE = nullcontext()


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
            arguments["model"] = str(self._with_layers(configuration, _layers_needed(configuration, isolating)))
        self._llm = _start(arguments, kv_tokens)
        self._runner = self._llm.llm_engine.model_executor.driver_worker.worker.model_runner
        self._model: torch.nn.Module = self._runner.get_model()  # out of the wrapper that replays its graphs
        self._config = self._runner.vllm_config
        self.architecture: str = self._config.model_config.architecture
        self.collectives = COLLECTIVES
        self._modules = {**dict(self._model.named_modules()), "sampler": self._runner.sampler}
        self._catalogue = LayerCatalogue(self._config.cache_config.block_size)
        self._files.enter_context(routed_at_random(self._model))
        self._leaves = [*outermost_leaves(self._model, self._catalogue.describe), self._runner.sampler]
        self._places = places_of_layers(self._model, self._runner)

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
                with self._untimed(self._leaves, clock), self._layer_call(operation, point) as call:
                    yield call
            elif name == "admission":
                with self._requests_of_its_own():
                    yield self._admission_call(point)
            elif name == "step":
                # What surrounds the forward pass is timed with it, and does not depend on what it computes.
                model = Untimed(Recalled(self._model, self._evict), clock)
                patches = mock.patch.multiple(self._runner, model=model, sampler=Untimed(self._runner.sampler, clock))
                with self._requests_of_its_own(), patches, self._untimed(self._logits_processors(), clock):
                    yield self._step_call(point)
            else:
                raise EngineError(f"cannot isolate {name!r}: this adapter does not know that overhead")

    def time_layers(self, batch: Batch, clock: Clock) -> Mapping[str, Sequence[float]]:
        """Seconds of every layer within one forward pass; see `Session.time_layers`."""
        batch = self._ordered(batch)
        paths = {id(module): path for path, module in self._modules.items()}
        leaves = {paths[id(leaf)]: leaf for leaf in self._leaves}
        decoders = dict(decoder_layers(self._model))
        calls: dict[str, list[tuple[Any, Any]]] = {path: [] for path in (*leaves, *decoders)}
        with torch.inference_mode(), self._forward_context(batch), ExitStack() as swaps:
            for path, layer in {**leaves, **decoders}.items():
                for place in self._places[id(layer)]:
                    swaps.enter_context(in_place_of(place, Timed(layer, clock, calls[path])))
            self._forward(batch)
        # Differences come last, since a device's clock waits for the device to read one.
        latencies_s = {path: [end - start for start, end in pairs] for path, pairs in calls.items()}
        for path, layer in decoders.items():
            within = {id(module) for module in layer.modules()}
            # A layer that several decoder layers share is called as often by each.
            spent_s = sum(
                sum(latencies_s[leaf]) / len(self._places[id(module)])
                for leaf, module in leaves.items()
                if id(module) in within
            )
            latencies_s[path] = [latency_s - spent_s for latency_s in latencies_s[path]]
        return latencies_s

    def generate(self, workload: Workload) -> tuple[RequestTiming, ...]:
        """The engine's own timings, in the order in which requests end; see `Session.generate`."""
        prompts = [self._prompt(workload.prompt_len) for _ in range(workload.total_reqs)]
        sampling, engine = _sampling(workload.output_len), self._llm.llm_engine
        self._llm.enqueue(prompts[: workload.concurrency], sampling, use_tqdm=False)
        following = iter(prompts[workload.concurrency :])
        timings = []
        while engine.has_unfinished_requests():
            ended = [output for output in engine.step() if output.finished]
            timings += [_timing(output.metrics, workload.output_len) for output in ended]
            arriving = list(itertools.islice(following, len(ended)))
            if arriving:
                self._llm.enqueue(arriving, sampling, use_tqdm=False)
        return tuple(timings)

    def close(self) -> None:
        """Frees what the engine holds."""
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        self._modules.clear()
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm, self._runner, self._model
        cleanup_dist_env_and_memory()
        self._files.close()

    # Isolation of layers

    @contextmanager
    def _layer_call(self, operation: ModelOperation, point: SweepPoint) -> Iterator[IsolatedCall]:
        """A layer within forward passes over one batch, which halt before each of its instances."""
        batch = self._batch(point)
        halting = HaltingPass(partial(self._forward, batch), operation.signature.label)
        halts = self._halts(operation, batch, halting)
        routing = routed_as(self._model, point) if point.routing is not None else nullcontext()
        with routing, self._forward_context(batch), closing(halting), halts as shortened:
            # A weight would stay in the cache from pass to pass where those of other layers do not evict it.
            evict = self._evict if shortened and _reads_a_matrix(operation.signature) else ignore

            def before() -> None:
                evict()
                halting.proceed()

            yield IsolatedCall(halting.call, before, self._again(halting))

    def _again(self, halting: HaltingPass) -> Callable[[], None]:
        """Evicts everything and writes the inputs of a call once more, for one that is made over and over."""
        written: list[torch.Tensor] = []

        def again() -> None:
            inputs = [value for value in tree_leaves(halting.arguments) if isinstance(value, torch.Tensor)]
            written.extend(map(torch.clone, inputs[len(written) :]))
            self._evict()
            for tensor, value in zip(inputs, written, strict=True):
                tensor.copy_(value)

        return again

    @contextmanager
    def _halts(self, operation: ModelOperation, batch: Batch, halting: HaltingPass) -> Iterator[bool]:
        """Lets the pass halt before the operation; yields whether the pass is shortened to get to it sooner."""
        layers = [self._modules[path] for path in operation.layers if path in self._modules]
        with ExitStack() as swaps:
            if not layers:
                wanted = {path for path in operation.layers if "/" in path}

                def halt(place: str, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
                    if place in wanted:
                        halting.halt(partial(function, *args, **kwargs))

                swaps.enter_context(self._observer(on_operation=halt))
                yield False
                return
            places = [place for layer in layers for place in self._places[id(layer)]]
            shortened = len(places) == 1 and batch.num_tokens > _QUICK_TOKENS
            if shortened:
                for place, layer in self._decoder_layers_without(places[0]):
                    swaps.enter_context(in_place_of(place, Recalled(layer)))
            for place in places:
                swaps.enter_context(in_place_of(place, Halted(place.layer, halting)))
            yield shortened

    def _decoder_layers_without(self, place: Place) -> Iterator[tuple[Place, torch.nn.Module]]:
        """Decoder layers that need not be computed to reach a place that only one of them leads to."""
        layers = [layer for _, layer in decoder_layers(self._model)]
        for layer in layers[:-1]:
            if all(module is not place.layer for module in layer.modules()):
                yield self._places[id(layer)][0], layer

    def _evict(self) -> None:
        self._ballast.add_(1)

    @cached_property
    def _ballast(self) -> torch.Tensor:
        """What evicts from the last-level cache, when it is written to, as much as a pass over the model does."""
        weights = sum(weight.nbytes for weight in self._model.parameters())
        size = min(weights, 2 * _last_level_cache_bytes())
        return torch.zeros(size, dtype=torch.uint8, device=self._runner.device)

    def _observer(
        self, on_layer: Callable[..., None] = ignore, on_operation: Callable[..., None] = ignore
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
        with ExitStack() as swaps:
            for layer in layers:
                for place in self._places[id(layer)]:
                    swaps.enter_context(in_place_of(place, Untimed(layer, clock)))
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


def _layers_needed(configuration: ModelConfiguration, operations: Sequence[ModelOperation]) -> int:
    """Layers that hold every operation, and enough weights that none stays in the cache between two uses.

    No more than the model has: what stays in the cache between two steps of the model itself is warm there too.
    """
    last = max((int(part) for o in operations for part in o.layers[0].split(".") if part.isdigit()), default=0)
    layer_bytes = sum(
        2 * fixed_size(shape)
        for operation in operations
        if len(operation.layers) > 1
        for role, _, shape in operation.signature.tensors
        if role.endswith("weight") and len(shape) > 1
    )
    rotation = math.ceil(2 * _last_level_cache_bytes() / max(1, layer_bytes))
    affordable = psutil.virtual_memory().available // 3 // max(1, layer_bytes)
    depth = configuration.document.get("num_hidden_layers", _MAX_LAYERS)
    return max(last + 1, min(rotation, affordable, depth, _MAX_LAYERS))


def _reads_a_matrix(signature: Signature) -> bool:
    """Whether the kernel reads a whole weight, of which an embedding reads some rows."""
    matrix = any(role.endswith("weight") and len(shape) > 1 for role, _, shape in signature.tensors)
    return matrix and signature.kind is not OperationKind.EMBEDDING


def _last_level_cache_bytes() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).L2_cache_size)
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(size[:-1]) * _CACHE_UNITS[size[-1]] for size in sizes), default=_USUAL_CACHE_BYTES)


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


def _sampling(output_len: int) -> Any:
    from vllm import SamplingParams

    return SamplingParams(temperature=0, max_tokens=output_len, ignore_eos=True, detokenize=False)


def _timing(metrics: Any, output_len: int) -> RequestTiming:
    decode_s = metrics.last_token_ts - metrics.first_token_ts
    return RequestTiming(metrics.first_token_latency, decode_s / (output_len - 1) if output_len > 1 else None)
