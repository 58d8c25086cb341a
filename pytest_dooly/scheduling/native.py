"""vLLM's V1 scheduler again, without the engine: the same steps, many times faster.

Source: `Scheduler.schedule` and `AsyncScheduler` of vLLM 0.32.0; a test holds the two together step by step. Left out:
speculative decoding, encoders, connectors, pipeline stages, windows whose blocks are recycled.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from pytest_dooly.core.traffic import TrafficRequest
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.scheduling.blocks import BlockPool, Blocks, CountedBlocks
from pytest_dooly.scheduling.prefixes import PrefixKeys
from pytest_dooly.scheduling.scheduler import Scheduled, SchedulerOptions

__all__ = ["NativeScheduler"]


class _State:
    """One request that has not ended."""

    __slots__ = (
        "arrival_s",
        "blocks",
        "cached_tokens",
        "computed",
        "generated",
        "in_flight",
        "kept",
        "keys",
        "output_len",
        "place",
        "placeholders",
        "priority",
        "prompt_len",
        "running",
        "stale",
    )

    def __init__(self, place: int, request: TrafficRequest, keys: Iterator[int]) -> None:
        self.place = place
        self.prompt_len, self.output_len = request.prompt_len, request.output_len
        self.priority, self.arrival_s = request.priority, request.arrival_s
        self.keys = _Keys(keys)
        self.computed = self.generated = self.placeholders = 0
        self.in_flight = self.stale = 0  # tokens of steps that have not ended; those of them before a preemption
        self.kept = 0  # blocks whose content is remembered
        self.blocks: list[int] = []
        self.cached_tokens: int | None = None
        self.running = False

    @property
    def num_tokens(self) -> int:
        return self.prompt_len + self.generated

    def __lt__(self, other: _State) -> bool:
        return (self.priority, self.arrival_s, self.place) < (other.priority, other.arrival_s, other.place)


class _Keys:
    """Keys of a request's blocks, made when they are first asked for."""

    __slots__ = ("_made", "_more")

    def __init__(self, more: Iterator[int]) -> None:
        self._more = more
        self._made: list[int] = []

    def __getitem__(self, block: int) -> int:
        while len(self._made) <= block:
            self._made.append(next(self._more))
        return self._made[block]

    def first(self, number: int) -> Iterator[int]:
        return (self[block] for block in range(number))


class _Queue(Protocol):
    """Requests that wait."""

    def __len__(self) -> int: ...
    def add(self, state: _State) -> None: ...
    def put_back(self, states: Iterable[_State]) -> None: ...
    def peek(self) -> _State: ...
    def pop(self) -> _State: ...
    def remove(self, state: _State) -> None: ...


class _InOrder:
    """In the order of arrival; what was preempted or skipped comes first."""

    def __init__(self) -> None:
        self._states: deque[_State] = deque()

    def __len__(self) -> int:
        return len(self._states)

    def add(self, state: _State) -> None:
        self._states.append(state)

    def put_back(self, states: Iterable[_State]) -> None:
        self._states.extendleft(reversed(list(states)))

    def peek(self) -> _State:
        return self._states[0]

    def pop(self) -> _State:
        return self._states.popleft()

    def remove(self, state: _State) -> None:
        self._states.remove(state)


class _ByPriority:
    """The smallest priority first, and of equal ones the first to arrive."""

    def __init__(self) -> None:
        self._states: list[_State] = []

    def __len__(self) -> int:
        return len(self._states)

    def add(self, state: _State) -> None:
        heapq.heappush(self._states, state)

    def put_back(self, states: Iterable[_State]) -> None:
        for state in states:
            self.add(state)

    def peek(self) -> _State:
        return self._states[0]

    def pop(self) -> _State:
        return heapq.heappop(self._states)

    def remove(self, state: _State) -> None:
        self._states.remove(state)
        heapq.heapify(self._states)


class _Step:
    """A step that is being put together."""

    __slots__ = ("budget", "contexts", "preempted", "queries", "states")

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.states: list[_State] = []
        self.queries: list[int] = []
        self.contexts: list[int] = []
        self.preempted: list[int] = []

    def add(self, state: _State, query_len: int) -> None:
        self.states.append(state)
        self.queries.append(query_len)
        self.contexts.append(state.computed)
        self.budget -= query_len

    def drop(self, state: _State) -> None:
        """Takes out a request that is preempted after it was given tokens of this very step."""
        if state in self.states:
            at = self.states.index(state)
            del self.states[at], self.contexts[at]
            self.budget += self.queries.pop(at)


class NativeScheduler:
    """See `Scheduler`."""

    def __init__(self, options: SchedulerOptions) -> None:
        """An idle engine.

        Args:
            options: how it schedules.
        """
        self._options = options
        self._block_size = options.block_size
        self._blocks: Blocks = (BlockPool if options.prefix_caching else CountedBlocks)(options.num_blocks)
        self._usable = options.num_blocks - 1
        self._keys = PrefixKeys(options.block_size)
        self._waiting: _Queue = _ByPriority() if options.priority else _InOrder()
        self._running: list[_State] = []
        self._states: dict[int, _State] = {}
        self._cached: dict[int, int] = {}
        self._thrown_out: list[int] = []  # by a step that came to nothing
        self._under_way = 0

    def add(self, place: int, request: TrafficRequest) -> None:
        """Lets a request wait; see `Scheduler.add`.

        Raises:
            ConfigurationError: it is longer than max_model_len.
        """
        longest = self._options.limits.max_model_len
        if request.prompt_len + request.output_len > longest:
            raise ConfigurationError(
                f"request {place} of {request.prompt_len} + {request.output_len} tokens exceeds max_model_len {longest}"
            )
        state = _State(place, request, self._keys.of(place, request))
        self._states[place] = state
        self._waiting.add(state)

    def schedule(self) -> Scheduled | None:
        """The next step; see `Scheduler.schedule`."""
        while True:
            step = self._made()
            # A step that only threw a request out is none, and the engine goes on to the next unless one is under way.
            if step.states or not step.preempted or self._under_way:
                break
            self._thrown_out += step.preempted
        step.preempted[:0] = self._thrown_out
        self._thrown_out = [] if step.states else step.preempted
        return self._advance(step) if step.states else None

    def _made(self) -> _Step:
        step = _Step(self._options.limits.max_num_tokens)
        bound = self._options.long_prefill_token_threshold
        if len(self._running) + len(self._waiting) <= 1:
            bound = 0
        self._serve_running(step, bound)
        if not step.preempted and len(self._waiting):
            self._admit(step, bound)
        return step

    def update(self, step: Scheduled) -> Sequence[int]:
        """Takes note of a step's end; see `Scheduler.update`."""
        self._under_way -= 1
        for place, query_len in zip(step.requests, step.query_lens, strict=True):
            state = self._states[place]
            state.in_flight -= query_len
            if state.stale:
                state.stale -= query_len
        ended = []
        for place in step.sampling:
            state = self._states[place]
            state.generated += 1
            if state.placeholders:
                state.placeholders -= 1
            if state.running:
                self._remember(state, state.computed - state.placeholders)
            if state.generated == state.output_len:
                self._end(state)
                ended.append(place)
        return ended

    @property
    def num_waiting(self) -> int:
        """Requests that wait to be admitted, preempted ones included."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Requests that are admitted and have not ended."""
        return len(self._running)

    @property
    def used_blocks(self) -> int:
        """KV blocks that admitted requests hold."""
        return self._usable - self._blocks.num_free

    def cached_tokens(self, place: int) -> int:
        """Tokens of a request's prompt that were in the prefix cache; see `Scheduler.cached_tokens`."""
        return self._cached.get(place, 0)

    def _serve_running(self, step: _Step, bound: int) -> None:
        """Gives every running request what it lacks, while the budget lasts; makes room by preemption."""
        size, blocks = self._block_size, self._blocks
        at = 0
        while at < len(self._running) and step.budget > 0:
            state = self._running[at]
            at += 1
            computed, placeholders = state.computed, state.placeholders
            if placeholders and computed + 2 - placeholders >= state.prompt_len + state.output_len:
                continue  # its last token is under way
            query_len = state.prompt_len + state.generated + placeholders - computed
            if query_len > 1:
                query_len = min(query_len, bound or query_len, step.budget)
            elif not query_len:
                continue
            needed = -(-(computed + query_len) // size) - len(state.blocks)
            if needed > 0:
                before = len(self._running)
                if needed > blocks.num_free and not self._make_room(step, state, needed):
                    break
                at -= self._shifted(state, at, before)
                state.blocks += blocks.take(needed)
            step.add(state, query_len)
            self._remember(state, computed + query_len)

    def _shifted(self, state: _State, at: int, before: int) -> int:
        """How far the running request has moved to the front, where others before it were preempted."""
        return 0 if len(self._running) == before else at - 1 - self._running.index(state)

    def _make_room(self, step: _Step, state: _State, needed: int) -> bool:
        """Preempts requests until there are free blocks; False where the request itself was the last to go."""
        while needed > self._blocks.num_free:
            victim = max(self._running) if self._options.priority else self._running[-1]
            self._running.remove(victim)
            step.drop(victim)
            self._preempt(victim)
            step.preempted.append(victim.place)
            if victim is state:
                return False
        return True

    def _preempt(self, state: _State) -> None:
        self._blocks.give_back(state.blocks)
        state.blocks, state.kept = [], 0
        state.computed = state.placeholders = 0
        state.stale, state.running = state.in_flight, False
        self._waiting.put_back([state])

    def _admit(self, step: _Step, bound: int) -> None:
        """Admits waiting requests while budget, seats and blocks last."""
        skipped = []
        while step.budget > 0 and len(self._waiting) and len(self._running) < self._options.limits.max_num_seqs:
            state = self._waiting.peek()
            if state.stale:  # what was under way when it was preempted comes first
                skipped.append(self._waiting.pop())
                continue
            found = self._blocks.find(state.keys.first((state.num_tokens - 1) // self._block_size))
            idle = self._blocks.num_idle(found)
            # The whole of it must fit, not only the first chunk.
            if -(-state.num_tokens // self._block_size) - len(found) + idle > self._blocks.num_free:
                break
            self._waiting.pop()
            self._begin(step, state, found, bound)
        self._waiting.put_back(skipped)

    def _begin(self, step: _Step, state: _State, found: list[int], bound: int) -> None:
        self._blocks.hold(found)
        state.computed = len(found) * self._block_size
        query_len = state.num_tokens - state.computed
        query_len = min(query_len, bound or query_len, step.budget)
        taken = self._blocks.take(-(-(state.computed + query_len) // self._block_size) - len(found))
        state.blocks, state.kept, state.running = [*found, *taken], len(found), True
        self._cached.setdefault(state.place, state.computed)
        self._running.append(state)
        step.add(state, query_len)
        self._remember(state, state.computed + query_len)

    def _advance(self, step: _Step) -> Scheduled:
        """The step as it is handed over; its tokens count as computed from now on."""
        sampling = []
        pending = self._options.async_scheduling
        for state, query_len in zip(step.states, step.queries, strict=True):
            state.computed += query_len
            state.in_flight += query_len
            if state.computed >= state.prompt_len + state.generated + state.placeholders:
                sampling.append(state.place)
                state.placeholders += pending
        self._under_way += 1
        places = [state.place for state in step.states]
        return Scheduled(places, step.queries, step.contexts, sampling, sorted(step.preempted))

    def _remember(self, state: _State, num_tokens: int) -> None:
        """Makes full blocks findable, of what is computed by the end of the step: a request beside it finds them."""
        if not self._options.prefix_caching:
            return
        full = min(num_tokens, state.num_tokens) // self._block_size
        while state.kept < full:
            self._blocks.keep(state.blocks[state.kept], state.keys[state.kept])
            state.kept += 1

    def _end(self, state: _State) -> None:
        if state.running:
            self._running.remove(state)
            self._blocks.give_back(state.blocks)
        else:
            self._waiting.remove(state)
        del self._states[state.place]
