"""What a scheduler is asked and answers: requests wait, get tokens of a step, end; the engine's own or a native one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pytest_dooly.core.batch import Batch, Limits
from pytest_dooly.core.traffic import TrafficRequest
from pytest_dooly.errors import ConfigurationError

__all__ = ["Decodes", "Scheduled", "Scheduler", "SchedulerOptions", "Together", "room_for_all"]


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
        state_blocks: that a request takes besides those of its tokens: what state-space mixers keep of it, however
            long it is. vLLM's own scheduler is told of none.
        engines: that share a mixture's experts and so step together; all else is of each.
    """

    limits: Limits
    num_blocks: int
    block_size: int = 16
    prefix_caching: bool = True
    priority: bool = False
    long_prefill_token_threshold: int = 0
    async_scheduling: bool = True
    state_blocks: int = 0
    engines: int = 1

    def __post_init__(self) -> None:
        needed = 1 + -(-self.limits.max_model_len // self.block_size) + self.state_blocks
        if self.num_blocks < needed:
            raise ConfigurationError(
                f"{self.num_blocks} KV blocks of {self.block_size} tokens do not hold one request of "
                f"max_model_len {self.limits.max_model_len}: it takes {needed}; lower max_model_len"
            )

    def held(self, tokens: float) -> float:
        """Requests of so many tokens that the blocks of one engine hold at once, where they share none.

        Args:
            tokens: of each in the KV cache.
        """
        return (self.num_blocks - 1) * self.block_size / (tokens + self.state_blocks * self.block_size)


@dataclass(frozen=True, slots=True)
class Decodes:
    """Requests that get one token in step after step, so that their contexts grow as one.

    Attributes:
        members: place in the traffic of each, in the order of the batch, and context length before step 0.
        steps: number of the step.
        tokens: context lengths in this step, all together.
    """

    members: Sequence[tuple[int, int]] = ()
    steps: int = 0
    tokens: int = 0

    @property
    def requests(self) -> list[int]:
        """Their places."""
        return [place for place, _ in self.members]

    @property
    def context_lens(self) -> list[int]:
        """Tokens of each in the KV cache before the step."""
        return [before + self.steps for _, before in self.members]


class Scheduled:
    """What one step works on.

    Attributes:
        preempted: places of the requests that were thrown out to make room since the step before, in ascending order.
        num_decodes: how many requests get one more token.
        decode_tokens: tokens in the KV caches of those, all together.
        chunks: query_len and context_len of every stretch of a prompt.
        num_tokens: new tokens of all requests.
        others: places of the requests that have not been decoding together for a step; all new ones are among them.
        others_sampling: those of them that get a token at the end of the step.
    """

    __slots__ = (
        "_context_lens",
        "_decodes",
        "_query_lens",
        "chunks",
        "decode_tokens",
        "num_decodes",
        "num_tokens",
        "others",
        "others_sampling",
        "preempted",
    )

    def __init__(
        self,
        requests: Sequence[int],
        query_lens: Sequence[int],
        context_lens: Sequence[int],
        sampling: Sequence[int],
        preempted: Sequence[int] = (),
        *,
        decodes: Decodes = Decodes(),
    ) -> None:
        """A step.

        Args:
            requests: places of the requests in the traffic, in the order of the batch.
            query_lens: new tokens of each.
            context_lens: tokens of each in the KV cache before the step.
            sampling: those of the requests that get a token at the end of the step.
            preempted: as above.
            decodes: requests before these, which all get a token; they are listed when somebody asks for it.
        """
        self.others, self.others_sampling, self.preempted = requests, sampling, preempted
        self._query_lens, self._context_lens, self._decodes = query_lens, context_lens, decodes
        number, tokens, chunks = len(decodes.members), decodes.tokens, list[tuple[int, int]]()
        for query_len, context_len in zip(query_lens, context_lens, strict=True):
            if query_len == 1 and context_len:
                number += 1
                tokens += context_len
            else:
                chunks.append((query_len, context_len))
        self.num_decodes, self.decode_tokens, self.chunks = number, tokens, chunks
        self.num_tokens = number + sum(query_len for query_len, _ in chunks)

    @property
    def requests(self) -> Sequence[int]:
        """Places of the requests in the traffic, in the order of the batch."""
        return [*self._decodes.requests, *self.others]

    @property
    def query_lens(self) -> Sequence[int]:
        """New tokens of each."""
        return [*[1] * len(self._decodes.members), *self._query_lens]

    @property
    def context_lens(self) -> Sequence[int]:
        """Tokens of each in the KV cache before the step."""
        return [*self._decodes.context_lens, *self._context_lens]

    @property
    def sampling(self) -> Sequence[int]:
        """Those of the requests that get a token at the end of the step."""
        return [*self._decodes.requests, *self.others_sampling]

    @property
    def batch(self) -> Batch:
        """The same as the engine's adapters and the predictor take it."""
        return Batch.of(zip(self.query_lens, self.context_lens, strict=True))


class Together(Scheduled):
    """One step of engines that share a mixture's experts, as of a single one, with what each works on.

    Attributes:
        engines: the step of each; None where it has nothing to do.
    """

    __slots__ = ("engines",)

    def __init__(self, engines: Sequence[Scheduled | None]) -> None:
        """A step.

        Args:
            engines: as above; one at least has something to do.
        """
        self.engines = engines
        steps = self._busy
        self.others = [place for step in steps for place in step.others]
        self.others_sampling = [place for step in steps for place in step.others_sampling]
        self.preempted = sorted(place for step in steps for place in step.preempted)
        self.chunks = [chunk for step in steps for chunk in step.chunks]
        self.num_decodes = sum(step.num_decodes for step in steps)
        self.decode_tokens = sum(step.decode_tokens for step in steps)
        self.num_tokens = sum(step.num_tokens for step in steps)

    @property
    def _busy(self) -> list[Scheduled]:
        return [step for step in self.engines if step is not None]

    @property
    def requests(self) -> Sequence[int]:
        """Places of the requests in the traffic, engine after engine."""
        return [place for step in self._busy for place in step.requests]

    @property
    def query_lens(self) -> Sequence[int]:
        """New tokens of each."""
        return [length for step in self._busy for length in step.query_lens]

    @property
    def context_lens(self) -> Sequence[int]:
        """Tokens of each in the KV cache before the step."""
        return [length for step in self._busy for length in step.context_lens]

    @property
    def sampling(self) -> Sequence[int]:
        """Those of the requests that get a token at the end of the step."""
        return [place for step in self._busy for place in step.sampling]


def room_for_all(limits: Limits, block_size: int = 16) -> int:
    """KV blocks that all requests of a step have room in at their full length: nothing is ever preempted."""
    return 1 + limits.max_num_seqs * -(-limits.max_model_len // block_size)


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
