"""The engine's own requests of random tokens: those of a workload, and those that what surrounds the layers is for."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pytest_dooly.core.batch import Batch
from pytest_dooly.core.workload import Workload
from pytest_dooly.engine.base import IsolatedCall, RequestTiming
from pytest_dooly.engine.vllm.sampling import greedy_parameters

__all__ = ["OwnRequests"]


class OwnRequests:
    """Requests that go through the whole engine: admitted, scheduled and answered by itself."""

    def __init__(self, llm: Any, *, vocab_size: int, max_model_len: int) -> None:
        """Makes no request yet.

        Args:
            llm: vLLM's engine, running.
            vocab_size: tokens that a prompt is drawn from.
            max_model_len: longest sequence, in tokens.
        """
        self._llm = llm
        self._vocab_size = vocab_size
        self._max_model_len = max_model_len

    @property
    def scheduler(self) -> Any:
        """The engine's own."""
        return self._llm.llm_engine.engine_core.engine_core.scheduler

    def generate(self, workload: Workload) -> tuple[RequestTiming, ...]:
        """The engine's own timings, in the order in which requests end; see `Session.generate`."""
        prompts = [self._prompt(workload.prompt_len) for _ in range(workload.total_reqs)]
        sampling, engine = greedy_parameters(workload.output_len), self._llm.llm_engine
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

    @contextmanager
    def aborted_at_the_end(self) -> Iterator[None]:
        """No request outlives the case that made it."""
        try:
            yield
        finally:
            self._abort_everything()

    def admission_call(self, num_tokens: int) -> IsolatedCall:
        """The admission of one request whose prompt has so many tokens, or as many as fit."""
        prompt = self._prompt(min(num_tokens, self._max_model_len - 1))
        return IsolatedCall(
            run=lambda: self._llm.enqueue([prompt], greedy_parameters(1), use_tqdm=False),
            before=self._abort_everything,
        )

    def step_call(self, batch: Batch) -> IsolatedCall:
        """A step of the engine over the batch's requests: all decode, or else it is the first of their prompts."""
        engine = self._llm.llm_engine
        decoding = all(request.query_len == 1 and request.context_len for request in batch.requests)

        def start() -> None:
            self._abort_everything()
            for request in batch.requests:
                prompt_len = request.context_len if decoding else request.query_len
                sampling = greedy_parameters(self._max_model_len - prompt_len)
                self._llm.enqueue([self._prompt(prompt_len)], sampling, use_tqdm=False)
            while decoding and not self._all_decode(batch.num_reqs):
                engine.step()

        def keep_decoding() -> None:
            if not (self._all_decode(batch.num_reqs) and self._room_for_a_token()):
                start()

        return IsolatedCall(engine.step, before=keep_decoding if decoding else start)

    def _all_decode(self, num_reqs: int) -> bool:
        running = self.scheduler.running
        return len(running) == num_reqs and all(r.num_computed_tokens >= r.num_prompt_tokens for r in running)

    def _room_for_a_token(self) -> bool:
        return all(request.num_tokens + 2 < self._max_model_len for request in self.scheduler.running)

    def _abort_everything(self) -> None:
        engine = self._llm.llm_engine
        engine.abort_request(list(engine.output_processor.request_states), internal=True)
        while engine.has_unfinished_requests():
            engine.step()

    def _prompt(self, prompt_len: int) -> dict[str, list[int]]:
        return {"prompt_token_ids": [random.randrange(1, self._vocab_size) for _ in range(prompt_len)]}


def _timing(metrics: Any, output_len: int) -> RequestTiming:
    decode_s = metrics.last_token_ts - metrics.first_token_ts
    return RequestTiming(metrics.first_token_latency, decode_s / (output_len - 1) if output_len > 1 else None)
