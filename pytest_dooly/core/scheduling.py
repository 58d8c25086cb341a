"""What a scheduler is asked and answers: requests wait, get tokens of a step, end; the engine's own or a native one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pytest_dooly.core.batch import Limits
from pytest_dooly.core.traffic import TrafficRequest
from pytest_dooly.errors import ConfigurationError

__all__ = ["Scheduled", "Scheduler", "SchedulerOptions", "blocks_for_all"]


@dataclass(frozen=True)
class SchedulerOptions:
    """How an engine schedules, by vLLM's names.

    Attributes:
        limits: most tokens and requests of a step, most tokens of a request.
        num_blocks: of the KV cache, one of which vLLM keeps for itself.
        block_size: tokens in one block.
        prefix_caching: whether blocks of prompts that begin alike are shared.
        priority: serve smaller priorities first and preempt the largest, in place of the order of arrival.
        long_prefill_token_threshold: most tokens of one prompt in a step where others are there; 0 for no bound.
        async_scheduling: whether a step is scheduled while the one before runs.
    """

    limits: Limits
    num_blocks: int
    block_size: int = 16
    prefix_caching: bool = True
    priority: bool = False
    long_prefill_token_threshold: int = 0
    async_scheduling: bool = True

    def __post_init__(self) -> None:
        needed = 1 + -(-self.limits.max_model_len // self.block_size)
        if self.num_blocks < needed:
            raise ConfigurationError(
                f"{self.num_blocks} KV blocks of {self.block_size} tokens do not hold one request of "
                f"max_model_len {self.limits.max_model_len}: it takes {needed}; lower max_model_len"
            )


def blocks_for_all(limits: Limits, block_size: int) -> int:
    """KV blocks that all requests of a step have room in at their full length: nothing is ever preempted."""
    return 1 + limits.max_num_seqs * -(-limits.max_model_len // block_size)


@dataclass(frozen=True, slots=True)
class Scheduled:
    """What one step works on.

    Attributes:
        requests: places of the requests in the traffic, in the order of the batch.
        query_lens: new tokens of each.
        context_lens: tokens of each in the KV cache before the step.
        sampling: those of the requests that get a token at the end of the step.
        preempted: those that were thrown out to make room since the step before, in ascending order.
    """

    requests: Sequence[int]
    query_lens: Sequence[int]
    context_lens: Sequence[int]
    sampling: Sequence[int]
    preempted: Sequence[int] = ()


class Scheduler(Protocol):
    """The order in which requests are served, without anything being computed.

    With asynchronous scheduling, `schedule` is called once more before `update` is called with the step before.
    """

    def add(self, place: int, request: TrafficRequest) -> None:
        """Lets a request wait; its place in the traffic names it from now on."""

    def schedule(self) -> Scheduled | None:
        """The next step; None where there is nothing to do until a request comes or a step ends."""

    def update(self, step: Scheduled) -> Sequence[int]:
        """Takes note of a step's end; returns the places of the requests that have their last token."""

    @property
    def num_waiting(self) -> int:
        """Requests that wait to be admitted, preempted ones included."""

    @property
    def num_running(self) -> int:
        """Requests that are admitted and have not ended."""

    @property
    def used_blocks(self) -> int:
        """KV blocks that admitted requests hold."""

    def cached_tokens(self, place: int) -> int:
        """Tokens of a request's prompt that were found in the prefix cache when it was first admitted."""
