"""A small engine in plain PyTorch behind the same protocol: for tests, and to try things out without vLLM.

It serves decoder models of the Llama shape on the CPU: a real model with real timings, but no serving engine's. Of
device cuda it has as many as CUDA_VISIBLE_DEVICES names, all of them the CPU in truth.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from pytest_dooly.core.batch import Batch, Limits, SweepPoint
from pytest_dooly.core.configuration import ModelConfiguration
from pytest_dooly.core.environment import PERF_COUNTER, Environment
from pytest_dooly.core.operation import Operation, OperationKind
from pytest_dooly.core.signature import ModelOperation
from pytest_dooly.core.workload import Workload
from pytest_dooly.engine.accelerators import visible
from pytest_dooly.engine.base import (
    Clock,
    IsolatedCall,
    Layer,
    Origins,
    RequestTiming,
    Session,
    Skeleton,
    TrafficServer,
)
from pytest_dooly.errors import ConfigurationError, EngineError
from pytest_dooly.scheduling.clock import Server, run
from pytest_dooly.scheduling.native import NativeScheduler
from pytest_dooly.scheduling.scheduler import Scheduled, Scheduler, SchedulerOptions, room_for_all

__all__ = ["FakeEngine"]

_SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "vocab_size")

_ALONE = nullcontext()

_ACCELERATORS = 8
"""That the engine has of device cuda, where CUDA_VISIBLE_DEVICES names none."""


class FakeEngine:
    """Plain PyTorch in place of a serving engine."""

    name = "fake"
    version = "1"

    def environment(self, configuration: ModelConfiguration) -> Environment:
        """What latencies measured here are true for."""
        accelerated = configuration.options.device == "cuda"
        return Environment(
            device="fake accelerator" if accelerated else "fake CPU",
            device_count=configuration.options.tensor_parallel_size if accelerated else torch.get_num_threads(),
            driver="none",
            engine=self.name,
            engine_version=self.version,
            torch_version=torch.__version__,
            clock=PERF_COUNTER,
            cache_mode="warm",
            execution=configuration.options.execution_on("cpu"),
        )

    def absent_device(self, configuration: ModelConfiguration) -> str | None:
        """None: it runs on whatever is here."""
        return None

    def accelerators(self, configuration: ModelConfiguration) -> tuple[str, ...]:
        """As many as CUDA_VISIBLE_DEVICES names, for device cuda; see `Engine.accelerators`."""
        return visible(lambda: _ACCELERATORS) if configuration.options.device == "cuda" else ()

    def prepare(self) -> None:
        """Nothing is left to import."""

    @contextmanager
    def skeleton(self, configuration: ModelConfiguration, origins: Origins) -> Iterator[Skeleton]:
        """The model without weights; see `Engine.skeleton`."""
        sizes = {name: origins.plant(name, size) for name, size in _sizes(configuration).items()}
        with origins.building():
            model = _Model(sizes, configuration.document["num_hidden_layers"])
        yield _FakeSkeleton(model, _limits(configuration))

    @contextmanager
    def small(self, configuration: ModelConfiguration) -> Iterator[ModelConfiguration]:
        """The model itself: none of them is large."""
        yield configuration

    def open(
        self, configuration: ModelConfiguration, *, isolating: Sequence[ModelOperation] = (), kv_tokens: int = 0
    ) -> Session:
        """A running model; see `Engine.open`."""
        depth = configuration.document["num_hidden_layers"]
        return _FakeSession(_Model(_sizes(configuration), depth), _limits(configuration))

    def scheduler(self, options: SchedulerOptions) -> Scheduler:
        """None; see `Engine.scheduler`."""
        raise EngineError("the fake engine has no scheduler of its own: use the native one, or the engine vllm")

    def server(self, configuration: ModelConfiguration, *, port: int = 0) -> TrafficServer:
        """None; see `Engine.server`."""
        raise EngineError("the fake engine has no server of its own: use the engine vllm")


class _FakeSkeleton:
    def __init__(self, model: _Model, limits: Limits) -> None:
        self.architecture = "FakeForCausalLM"
        self.limits = limits
        self.collectives: Mapping[str, str] = {}
        self._model = model

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        yield from self._model.named_modules()

    def describe(self, module: nn.Module) -> Layer | None:
        return _describe(module)

    def decoder_layers(self) -> Iterator[tuple[str, nn.Module, Hashable]]:
        yield from ((f"layers.{i}", layer, "layer") for i, layer in enumerate(self._model.layers))

    def forward(self, num_tokens: int | torch.SymInt, num_reqs: int | torch.SymInt) -> None:
        hidden = self._model(torch.empty(num_tokens, dtype=torch.int64))
        self._model.sampler(self._model.lm_head(hidden.new_empty((num_reqs, hidden.shape[-1]))))

    def overheads(self) -> Sequence[Operation]:
        return (Operation(OperationKind.OVERHEAD, "step", (), (), (("swept", "batch"),), ""),)


class _FakeSession:
    def __init__(self, model: _Model, limits: Limits) -> None:
        self.architecture = "FakeForCausalLM"
        self.collectives: Mapping[str, str] = {}
        self._model = model
        self._limits = limits
        self._modules = dict(model.named_modules())

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        yield from self._model.named_modules()

    def describe(self, module: nn.Module) -> Layer | None:
        return _describe(module)

    def forward(self, batch: Batch, within: AbstractContextManager[object]) -> None:
        with torch.inference_mode():
            self._step(batch, within)

    @contextmanager
    def isolate(self, operation: ModelOperation, point: SweepPoint, clock: Clock) -> Iterator[IsolatedCall]:
        with torch.inference_mode():
            if operation.signature.kind is OperationKind.OVERHEAD:
                yield IsolatedCall(lambda: _bookkeeping(point.batch))
                return
            layers = [self._modules[path] for path in operation.layers if path in self._modules]
            for layer in layers:
                layer.batch = point.batch
            rotation = itertools.cycle(layers or [_operator(operation)])
            arguments = _inputs(operation, point)
            yield IsolatedCall(lambda: next(rotation)(*arguments))

    def time_layers(self, batch: Batch, clock: Clock) -> Mapping[str, Sequence[float]]:
        calls: dict[str, list[tuple[Any, Any]]] = {}
        hooks = ExitStack()
        for path, module in self._modules.items():
            if _describe(module) is not None:
                pairs = calls.setdefault(path, [])
                enter = module.register_forward_pre_hook(lambda *_, pairs=pairs: pairs.append((clock.now(), None)))
                leave = module.register_forward_hook(
                    lambda *_, pairs=pairs: pairs.append((pairs.pop()[0], clock.now()))
                )
                hooks.callback(enter.remove)
                hooks.callback(leave.remove)
        with torch.inference_mode(), hooks:
            self._step(batch)
        return {path: [end - start for start, end in pairs] for path, pairs in calls.items()}

    def generate(self, workload: Workload) -> tuple[RequestTiming, ...]:
        scheduler = NativeScheduler(SchedulerOptions(self._limits, room_for_all(self._limits), async_scheduling=False))
        with torch.inference_mode():
            served = run(workload.traffic(), scheduler, self, Server(async_scheduling=False))
        pairs = zip(served.ttft_s.tolist(), served.tpot_s.tolist(), strict=True)
        return tuple(RequestTiming(ttft_s, tpot_s if workload.output_len > 1 else None) for ttft_s, tpot_s in pairs)

    def step_s(self, step: Scheduled) -> float:
        """Seconds that the step took, here and now; see `StepLatency`."""
        begin_s = time.perf_counter()
        self._step(step.batch)
        return time.perf_counter() - begin_s

    def close(self) -> None:
        self._modules.clear()

    def _step(self, batch: Batch, within: AbstractContextManager[object] = _ALONE) -> None:
        _bookkeeping(batch)
        for module in self._model.modules():
            module.batch = batch
        ids = torch.ones(batch.num_tokens, dtype=torch.int64)
        with within:
            hidden = self._model(ids)
            self._model.sampler(self._model.lm_head(hidden[: batch.num_reqs]))


class _Norm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight


class _Attention(nn.Module):
    """Attention over random keys and values of each request's context."""

    def __init__(self, num_heads: int, num_kv_heads: int, head_size: int) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_size = num_heads, num_kv_heads, head_size
        self.batch: Batch | None = None

    def forward(self, query: torch.Tensor) -> torch.Tensor:
        if self.batch is None:
            return torch.empty_like(query)
        outputs = []
        for request, rows in zip(
            self.batch.requests, query.split([r.query_len for r in self.batch.requests]), strict=True
        ):
            q = rows.view(request.query_len, self.num_heads, self.head_size).transpose(0, 1)
            keys = q.new_ones(self.num_heads, request.seq_len, self.head_size)
            attended = nn.functional.scaled_dot_product_attention(q, keys, keys)
            outputs.append(attended.transpose(0, 1).reshape(request.query_len, -1))
        return torch.cat(outputs)


class _Sampler(nn.Module):
    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.argmax(-1)


class _Layer(nn.Module):
    def __init__(self, sizes: Mapping[str, int]) -> None:
        super().__init__()
        hidden, heads, kv_heads = (
            sizes[name] for name in ("hidden_size", "num_attention_heads", "num_key_value_heads")
        )
        head_size = hidden // heads
        self.norm = _Norm(hidden)
        self.qkv_proj = nn.Linear(hidden, heads * head_size + 2 * kv_heads * head_size, bias=False)
        self.attn = _Attention(heads, kv_heads, head_size)
        self.o_proj = nn.Linear(heads * head_size, hidden, bias=False)
        self.up_proj = nn.Linear(hidden, sizes["intermediate_size"], bias=False)
        self.act = nn.SiLU()
        self.down_proj = nn.Linear(sizes["intermediate_size"], hidden, bias=False)
        self.q_size = heads * head_size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = self.qkv_proj(self.norm(x))
        x = x + self.o_proj(self.attn(qkv[:, : self.q_size]))
        return x + self.down_proj(self.act(self.up_proj(self.norm(x))))


class _Model(nn.Module):
    def __init__(self, sizes: Mapping[str, int], num_layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(sizes["vocab_size"], sizes["hidden_size"])
        self.layers = nn.ModuleList(_Layer(sizes) for _ in range(num_layers))
        self.lm_head = nn.Linear(sizes["hidden_size"], sizes["vocab_size"], bias=False)
        self.sampler = _Sampler()
        self.requires_grad_(False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.embed(ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


def _describe(module: nn.Module) -> Layer | None:
    weights = dict(module.named_parameters(recurse=False))
    if isinstance(module, _Attention):
        names = ("head_size", "num_heads", "num_kv_heads")
        attributes = tuple((name, int(getattr(module, name))) for name in names)
        return Layer(OperationKind.ATTENTION, "attention", attributes)
    kinds: dict[type[nn.Module], tuple[OperationKind, str]] = {
        nn.Linear: (OperationKind.LINEAR, "linear"),
        nn.Embedding: (OperationKind.EMBEDDING, "embedding"),
        nn.SiLU: (OperationKind.ACTIVATION, "silu"),
        _Norm: (OperationKind.NORM, "rms_norm"),
        _Sampler: (OperationKind.SAMPLER, "sampler"),
    }
    kind, name = kinds.get(type(module), (None, ""))
    return Layer(kind, name, (), weights) if kind else None


def _operator(operation: ModelOperation) -> Callable[..., object]:
    namespace, _, name = operation.signature.name.partition(".")
    packet = getattr(getattr(torch.ops, namespace), name, None)
    if packet is None:
        raise EngineError(f"no layer {operation.layers[0]!r} and no operator {operation.signature.name!r} to isolate")
    return getattr(packet, dict(operation.signature.attributes)["overload"])  # type: ignore[arg-type]


def _inputs(operation: ModelOperation, point: SweepPoint) -> list[torch.Tensor]:
    num_tokens = point.batch.num_tokens if point.batch else point.num_tokens or point.num_reqs or 1
    arguments = []
    for role, dtype, shape in operation.signature.tensors:
        if role in ("weight", "bias"):
            continue
        size = [dim if isinstance(dim, int) else num_tokens for dim in shape]
        arguments.append(torch.ones(size, dtype=torch.int64) if dtype == "int64" else torch.randn(size))
    return arguments


def _bookkeeping(batch: Batch | None) -> None:
    """What stands for a scheduler: work that grows with the requests."""
    sum(request.seq_len for request in batch.requests * 50) if batch else None


def _sizes(configuration: ModelConfiguration) -> dict[str, int]:
    missing = [name for name in (*_SIZES, "num_hidden_layers") if not isinstance(configuration.document.get(name), int)]
    if missing:
        raise ConfigurationError(f"the fake engine needs {', '.join(missing)} in config.json of {configuration.name}")
    return {name: configuration.document[name] for name in _SIZES}


def _limits(configuration: ModelConfiguration) -> Limits:
    options = configuration.options
    longest = options.max_model_len or configuration.document.get("max_position_embeddings", 2048)
    return Limits(options.max_num_tokens or min(longest, 512), options.max_num_seqs or 8, longest)
