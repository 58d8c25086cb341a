"""What kernels do at many sweep points, as arrays: requests, tokens, attended pairs, keys read, experts.

Every feature grows with every request, query, context and expert.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from pytest_dooly.core.batch import SweepPoint

__all__ = ["FEATURES", "Features", "Work", "features_of", "sent"]

Array = npt.NDArray[np.float64]

_BLOCK = 65_536
"""Requests that are worked on at once: few enough for their features to stay in the cache."""


@dataclass(frozen=True)
class Work:
    """Every request of many sweep points, flat, so that features are computed for all at once.

    Attributes:
        query_lens: of each group of equal requests, shape (groups,).
        context_lens: of each group, shape (groups,).
        starts: index of each point's first group, shape (points,).
        counts: requests of each group, shape (groups,); None for one each.
        activated: experts that get a token, shape (points,); None where nothing is routed.
        busiest: tokens of the expert that gets most, shape (points,); None where nothing is routed.
        gathered: tokens of all engines that share a mixture's experts, shape (points,); None where a point's own are
            all.
    """

    query_lens: Array
    context_lens: Array
    starts: npt.NDArray[np.intp]
    counts: Array | None = None
    activated: Array | None = None
    busiest: Array | None = None
    gathered: Array | None = None

    @classmethod
    def of(cls, points: Sequence[SweepPoint]) -> Work:
        """The work of sweep points; one that only counts tokens or requests is that many in one request."""
        groups: list[tuple[int, int, int]] = []
        starts, activated, busiest = [], [], []
        for point in points:
            starts.append(len(groups))
            if point.batch is None:
                groups.append((point.num_tokens or point.num_reqs or 0, 0, 1))
            else:
                groups += [(request.query_len, request.context_len, n) for request, n in point.batch.groups]
            if point.routing is not None:
                activated.append(float(point.routing.activated))
                busiest.append(float(point.routing.busiest))
        queries, contexts, counts = np.array(groups, dtype=np.float64).reshape(-1, 3).T
        routed = len(activated) == len(points) > 0
        return cls(
            queries,
            contexts,
            np.array(starts, dtype=np.intp),
            counts if (counts > 1).any() else None,
            activated=np.array(activated) if routed else None,
            busiest=np.array(busiest) if routed else None,
        )

    @classmethod
    def of_sizes(
        cls,
        sizes: npt.ArrayLike,
        *,
        activated: npt.ArrayLike | None = None,
        busiest: npt.ArrayLike | None = None,
        gathered: npt.ArrayLike | None = None,
    ) -> Work:
        """The work of points that only count tokens or requests.

        Args:
            sizes: num_tokens or num_reqs of each point, shape (points,).
            activated: experts that get a token, shape (points,), for a mixture of experts.
            busiest: tokens of the busiest expert, shape (points,), for a mixture of experts.
            gathered: tokens of all engines that share the experts, shape (points,); left out where the sizes are.
        """
        queries = np.asarray(sizes, dtype=np.float64)
        return cls(
            queries,
            np.zeros_like(queries),
            np.arange(len(queries)),
            activated=None if activated is None else np.asarray(activated, dtype=np.float64),
            busiest=None if busiest is None else np.asarray(busiest, dtype=np.float64),
            gathered=None if gathered is None else np.asarray(gathered, dtype=np.float64),
        )

    @classmethod
    def of_batches(
        cls,
        query_lens: npt.ArrayLike,
        context_lens: npt.ArrayLike,
        starts: npt.ArrayLike,
        *,
        counts: npt.ArrayLike | None = None,
    ) -> Work:
        """The work of batches.

        Args:
            query_lens: of every group of equal requests, batch after batch, shape (groups,).
            context_lens: likewise.
            starts: index of each batch's first group, ascending, shape (points,).
            counts: requests of each group, shape (groups,); one each if left out.
        """
        return cls(
            np.asarray(query_lens, dtype=np.float64),
            np.asarray(context_lens, dtype=np.float64),
            np.asarray(starts, dtype=np.intp),
            None if counts is None else np.asarray(counts, dtype=np.float64),
        )

    def __len__(self) -> int:
        """Number of points."""
        return len(self.starts)

    def sum(self, per_request: Array) -> Array:
        """The sum over each point's requests, shape (points,)."""
        weighted = per_request if self.counts is None else per_request * self.counts
        return weighted if len(self.starts) == len(weighted) else np.add.reduceat(weighted, self.starts)

    def max(self, per_request: Array) -> Array:
        """The largest of each point's requests, shape (points,)."""
        return per_request if len(self.starts) == len(per_request) else np.maximum.reduceat(per_request, self.starts)

    def blocks(self) -> Iterator[Work]:
        """The same points in order, a manageable number of requests at a time."""
        ends, first = np.append(self.starts[1:], len(self.query_lens)), 0
        while first < len(self.starts):
            begin = int(self.starts[first])
            last = max(first + 1, int(np.searchsorted(ends, begin + _BLOCK, side="right")))
            end = int(ends[last - 1])
            yield Work(
                self.query_lens[begin:end],
                self.context_lens[begin:end],
                self.starts[first:last] - begin,
                None if self.counts is None else self.counts[begin:end],
                None if self.activated is None else self.activated[first:last],
                None if self.busiest is None else self.busiest[first:last],
                None if self.gathered is None else self.gathered[first:last],
            )
            first = last


class Features:
    """The features of a work, each computed once, when it is asked for.

    `features[name]` has shape (points,); what they are made of is by group of requests, shape (groups,).
    """

    def __init__(self, work: Work, window: float | None) -> None:
        """`window` is that of the attention, in tokens; None where all is attended."""
        self.work = work
        self.window = window or math.inf

    def __getitem__(self, name: str) -> Array:
        return FEATURES[name](self)

    @cached_property
    def tokens(self) -> Array:
        """New tokens of each point."""
        return self.work.sum(self.work.query_lens)

    @property
    def gathered(self) -> Array:
        """New tokens of each point, those of other engines that share its experts among them."""
        return self.tokens if self.work.gathered is None else self.work.gathered

    @cached_property
    def num_reqs(self) -> Array:
        """Requests of each point."""
        return self.work.sum(np.ones_like(self.work.query_lens))

    @cached_property
    def prompts(self) -> Array:
        """1 for a request of several new tokens, 0 for a decode."""
        return (self.work.query_lens > 1).astype(np.float64)

    @cached_property
    def pairs(self) -> Array:
        """Attended pairs of each request: sum over its queries i = 1..q of min(context + i, window)."""
        q, c = self.work.query_lens, self.work.context_lens
        if self.window == math.inf:
            return q * (c + (q + 1) / 2)
        growing = np.clip(self.window - c, 0, q)  # queries that still see everything before them
        return growing * c + growing * (growing + 1) / 2 + (q - growing) * self.window

    @cached_property
    def read(self) -> Array:
        """Keys that each request reads."""
        seq_lens = self.work.query_lens + self.work.context_lens
        return seq_lens if self.window == math.inf else np.minimum(seq_lens, self.window + self.work.query_lens - 1)

    @property
    def activated(self) -> Array:
        """Experts that get a token; none where nothing is routed."""
        return np.zeros(len(self.work)) if self.work.activated is None else self.work.activated

    @property
    def busiest(self) -> Array:
        """Tokens of the busiest expert; none where nothing is routed."""
        return np.zeros(len(self.work)) if self.work.busiest is None else self.work.busiest


FEATURES: Mapping[str, Callable[[Features], Array]] = {
    "size": lambda of: of.tokens,
    "tiles": lambda of: np.ceil(of.tokens / 16),
    "num_reqs": lambda of: of.num_reqs,
    "num_tokens": lambda of: of.tokens,
    "prompt_tokens": lambda of: of.work.sum(of.prompts * of.work.query_lens),
    "pairs": lambda of: of.work.sum(of.pairs),
    "prompt_pairs": lambda of: of.work.sum(of.prompts * of.pairs),
    "kv_tokens": lambda of: of.work.sum(of.read),
    "longest_kv": lambda of: of.work.max(of.read),
    "longest_pairs": lambda of: of.work.max(of.pairs),
    "tile_tokens": lambda of: of.work.sum(of.prompts * np.minimum(of.work.query_lens, 16)),
    "activated": lambda of: of.activated,
    "busiest": lambda of: of.busiest,
    "busiest_tiles": lambda of: np.ceil(of.busiest / 16),
}
"""Work features by name, each of shape (points,).

`pairs` counts attended (query, key) pairs, `kv_tokens` keys read; a window cuts both off. `tile_tokens` are those in
the first tile of a chunk's queries, which a short chunk does not fill. `longest_*` are the largest request's, which is
what the last of several parallel workers is busy with. `activated` experts are weights read; `busiest` is the longest
of the experts' matrix products.
"""


def features_of(work: Work, names: Sequence[str], window: float | None) -> Array:
    """The features' values, shape (points, features)."""
    features = Features(work, window)
    return np.column_stack([features[name] for name in names])


def sent(collective: str, ranks: Array) -> Array:
    """What each rank sends of a collective's input, as a multiple of it, shape of `ranks`.

    A ring passes each of r shares on r - 1 times, twice for a sum that all get; an input that all get is a share.
    """
    shares = {"all_reduce": 2 / ranks, "reduce_scatter": 1 / ranks}
    return (ranks - 1) * shares.get(collective, np.ones_like(ranks))
