"""Decodes that go on together: most steps are of those alone, and nothing has to be written down for each of them.

A request that decodes gets one token in every step. How far it is follows from the number of the step, so that all that
happens to it is known beforehand: it needs a block in every step whose number leaves one remainder when divided by the
block size, and it ends in one certain step.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from operator import attrgetter

from pytest_dooly.scheduling.scheduler import Decodes
from pytest_dooly.scheduling.state import State

__all__ = ["March"]


class March:
    """The running requests before all others that have any tokens to get, each of which gets one in every step.

    Attributes:
        states: those requests, in the order in which they were admitted.
    """

    def __init__(self, block_size: int, *, async_scheduling: bool) -> None:
        """Nobody marches.

        Args:
            block_size: tokens in one block.
            async_scheduling: whether a step is scheduled while the one before runs.
        """
        self._block_size, self._async = block_size, async_scheduling
        self._served = 0  # number of the last step that they have blocks for
        self._seen = 0  # steps that had ended then
        self._clear()

    def _clear(self) -> None:
        self.states: list[State] = []
        self._members: tuple[tuple[int, int], ...] = ()
        self._before = 0  # tokens before step 0 of all together
        self._due = [0] * self._block_size  # how many need a block, by the step's number modulo the block size
        # Those whose generated tokens others may ask for, by the steps' ends modulo the block size that fill a block.
        self._shared: list[list[State]] = [[] for _ in range(self._block_size)]
        self._last: dict[int, list[State]] = {}  # by the number of the step with their last token

    def num_due(self, step: int) -> int:
        """How many of them need a new block in a step."""
        return self._due[step % self._block_size]

    def serve(self, step: int, ended: int) -> list[State]:
        """Gives all of them a token of a step; returns those who have full blocks since that others may ask for.

        Args:
            step: its number.
            ended: number of steps that have ended.
        """
        since = range(self._seen + 1, ended + 1)
        self._served, self._seen = step, ended
        return [state for number in since for state in self._shared[number % self._block_size]]

    def decodes(self) -> Decodes:
        """What they do in the step that was served last."""
        steps = self._served - 1
        return Decodes(self._members, steps, self._before + steps * len(self._members))

    def ending(self, step: int) -> list[State]:
        """Those whose last token a step gives."""
        return list(self._last.get(step, ()))

    def join(self, state: State, step: int) -> None:
        """Takes in a request that a step has given a token.

        Args:
            state: admitted after all that march.
            step: its number, the last one that was scheduled.
        """
        # Only asynchronous scheduling has placeholders; without it no other step is under way.
        state.since = step - (state.placeholders or 1)
        state.before, state.marches_from = state.computed - step, step
        self.states.append(state)
        self._members = (*self._members, (state.place, state.before))
        self._before += state.before
        self._due[self._needing(state)] += 1
        self._last.setdefault(state.last_token_step, []).append(state)
        if state.is_shared:
            self._shared[self._filling(state)].append(state)

    def seen(self, state: State, ended: int) -> int:
        """Tokens of a request that the scheduler has seen by now: when it gave it its last, or all but one since."""
        return self.known(state, max(self._seen, ended - 1))

    def known(self, state: State, ended: int) -> int:
        """Tokens of a request when so many steps had ended, prompt and generated."""
        return state.num_tokens + max(0, ended - state.since)

    def leave(self, states: Sequence[State], ended: int) -> None:
        """Lets requests go, with all that the march knows of them.

        Args:
            states: that march.
            ended: number of steps that have ended.
        """
        if len(states) == len(self.states):
            self._clear()
        else:
            for state in states:
                self._take_out(state)
        for state in states:
            state.generated += max(0, ended - state.since)
            state.computed = state.before + self._served
            state.blocks = -(-state.computed // self._block_size)
            if self._async:
                state.placeholders = self._served - max(ended, state.since)
            state.marches_from = 0

    def _take_out(self, state: State) -> None:
        at = bisect.bisect_left(self.states, state.seat, key=attrgetter("seat"))
        del self.states[at]
        self._members = (*self._members[:at], *self._members[at + 1 :])
        self._before -= state.before
        self._due[self._needing(state)] -= 1
        last = self._last[state.last_token_step]
        last.remove(state)
        if not last:
            del self._last[state.last_token_step]
        if state.is_shared:
            self._shared[self._filling(state)].remove(state)

    def _needing(self, state: State) -> int:
        """What a step's number leaves where the request needs a block for it: those that it has are full before."""
        return (1 - state.before) % self._block_size

    def _filling(self, state: State) -> int:
        """What the number of steps that have ended leaves where the tokens known by then fill blocks."""
        return (state.since - state.num_tokens) % self._block_size
