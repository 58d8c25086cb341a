"""The steps that vLLM's scheduler makes of a workload."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pytest_dooly.core.batch import Batch, Limits
from pytest_dooly.core.workload import Workload
from pytest_dooly.errors import ConfigurationError

__all__ = ["Run", "ScheduledStep", "schedule", "scheduled_runs"]


@dataclass(frozen=True)
class ScheduledStep:
    """One step of the virtual scheduler.

    Attributes:
        batch: what the step works on.
        first: number of the requests (0 is the first to arrive) that get their first token at its end.
        last: number of the requests that get their last token at its end.
        arriving: number of the requests that arrive then, in place of those.
    """

    batch: Batch
    first: tuple[int, ...]
    last: tuple[int, ...]
    arriving: tuple[int, ...]


def schedule(workload: Workload, limits: Limits) -> Iterator[ScheduledStep]:
    """The steps that vLLM's V1 scheduler makes of a workload.

    Each step first gives every running request what it lacks, a decode one token and a begun prompt its next chunk,
    then admits waiting requests in the order of arrival, while max_num_tokens and max_num_seqs allow.

    Raises:
        ConfigurationError: a request would be longer than max_model_len.
    """
    for run in scheduled_runs(workload, limits):
        for i in range(run.steps):
            batch = Batch.of((query_len, context_len + i) for query_len, context_len in run.parts)
            at_end = i == run.steps - 1
            yield ScheduledStep(batch, run.first, run.last if at_end else (), run.arriving if at_end else ())


@dataclass(frozen=True)
class Run:
    """Steps in a row that do the same: one of any kind, or several in which the same requests all decode.

    Attributes:
        parts: (query_len, context_len) of each request in the first step; contexts grow by one each further step.
        steps: number of them.
        first: requests that get their first token at the end; then there is one step.
        last: requests that get their last token at the end.
        arriving: requests that arrive then, in place of those.
    """

    parts: tuple[tuple[int, int], ...]
    steps: int
    first: tuple[int, ...]
    last: tuple[int, ...]
    arriving: tuple[int, ...]


def scheduled_runs(workload: Workload, limits: Limits) -> Iterator[Run]:
    """As `schedule`, with decodes that nothing interrupts taken together."""
    prompt_len, output_len = workload.prompt_len, workload.output_len
    if prompt_len + output_len > limits.max_model_len:
        raise ConfigurationError(
            f"prompt and output of {prompt_len} + {output_len} tokens exceed max_model_len {limits.max_model_len}"
        )
    running, admitted, arrived = list[int](), 0, workload.concurrency
    computed = [0] * workload.total_reqs
    while running or admitted < arrived:
        seats = range(admitted, min(arrived, admitted + limits.max_num_seqs - len(running)))
        budget, served, parts = limits.max_num_tokens, list[int](), list[tuple[int, int]]()
        for request in (*running, *seats):
            query_len = min(budget, max(1, prompt_len - computed[request]))
            if query_len == 0:
                break
            served.append(request)
            parts.append((query_len, computed[request]))
            budget -= query_len
            computed[request] += query_len
        running += served[len(running) :]
        admitted = max(admitted, *(request + 1 for request in served))
        generated = {request: computed[request] - prompt_len + 1 for request in served}
        first = tuple(request for request, tokens in generated.items() if tokens == 1)
        more = 0
        if len(served) == len(running) and min(generated.values()) > 1:  # nothing but decodes, until one has its last
            more = output_len - max(generated.values())
            for request in served:
                computed[request] += more
        last = tuple(request for request, tokens in generated.items() if tokens + more == output_len)
        running = [request for request in running if request not in last]
        arriving = tuple(range(arrived, min(workload.total_reqs, arrived + len(last))))
        arrived += len(arriving)
        yield Run(tuple(parts), 1 + more, first, last, arriving)
