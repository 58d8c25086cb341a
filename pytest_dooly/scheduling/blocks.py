"""KV blocks as vLLM's block pool hands them out: least recently used first, found again by what is in them.

Source: `vllm/v1/core/block_pool.py` of vLLM 0.32.0. What a freed block holds stays until the block is handed out again;
blocks that hold nothing to be found go first, and of what a request gives back its last block. Block 0 is the engine's
own, so that one less than all can be used.

Nobody asks which block it is that holds something, so that blocks without content are a number, and those with content
are runs of neighbours that are found, held and freed as one until somebody asks for a part.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from operator import itemgetter

from pytest_dooly.scheduling.prefixes import Stretch

__all__ = ["BlockPool", "Blocks", "CountedBlocks", "Found", "Run", "num_idle"]


class Run:
    """Neighbouring blocks of one stretch with the same holders.

    Attributes:
        key: of the stretch.
        begin: number of the first block, counted from the beginning of the prompt.
        end: number of the block after the last.
        holders: how many requests hold them.
        parts: what it was split into; whoever holds it holds both.
        before: neighbour in the queue of free runs, which is taken first.
        after: neighbour there, which is taken later.
    """

    __slots__ = ("after", "before", "begin", "end", "holders", "key", "parts")
    before: Run
    after: Run

    def __init__(self, key: int, begin: int, end: int, holders: int = 1) -> None:
        self.key, self.begin, self.end, self.holders = key, begin, end, holders
        self.parts: tuple[Run, Run] | None = None


Found = tuple[Run, int, int]
"""A part of a run, from one block to before another."""


def num_idle(found: Sequence[Found]) -> int:
    """How many of the blocks nobody holds: they are among the free ones until they are held."""
    return sum(end - begin for run, begin, end in found if not run.holders)


class CountedBlocks:
    """Blocks without prefix caching: one is as good as another, so that only their number counts."""

    def __init__(self, num_blocks: int) -> None:
        """All but the engine's own are free.

        Args:
            num_blocks: of the KV cache.
        """
        self.num_free = num_blocks - 1

    def take(self, number: int) -> None:
        """Takes free blocks; there must be as many."""
        self.num_free -= number

    def give_back(self, runs: Sequence[Run], number: int) -> None:
        """Frees so many blocks of a request."""
        self.num_free += number

    def find(self, stretches: Sequence[Stretch], most: int) -> list[Found]:
        """Nothing is ever found again."""
        return []

    def hold(self, found: Sequence[Found]) -> list[Run]:
        """Holds what was found."""
        return []

    def keep(self, runs: list[Run], stretches: Sequence[Stretch], begin: int, end: int) -> None:
        """Remembers what blocks hold."""


class BlockPool:
    """Blocks with prefix caching."""

    def __init__(self, num_blocks: int) -> None:
        """All but the engine's own are free.

        Args:
            num_blocks: of the KV cache.
        """
        self.num_free = num_blocks - 1
        self._empty = num_blocks - 1  # those of the free ones that hold nothing to be found
        self._queue = _Queue()
        # Runs of each stretch in the order in which they came to hold it: the first that holds a block is found.
        self._runs: dict[int, list[Run]] = {}

    def take(self, number: int) -> None:
        """Takes the free blocks that were freed first, and forgets what they hold; there must be as many."""
        self.num_free -= number
        self._empty -= number
        while self._empty < 0:
            run = self._queue.first
            size = run.end - run.begin
            if size > -self._empty:
                run.end += self._empty
                self._empty = 0
            else:
                self._empty += size
                self._queue.remove(run)
                self._forget(run)

    def give_back(self, runs: Sequence[Run], number: int) -> None:
        """Frees the blocks of a request, its last one first.

        Args:
            runs: those with content.
            number: of all blocks, with content or without.
        """
        empty = number - (runs[-1].end if runs else 0)
        self._empty += empty
        self.num_free += empty
        left = list(runs)
        while left:
            run = left.pop()
            if run.parts:
                left += run.parts
                continue
            run.holders -= 1
            if not run.holders:
                self._queue.append(run)
                self.num_free += run.end - run.begin

    def find(self, stretches: Sequence[Stretch], most: int) -> list[Found]:
        """Where the longest beginning of what is asked for is held, at most so many blocks of it."""
        found: list[Found] = []
        at = 0
        for key, end in stretches:
            end = min(end, most)
            # A block is kept after all that are before it and goes before they do: one look from the first to the last.
            for run in self._runs.get(key, ()):
                if at >= end:  # many that computed the same hold it
                    break
                until = min(run.end, end)
                if run.begin <= at < until:
                    found.append((run, at, until))
                    at = until
            if at < end or at == most:
                break
        return found

    def hold(self, found: Sequence[Found]) -> list[Run]:
        """Holds what was found, as runs of its own."""
        held = []
        for run, begin, end in found:
            if run.begin < begin:
                _, run = self._split(run, begin)
            if end < run.end:
                run, _ = self._split(run, end)
            if not run.holders:
                self._queue.remove(run)
                self.num_free -= run.end - run.begin
            run.holders += 1
            held.append(run)
        return held

    def keep(self, runs: list[Run], stretches: Sequence[Stretch], begin: int, end: int) -> None:
        """Remembers what full blocks of a request hold.

        Args:
            runs: the request's, up to the first of the blocks; is added to.
            stretches: what its blocks hold.
            begin: number of the first block.
            end: number of the block after the last.
        """
        at = bisect.bisect_right(stretches, begin, key=_end)
        while begin < end:
            key, until = stretches[at]
            until = min(until, end)
            same = self._runs.setdefault(key, [])
            # A run goes on where nobody else holds it, and where no other came to hold the stretch since.
            if same and runs and same[-1] is runs[-1] and same[-1].holders == 1:
                same[-1].end = until
            else:
                run = Run(key, begin, until)
                same.append(run)
                runs.append(run)
            begin, at = until, at + 1

    def _split(self, run: Run, at: int) -> tuple[Run, Run]:
        left, right = Run(run.key, run.begin, at, run.holders), Run(run.key, at, run.end, run.holders)
        run.parts = left, right
        same = self._runs[run.key]
        place = same.index(run)
        same[place : place + 1] = run.parts
        if not run.holders:
            self._queue.replace(run, right, left)
        return run.parts

    def _forget(self, run: Run) -> None:
        same = self._runs[run.key]
        same.remove(run)
        if not same:
            del self._runs[run.key]


Blocks = CountedBlocks | BlockPool
"""Either kind."""


class _Queue:
    """Free runs, the first to be taken first: a ring, since runs leave it from the middle and are split there."""

    def __init__(self) -> None:
        self._ends = ends = Run(0, 0, 0)
        ends.before = ends.after = ends

    @property
    def first(self) -> Run:
        return self._ends.after

    def append(self, run: Run) -> None:
        last, ends = self._ends.before, self._ends
        last.after = ends.before = run
        run.before, run.after = last, ends

    def remove(self, run: Run) -> None:
        before, after = run.before, run.after
        before.after, after.before = after, before

    def replace(self, run: Run, first: Run, second: Run) -> None:
        first.before, first.after, second.before, second.after = run.before, second, first, run.after
        run.before.after, run.after.before = first, second


_end = itemgetter(1)
