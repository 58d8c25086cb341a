"""A running vLLM of which single layers are taken: KV cache, metadata and inputs are the engine's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from pytest_dooly.core.batch import Batch, SweepPoint
from pytest_dooly.core.configuration import ModelConfiguration
from pytest_dooly.core.operation import GAP, LAUNCH, OperationKind
from pytest_dooly.core.signature import ModelOperation
from pytest_dooly.core.workload import Workload
from pytest_dooly.engine.base import Clock, IsolatedCall, Layer, RequestTiming
from pytest_dooly.engine.vllm.arguments import start
from pytest_dooly.engine.vllm.isolation import isolated_layer
from pytest_dooly.engine.vllm.last_level_cache import Ballast, layers_needed
from pytest_dooly.engine.vllm.parallel import COLLECTIVES
from pytest_dooly.engine.vllm.requests import OwnRequests
from pytest_dooly.engine.vllm.routing import routed_at_random
from pytest_dooly.engine.vllm.running import RunningModel
from pytest_dooly.engine.vllm.small import at_depth, written
from pytest_dooly.errors import EngineError

__all__ = ["VllmSession"]


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
            document = at_depth(configuration.document, layers_needed(configuration, isolating))
            arguments["model"] = str(self._files.enter_context(written(document)))
        self._llm = start(arguments, kv_tokens)
        self._running = RunningModel(self._llm.llm_engine.model_executor.driver_worker.worker.model_runner)
        self._files.enter_context(routed_at_random(self._running.model))
        self._ballast = Ballast(self._running.model, self._running.device)
        self.architecture = self._running.architecture
        self.collectives = COLLECTIVES
        self.limits = self._running.limits
        self._requests = OwnRequests(
            self._llm, vocab_size=self._running.vocab_size, max_model_len=self.limits.max_model_len
        )

    def modules(self) -> Iterator[tuple[str, torch.nn.Module]]:
        """Every module that a forward pass may call; see `Session.modules`."""
        return self._running.modules()

    def describe(self, module: torch.nn.Module) -> Layer | None:
        """The layer that the module is a leaf for."""
        return self._running.describe(module)

    def forward(self, batch: Batch, within: AbstractContextManager[object]) -> None:
        """Runs the model, the logits and the sampler once for real; see `Session.forward`."""
        batch = self._running.ordered(batch)
        with torch.inference_mode(), self._running.context(batch):
            self._running.forward(batch, within)

    @contextmanager
    def isolate(self, operation: ModelOperation, point: SweepPoint, clock: Clock) -> Iterator[IsolatedCall]:
        """The operation alone; see `Session.isolate`."""
        name, running, requests = operation.signature.name, self._running, self._requests
        with torch.inference_mode():
            if operation.signature.kind is not OperationKind.OVERHEAD or name == LAUNCH:
                with isolated_layer(running, operation, point, self._ballast.evict) as call:
                    yield call
            elif name == GAP:
                layer = isolated_layer(running, operation, point, self._ballast.evict)
                with running.untimed(running.leaves, clock), layer as call:
                    yield call
            elif name == "admission":
                assert point.num_tokens is not None
                with requests.aborted_at_the_end():
                    yield requests.admission_call(point.num_tokens)
            elif name == "step":
                assert point.batch is not None
                with requests.aborted_at_the_end(), running.pass_untimed(clock, self._ballast.evict):
                    yield requests.step_call(point.batch)
            else:
                raise EngineError(f"cannot isolate {name!r}: this adapter does not know that overhead")

    def time_layers(self, batch: Batch, clock: Clock) -> Mapping[str, Sequence[float]]:
        """Seconds of every layer within one forward pass; see `Session.time_layers`."""
        with torch.inference_mode():
            return self._running.time_layers(self._running.ordered(batch), clock)

    def generate(self, workload: Workload) -> tuple[RequestTiming, ...]:
        """The engine's own timings, in the order in which requests end; see `Session.generate`."""
        return self._requests.generate(workload)

    def close(self) -> None:
        """Frees what the engine holds."""
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        rendezvous = urlsplit(self._llm.llm_engine.model_executor.driver_worker.worker.distributed_init_method)
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm, self._requests, self._running, self._ballast
        cleanup_dist_env_and_memory()
        if rendezvous.scheme == "file":
            Path(rendezvous.path).unlink(missing_ok=True)  # of a single process, which vLLM leaves behind
        self._files.close()
