"""What KV blocks hold, as stretches of blocks with keys that are equal where all tokens up to their end are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pytest_dooly.core.traffic import Segment, TrafficRequest

__all__ = ["PrefixKeys", "Stretch"]

Stretch = tuple[int, int]
"""Key of full blocks in a row that lie in one segment, or of one block that lies in several; and how many blocks there
are up to the end of them. Two prompts with one key begin with equal tokens, as far as both reach."""

_Pieces = tuple[int, ...]
"""Of each segment that a block lies in: identity, where in it the block's part begins, how long that is."""


class PrefixKeys:
    """Keys of the stretches of many requests.

    A key stands for the tokens of its first block and for all blocks before it, as vLLM hashes blocks. Prompts that
    share nothing get keys of their own without a look at what they hold.
    """

    def __init__(self, block_size: int) -> None:
        """No key is known yet.

        Args:
            block_size: tokens in one block.
        """
        self._block_size = block_size
        # By the key before it, the number of blocks up to there, and the pieces of its first block.
        self._known: dict[tuple[int, ...], int] = {}
        self._next = 0

    def of(self, place: int, request: TrafficRequest) -> list[Stretch]:
        """Stretches of a request's full blocks, prompt and generated tokens, in order.

        Args:
            place: of the request in its traffic.
            request: what it is.
        """
        if not request.segments and request.output is None:
            self._next += 1
            return [(self._next, (request.prompt_len + request.output_len) // self._block_size)]
        # Identities of its own are negative, so that no other request has them.
        own = ((-2 * place - 1, request.prompt_len),)
        output = -2 * place - 2 if request.output is None else request.output
        stretches: list[Stretch] = []
        key = end = 0
        for number, pieces in _rows((*(request.segments or own), (output, request.output_len)), self._block_size):
            key = self._key((key, end, *pieces))
            end += number
            stretches.append((key, end))
        return stretches

    def _key(self, content: tuple[int, ...]) -> int:
        key = self._known.get(content)
        if key is None:
            self._next += 1
            key = self._known[content] = self._next
        return key


def _rows(segments: Sequence[Segment], block_size: int) -> Iterator[tuple[int, _Pieces]]:
    """Number of blocks of each stretch, and what its first block is made of."""
    begun: _Pieces = ()  # a block that the segments so far do not fill
    left = block_size
    for identity, tokens in segments:
        offset = 0
        if begun and tokens >= left:
            yield 1, (*begun, identity, 0, left)
            offset, begun, left = left, (), block_size
        if not begun and tokens - offset >= block_size:
            number = (tokens - offset) // block_size
            yield number, (identity, offset, block_size)
            offset += number * block_size
        if offset < tokens:
            begun = (*begun, identity, offset, tokens - offset)
            left -= tokens - offset
