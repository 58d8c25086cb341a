"""Step times for any simulator that asks for one step after the other; what `pytest_dooly.backend` is."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from operator import index
from pathlib import Path
from typing import NamedTuple, NoReturn

from pytest_dooly.core.batch import Request
from pytest_dooly.core.configuration import ServingOptions
from pytest_dooly.core.environment import Environment
from pytest_dooly.core.routing import TRAINED, RoutingDistribution
from pytest_dooly.core.signature import ServedModel
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.prediction.step_times import StepTimes

__all__ = ["Backend", "backend"]

_REMEMBERED = 1 << 16
"""Steps that are kept: a simulator that searches for a rate asks for the same ones again."""


class _Shape(NamedTuple):
    """All of a step that its latency depends on; equal for steps that take equally long."""

    num_decodes: int
    decode_tokens: int
    chunks: tuple[tuple[int, int], ...]
    num_tokens: int


class Backend:
    """Seconds of any engine step of one model on one device, from tables that are filled once.

    A step is its requests: `(query_len, context_len)` of each, new tokens and those in the KV cache before. It may be
    pickled: a worker process gets the tables, and needs no latency DB.

    Attributes:
        model: what is served, with the limits of a step.
    """

    def __init__(self, times: StepTimes) -> None:
        self.model: ServedModel = times.model
        self._times = times
        self._shape_s = lru_cache(_REMEMBERED)(self._looked_up_s)

    def __reduce__(self) -> tuple[type[Backend], tuple[StepTimes]]:
        return type(self), (self._times,)

    def step_s(self, step: Iterable[tuple[int, int]]) -> float:
        """Seconds of one step.

        Args:
            step: query_len and context_len of each request, in any order.

        Raises:
            ConfigurationError: the step is empty, a length is out of range, or the step goes beyond the limits that
                the model is served with.
        """
        num_decodes = decode_tokens = longest = 0
        chunks = []
        try:
            for request in step:
                query_len, context_len = request
                if query_len == 1 and context_len > 0:
                    num_decodes += 1
                    decode_tokens += context_len
                    if context_len > longest:
                        longest = context_len
                else:
                    chunks.append((query_len, context_len))
            if longest >= self.model.limits.max_model_len:
                self._refuse_request(1, longest)
            return self._shape_s(num_decodes, decode_tokens, *chunks)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(
                f"a step is (query_len, context_len) of each request, in whole numbers, as in [(1, 512)]: {error}"
            ) from error

    def steps_s(self, steps: Iterable[Iterable[tuple[int, int]]]) -> list[float]:
        """Seconds of each of many steps, as `step_s` has them.

        Raises:
            ConfigurationError: as in `step_s`.
        """
        return [self.step_s(step) for step in steps]

    def out_of_range(self) -> tuple[str, ...]:
        """One line for each operation that the widest steps asked for lie outside of the known range of.

        A worker's copy has tables alone, and says nothing of this.
        """
        return self._times.out_of_range()

    def _looked_up_s(self, num_decodes: int, decode_tokens: int, *chunks: tuple[int, int]) -> float:
        limits, num_tokens, num_reqs = self.model.limits, num_decodes, num_decodes + len(chunks)
        for query_len, context_len in chunks:
            seq_len = index(query_len) + index(context_len)
            if query_len < 1 or context_len < 0 or seq_len > limits.max_model_len:
                self._refuse_request(query_len, context_len)
            num_tokens += query_len
        if not num_reqs:
            raise ConfigurationError("a step needs at least one request, got none")
        if num_tokens > limits.max_num_tokens:
            raise self._beyond("step", "tokens", num_tokens, "max_num_tokens")
        if num_reqs > limits.max_num_seqs:
            raise self._beyond("step", "requests", num_reqs, "max_num_seqs")
        return self._times.step_s(_Shape(num_decodes, index(decode_tokens), chunks, num_tokens))

    def _refuse_request(self, query_len: int, context_len: int) -> NoReturn:
        seq_len = Request(query_len, context_len).seq_len
        raise self._beyond("request", "tokens", seq_len, "max_model_len")

    def _beyond(self, what: str, of: str, size: int, limit: str) -> ConfigurationError:
        most = getattr(self.model.limits, limit)
        return ConfigurationError(
            f"a {what} of {size:,} {of} is beyond {limit} {most:,}, which {self.model.name} is served with: "
            f"bound the simulator's {what}s, or serve the model with more"
        )


def backend(
    model: str,
    *,
    device: str | None = None,
    db: str | Path = ".dooly/latency.db",
    options: ServingOptions | None = None,
    environment: Environment | None = None,
    routing: str | RoutingDistribution = TRAINED,
) -> Backend:
    """Step times of a model of a latency DB, for a simulator that has its own scheduler.

    Args:
        model: name that it was profiled or planned by.
        device: as in `predict`; there the engine prepares a step while the device works on the one before.
        db: path of the latency DB.
        options: as in `predict`.
        environment: as in `predict`.
        routing: as in `predict`.

    Raises:
        ConfigurationError: the device is unknown, or the routing cannot be read.
        DatabaseError: there is no latency DB, or it cannot be read.
        MissingMeasurements: as in `predict`.
    """
    # pandas, which a process that is sent a back end does without.
    from pytest_dooly.latency_db.db import LatencyDB
    from pytest_dooly.prediction.forecast import known

    with LatencyDB.open(Path(db), create=False) as opened:
        served, models = known(opened, model, options, device=device, environment=environment)
    spread = RoutingDistribution.parse(routing) if isinstance(routing, str) else routing
    return Backend(StepTimes(served, models, routing=spread, overlapped=device is not None))
