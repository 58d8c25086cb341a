"""vLLM's V1 scheduler again, without the engine: the same steps, many times faster.

Source: `Scheduler.schedule` and `AsyncScheduler` of vLLM 0.32.0; a test holds the two together step by step. Left out:
speculative decoding, encoders, connectors, pipeline stages, windows whose blocks are recycled.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Protocol

from pytest_dooly.core.traffic import TrafficRequest
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.scheduling.blocks import BlockPool, Blocks, CountedBlocks, Found, num_idle
from pytest_dooly.scheduling.march import March
from pytest_dooly.scheduling.prefixes import PrefixKeys
from pytest_dooly.scheduling.scheduler import Scheduled, SchedulerOptions
from pytest_dooly.scheduling.state import State

__all__ = ["NativeScheduler"]


class _Queue(Protocol):
    """Requests that wait."""

    def __len__(self) -> int: ...
    def add(self, state: State) -> None: ...
    def put_back(self, states: Iterable[State]) -> None: ...
    def peek(self) -> State: ...
    def pop(self) -> State: ...
    def remove(self, state: State) -> None: ...


class _InOrder:
    """In the order of arrival; what was preempted or skipped comes first."""

    def __init__(self) -> None:
        self._states: deque[State] = deque()

    def __len__(self) -> int:
        return len(self._states)

    def add(self, state: State) -> None:
        self._states.append(state)

    def put_back(self, states: Iterable[State]) -> None:
        self._states.extendleft(reversed(list(states)))

    def peek(self) -> State:
        return self._states[0]

    def pop(self) -> State:
        return self._states.popleft()

    def remove(self, state: State) -> None:
        self._states.remove(state)


class _ByPriority:
    """The smallest priority first, and of equal ones the first to arrive."""

    def __init__(self) -> None:
        self._states: list[State] = []

    def __len__(self) -> int:
        return len(self._states)

    def add(self, state: State) -> None:
        heapq.heappush(self._states, state)

    def put_back(self, states: Iterable[State]) -> None:
        for state in states:
            self.add(state)

    def peek(self) -> State:
        return self._states[0]

    def pop(self) -> State:
        return heapq.heappop(self._states)

    def remove(self, state: State) -> None:
        self._states.remove(state)
        heapq.heapify(self._states)


class _Step:
    """A step that is being put together, but for those that march."""

    __slots__ = ("budget", "contexts", "preempted", "queries", "states")

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.states: list[State] = []
        self.queries: list[int] = []
        self.contexts: list[int] = []
        self.preempted: list[int] = []

    def add(self, state: State, query_len: int) -> None:
        self.states.append(state)
        self.queries.append(query_len)
        self.contexts.append(state.computed)
        self.budget -= query_len

    def drop(self, state: State) -> None:
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
        self._march = March(options.block_size, async_scheduling=options.async_scheduling)
        self._others: list[State] = []  # that run, in the order in which they were admitted
        self._seats = 0
        self._cached: dict[int, int] = {}
        self._thrown_out: list[int] = []  # by a step that came to nothing
        self._scheduled = self._ended = 0  # steps
        # Steps that have not ended, with those who do not march and get a token of it.
        self._under_way: deque[tuple[Scheduled, list[State]]] = deque()

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
        stretches = self._keys.of(place, request) if self._options.prefix_caching else ()
        self._waiting.add(State(place, request, stretches))

    def schedule(self) -> Scheduled | None:
        """The next step; see `Scheduler.schedule`."""
        while True:
            step = self._made()
            come_to = bool(step.states or self._march.states)
            # A step that only threw a request out is none, and the engine goes on to the next unless one is under way.
            if come_to or not step.preempted or self._under_way:
                break
            self._thrown_out += step.preempted
        step.preempted[:0] = self._thrown_out
        self._thrown_out = [] if come_to else step.preempted
        return self._advance(step) if come_to else None

    def _made(self) -> _Step:
        step = _Step(self._options.limits.max_num_tokens)
        bound = self._options.long_prefill_token_threshold
        if bound and self.num_running + len(self._waiting) <= 1:
            bound = 0
        self._serve_march(step)
        self._serve_others(step, bound)
        if not step.preempted and len(self._waiting):
            self._admit(step, bound)
        return step

    def update(self, step: Scheduled) -> Sequence[int]:
        """Takes note of a step's end; see `Scheduler.update`."""
        expected, states = self._under_way.popleft()
        assert step is expected, "steps end in the order in which they were scheduled"
        self._ended += 1
        ended = []
        for state in sorted(states, key=_seat):
            if state.marches_from:
                continue
            state.generated += 1
            if state.placeholders:
                state.placeholders -= 1
            if state.seat:
                self._remember(state, state.computed - state.placeholders)
            if state.generated == state.output_len:
                self._end(state)
                ended.append(state.place)
        return ended

    @property
    def num_waiting(self) -> int:
        """Requests that wait to be admitted, preempted ones included."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Requests that are admitted and have not ended."""
        return len(self._march.states) + len(self._others)

    @property
    def used_blocks(self) -> int:
        """KV blocks that admitted requests hold."""
        return self._usable - self._blocks.num_free

    def cached_tokens(self, place: int) -> int:
        """Tokens of a request's prompt that were in the prefix cache; see `Scheduler.cached_tokens`."""
        return self._cached.get(place, 0)

    def _serve_march(self, step: _Step) -> None:
        """Gives all that march a token, or lets them go where not all can have one."""
        march, number = self._march, self._scheduled + 1
        waits = self._under_way and not self._options.async_scheduling  # for the tokens of the step under way
        if waits or march.num_due(number) > self._blocks.num_free:
            self._let_go(march.states)
        self._blocks.take(march.num_due(number))
        for state in march.serve(number, self._ended):
            self._remember(state, march.known(state, self._ended))
        step.budget -= len(march.states)

    def _let_go(self, states: Sequence[State]) -> None:
        """From now on the requests are no longer of those that march."""
        for state in states:
            self._remember(state, self._march.seen(state, self._ended))
            state.last_step = self._scheduled
            for number, (_, sampling) in enumerate(self._under_way, self._ended + 1):
                if number > state.marches_from:
                    sampling.append(state)
        self._others = sorted([*self._others, *states], key=_seat)
        self._march.leave(states, self._ended)

    def _serve_others(self, step: _Step, bound: int) -> None:
        """Gives every other running request what it lacks, while the budget lasts; makes room by preemption."""
        size, blocks = self._block_size, self._blocks
        at = 0
        while at < len(self._others) and step.budget > 0:
            state = self._others[at]
            at += 1
            computed, placeholders = state.computed, state.placeholders
            if placeholders and computed + 2 - placeholders >= state.prompt_len + state.output_len:
                continue  # its last token is under way
            query_len = state.prompt_len + state.generated + placeholders - computed
            if query_len > 1:
                query_len = min(query_len, bound or query_len, step.budget)
            elif not query_len:
                continue
            needed = -(-(computed + query_len) // size) - state.blocks
            if needed > 0:
                before = len(self._others)
                if needed > blocks.num_free and not self._make_room(step, state, needed):
                    break
                at -= self._shifted(state, at, before)
                blocks.take(needed)
                state.blocks += needed
            step.add(state, query_len)
            self._remember(state, min(computed + query_len, state.num_tokens))

    def _shifted(self, state: State, at: int, before: int) -> int:
        """How far the running request has moved to the front, where others before it were preempted."""
        return 0 if len(self._others) == before else at - 1 - self._others.index(state)

    def _make_room(self, step: _Step, state: State, needed: int) -> bool:
        """Preempts requests until there are free blocks; False where the request itself was the last to go."""
        while needed > self._blocks.num_free:
            # Without priorities it is the last to be admitted, and who marches comes before the one that lacks blocks.
            victim = max((*self._march.states, *self._others)) if self._options.priority else self._others[-1]
            if victim.marches_from:
                self._let_go([victim])
                step.budget += 1
            self._others.remove(victim)
            step.drop(victim)
            self._preempt(victim)
            step.preempted.append(victim.place)
            if victim is state:
                return False
        return True

    def _give_back(self, state: State) -> None:
        self._blocks.give_back(state.runs, state.blocks)
        self._blocks.give_back((), self._options.state_blocks)

    def _preempt(self, state: State) -> None:
        self._give_back(state)
        state.runs, state.kept, state.blocks = [], 0, 0
        state.computed = state.placeholders = state.seat = 0
        self._waiting.put_back([state])

    def _admit(self, step: _Step, bound: int) -> None:
        """Admits waiting requests while budget, seats and blocks last."""
        skipped = []
        while step.budget > 0 and len(self._waiting) and self.num_running < self._options.limits.max_num_seqs:
            state = self._waiting.peek()
            if state.last_step > self._ended:  # what was under way when it was preempted comes first
                skipped.append(self._waiting.pop())
                continue
            found = self._blocks.find(state.stretches, (state.num_tokens - 1) // self._block_size)
            number = found[-1][2] if found else 0
            # The whole of it must fit, not only the first chunk.
            needed = -(-state.num_tokens // self._block_size) - number + num_idle(found) + self._options.state_blocks
            if needed > self._blocks.num_free:
                break
            self._waiting.pop()
            self._begin(step, state, found, bound)
        self._waiting.put_back(skipped)

    def _begin(self, step: _Step, state: State, found: Sequence[Found], bound: int) -> None:
        state.runs = self._blocks.hold(found)
        state.kept = state.runs[-1].end if state.runs else 0
        state.computed = state.kept * self._block_size
        query_len = state.num_tokens - state.computed
        query_len = min(query_len, bound or query_len, step.budget)
        state.blocks = -(-(state.computed + query_len) // self._block_size)
        self._blocks.take(state.blocks - state.kept + self._options.state_blocks)
        self._cached.setdefault(state.place, state.computed)
        self._seats += 1
        state.seat = self._seats
        self._others.append(state)
        step.add(state, query_len)
        self._remember(state, state.computed + query_len)

    def _advance(self, step: _Step) -> Scheduled:
        """The step as it is handed over; its tokens count as computed from now on."""
        self._scheduled += 1
        sampling = []
        for state, query_len in zip(step.states, step.queries, strict=True):
            state.computed += query_len
            state.last_step = self._scheduled
            if state.computed >= state.prompt_len + state.generated + state.placeholders:
                sampling.append(state)
                state.sampled = self._scheduled
                state.placeholders += self._options.async_scheduling
        scheduled = Scheduled(
            [state.place for state in step.states],
            step.queries,
            step.contexts,
            [state.place for state in sampling],
            sorted(step.preempted),
            decodes=self._march.decodes(),
        )
        self._under_way.append((scheduled, sampling))
        if ending := self._march.ending(self._scheduled):
            self._let_go(ending)
        if sampling:
            self._set_marching()
        return scheduled

    def _set_marching(self) -> None:
        """Lets the first of the others join the march, as far as they were given a token and there are more to come."""
        stay = []
        for at, state in enumerate(self._others):
            if state.sampled > self._ended and state.generated + (state.placeholders or 1) >= state.output_len:
                stay.append(state)  # its last token is under way
            elif state.sampled == self._scheduled and len(self._march.states) < self._options.limits.max_num_tokens:
                self._march.join(state, self._scheduled)
            else:
                stay += self._others[at:]
                break
        self._others = stay

    def _remember(self, state: State, num_tokens: int) -> None:
        """Makes full blocks findable, of what is computed by the end of the step: a request beside it finds them."""
        if not self._options.prefix_caching:
            return
        full = num_tokens // self._block_size
        if state.kept < full:
            self._blocks.keep(state.runs, state.stretches, state.kept, full)
            state.kept = full

    def _end(self, state: State) -> None:
        if state.seat:
            self._others.remove(state)
            self._give_back(state)
        else:
            self._waiting.remove(state)


_seat = attrgetter("seat")
