"""Whole steps, timed for real in a running engine; what the fixture `dooly_measure` is."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any, Self

from pytest_dooly.core.batch import Batch, SweepPoint
from pytest_dooly.core.measurement import Measurement
from pytest_dooly.core.operation import STEP, OperationKind
from pytest_dooly.core.signature import ServedModel
from pytest_dooly.core.workload import Workload
from pytest_dooly.engine.base import Clock, RequestTiming, Session
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.sweep.grid import kv_tokens, within
from pytest_dooly.timing.alone import time_alone
from pytest_dooly.timing.clock import Clocks
from pytest_dooly.timing.measure import PRECISION, Settled

__all__ = ["StepTimer"]

_SHORT_CONTEXT = 16
"""Tokens; the engine's own share of a step hardly depends on contexts, which would first have to be computed."""


class StepTimer:
    """Times steps of one model in the engine; the same step is timed once and then remembered.

    What a step takes is its forward pass, logits and sampler included, on random tokens, and the engine's own share
    around it, timed alone. On a GPU the pass is launched layer by layer, graphs or not.

    Attributes:
        served: operations and limits.
    """

    def __init__(
        self, served: ServedModel, session: Callable[[], Session], clocks: Clocks, *, precision: float = PRECISION
    ) -> None:
        """Starts no engine yet.

        Args:
            served: the model.
            session: gives a session of the whole model; asked again before every step.
            clocks: of its environment.
            precision: half the relative width of the median's confidence interval at which a step is timed enough.
        """
        self.served = served
        self._session, self._clocks, self._precision = session, clocks, precision
        self._timed: dict[Batch, Measurement] = {}

    def __repr__(self) -> str:
        return f"<{self.served.name}, timed>"  # shown by pytest and hypothesis beside every failing example

    def __call__(self, batch: str | Batch) -> float:
        """Median seconds of one engine step.

        Args:
            batch: what it works on, as a Batch or as text (`8x1+512,128`).

        Raises:
            ConfigurationError: the text is no batch, or it goes beyond what the engine was started for.
            EngineError: the engine does not start.
        """
        return self.measure(batch).median_s

    def measure(self, batch: str | Batch) -> Measurement:
        """The statistics of all rounds; raises as a call."""
        asked = Batch.parse(batch) if isinstance(batch, str) else batch
        if asked not in self._timed:
            self._check(asked)
            self._timed[asked] = self._measured(asked)
        return self._timed[asked]

    def workload(self, workload: Workload) -> tuple[RequestTiming, ...]:
        """TTFT and TPOT of every request in seconds, by the engine itself; not remembered.

        Raises:
            ConfigurationError: a request would be longer than max_model_len.
            EngineError: the engine does not start.
        """
        length, most = workload.prompt_len + workload.output_len, self.served.limits.max_model_len
        if length > most:
            raise ConfigurationError(f"prompt and output of {length} tokens exceed max_model_len {most}")
        return self._session().generate(workload)

    def _measured(self, batch: Batch) -> Measurement:
        session, spans = self._session(), _Spans(self._clocks.of_layers)
        settled, samples_s = Settled(self._precision), list[float]()
        session.forward(batch, spans)  # none of the rounds is the first
        while not settled(samples_s):
            spans.forget()
            session.forward(batch, spans)
            samples_s.append(spans.seconds())
        own_s = self._own_share_s(session, batch)
        return Measurement.of([sample_s + own_s for sample_s in samples_s])

    def _own_share_s(self, session: Session, batch: Batch) -> float:
        """Median seconds that the engine takes around the pass."""
        point, total_s = SweepPoint(batch=self._like(batch)), 0.0
        for operation in self.served.operations:
            signature = operation.signature
            if signature.kind is OperationKind.OVERHEAD and signature.name == STEP:
                rounds = time_alone(session, operation, point, self._clocks, Settled(self._precision))
                total_s += statistics.median(rounds)
        return total_s

    def _like(self, batch: Batch) -> Batch:
        """A batch of as many requests and tokens whose decodes have short contexts."""
        context_len = min(_SHORT_CONTEXT, self.served.limits.max_model_len - 1)
        if all(request.query_len == 1 and request.context_len for request in batch.requests):
            return Batch.uniform(batch.num_reqs, 1, context_len)
        return Batch.of((request.query_len, 0) for request in batch.requests)

    def _check(self, batch: Batch) -> None:
        limits = self.served.limits
        if not within(batch, limits):
            raise ConfigurationError(
                f"the batch {batch} goes beyond what the engine is started for: {limits.max_num_tokens:,} tokens and "
                f"{limits.max_num_seqs:,} requests a step, {limits.max_model_len:,} tokens a request and "
                f"{kv_tokens(limits):,} in the KV cache; draw batches of dooly_model's limits"
            )


class _Spans:
    """A context that is entered more than once, and adds up the time within."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._spans: list[tuple[Any, Any]] = []
        self._start: Any = None

    def __enter__(self) -> Self:
        self._start = self._clock.now()
        return self

    def __exit__(self, *exception: object) -> None:
        self._spans.append((self._start, self._clock.now()))

    def forget(self) -> None:
        self._spans.clear()

    def seconds(self) -> float:
        """All of it; waits for the device."""
        return float(sum(end - start for start, end in self._spans))
