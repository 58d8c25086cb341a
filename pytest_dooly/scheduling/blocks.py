"""KV blocks as vLLM's block pool hands them out: least recently used first, found again by what is in them.

Source: `vllm/v1/core/block_pool.py` of vLLM 0.32.0. What a freed block holds stays until the block is handed out again;
blocks that hold nothing to be found go first. Block 0 is the engine's own, so that one less than all can be used.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

__all__ = ["BlockPool", "Blocks", "CountedBlocks"]


class CountedBlocks:
    """Blocks without prefix caching: one is as good as another, so that only their number counts."""

    def __init__(self, num_blocks: int) -> None:
        """All but the engine's own are free.

        Args:
            num_blocks: of the KV cache.
        """
        self.num_free = num_blocks - 1

    def take(self, number: int) -> Sequence[int]:
        """Takes free blocks; there must be as many."""
        self.num_free -= number
        return (0,) * number

    def give_back(self, blocks: Sequence[int]) -> None:
        """Frees the blocks of a request."""
        self.num_free += len(blocks)

    def find(self, keys: Iterable[int]) -> list[int]:
        """Nothing is ever found again."""
        return []

    def num_idle(self, blocks: Iterable[int]) -> int:
        """How many of the blocks nobody holds."""
        return 0

    def hold(self, blocks: Iterable[int]) -> None:
        """Holds blocks that were found."""

    def keep(self, block: int, key: int) -> None:
        """Remembers what a block holds."""


class BlockPool:
    """Blocks with prefix caching."""

    def __init__(self, num_blocks: int) -> None:
        """All but the engine's own are free.

        Args:
            num_blocks: of the KV cache.
        """
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, num_blocks))
        self._holders = [0] * num_blocks
        self._key: list[int | None] = [None] * num_blocks
        # Blocks that hold the same, in the order in which they came to; the first is found.
        self._of_key: dict[int, dict[int, None]] = {}

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def take(self, number: int) -> list[int]:
        """Takes the free blocks that were freed first, and forgets what they hold; there must be as many."""
        pop, holders, key_of = self._free.popitem, self._holders, self._key
        taken = []
        for _ in range(number):
            block, _ = pop(last=False)
            holders[block] = 1
            if key_of[block] is not None:
                self._forget(block)
            taken.append(block)
        return taken

    def give_back(self, blocks: Sequence[int]) -> None:
        """Frees the blocks of a request, its last one first; what holds nothing goes to the front of the queue."""
        free, holders, key_of = self._free, self._holders, self._key
        empty = []
        for block in reversed(blocks):
            holders[block] -= 1
            if not holders[block]:
                free[block] = None
                if key_of[block] is None:
                    empty.append(block)
        for block in reversed(empty):
            free.move_to_end(block, last=False)

    def find(self, keys: Iterable[int]) -> list[int]:
        """The blocks that hold the longest beginning of what is asked for."""
        found = []
        for key in keys:
            same = self._of_key.get(key)
            if same is None:
                break
            found.append(next(iter(same)))
        return found

    def num_idle(self, blocks: Iterable[int]) -> int:
        """How many of the blocks nobody holds: they are among the free ones until they are held."""
        return sum(not self._holders[block] for block in blocks)

    def hold(self, blocks: Iterable[int]) -> None:
        """Holds blocks that were found."""
        for block in blocks:
            if not self._holders[block]:
                del self._free[block]
            self._holders[block] += 1

    def keep(self, block: int, key: int) -> None:
        """Remembers what a full block holds."""
        self._key[block] = key
        self._of_key.setdefault(key, {})[block] = None

    def _forget(self, block: int) -> None:
        key = self._key[block]
        assert key is not None
        self._key[block] = None
        same = self._of_key[key]
        del same[block]
        if not same:
            del self._of_key[key]


Blocks = CountedBlocks | BlockPool
"""Either kind."""
