"""What KV blocks hold, as keys that are equal where all tokens up to their end are."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_dooly.core.traffic import TrafficRequest

__all__ = ["PrefixKeys"]

_Piece = tuple[int, int, int]
"""Identity of a stretch of tokens, where in it the block's part begins, and how long that is."""


class PrefixKeys:
    """Keys of the blocks of many requests.

    A key stands for the block's own pieces and for the key before it, as vLLM hashes blocks. Prompts that share nothing
    get keys of their own without a look at what they hold.
    """

    def __init__(self, block_size: int) -> None:
        """No key is known yet.

        Args:
            block_size: tokens in one block.
        """
        self._block_size = block_size
        self._known: dict[tuple[int, tuple[_Piece, ...]], int] = {}
        self._next = 0

    def of(self, place: int, request: TrafficRequest) -> Iterator[int]:
        """Keys of a request's blocks, prompt and generated tokens, in order.

        Args:
            place: of the request in its traffic.
            request: what it is.
        """
        if not request.segments and request.output is None:
            return self._unshared()
        return self._chained(place, request)

    def _unshared(self) -> Iterator[int]:
        while True:
            self._next += 1
            yield self._next

    def _chained(self, place: int, request: TrafficRequest) -> Iterator[int]:
        # Identities of its own are negative, so that no other request has them.
        own = ((-2 * place - 1, request.prompt_len),)
        output = -2 * place - 2 if request.output is None else request.output
        stretches = (*(request.segments or own), (output, request.output_len))
        parent = 0
        for pieces in _pieces(stretches, self._block_size):
            known = self._known.get((parent, pieces))
            if known is None:
                self._next += 1
                known = self._known[parent, pieces] = self._next
            yield known
            parent = known


def _pieces(stretches: tuple[tuple[int, int], ...], block_size: int) -> Iterator[tuple[_Piece, ...]]:
    """The stretches that each full block lies in, with the place in them where its part begins."""
    pieces: list[_Piece] = []
    left = block_size
    for identity, tokens in stretches:
        offset = 0
        while tokens - offset >= left:
            pieces.append((identity, offset, left))
            offset += left
            yield tuple(pieces)
            pieces, left = [], block_size
        if offset < tokens:
            pieces.append((identity, offset, tokens - offset))
            left -= tokens - offset
