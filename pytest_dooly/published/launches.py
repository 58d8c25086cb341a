"""Latencies that are the host's: kernels launched one by one that take less than their launch.

A table of such latencies is flat where the work is small: of 35,741 published products in fp8 blocks on an H200, each
launched by the host, two thirds take what their kernel's launch takes (57, 82 or 171 µs), whatever their sizes. A
replayed graph launches nothing, and takes what the device does. What that is, a peer says: the same product in another
precision with as many bytes and operations, timed in a graph. Where the launch does not hide the work, both take the
same on Hopper and Blackwell (medians of 0.97 to 1.02, in four fifths of the rows within -17 and +24 %).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pytest_dooly.core.published_latency import PublishedLatency
from pytest_dooly.published.family import Family, parts_of

__all__ = ["Freed", "peer_of", "without_launches"]

_PEERS = {Family("gemm", "fp8_block"): Family("gemm", "fp8")}
"""Families whose kernels move as many bytes and compute as fast."""

_LAUNCH = 0.05
"""Quantile of a kernel's latencies that stands for its launch."""

_HIDDEN = 2.0
"""Launches below which a latency may be the host's: above, the work is longer than the launch of the next one."""

_FEWEST = 10
"""Rows that show how a family goes with its peer."""


@dataclass(frozen=True)
class Freed:
    """Latencies of a family as a replayed graph would take them.

    Attributes:
        rows: its own where the device decides, a peer's where the launch does.
        error: mean relative deviation of the peer's from its own where both are known; 0 where no row stands in.
    """

    rows: Sequence[PublishedLatency]
    error: float = 0.0


def peer_of(family: Family) -> Family | None:
    """The family that stands in where a launch hides the work; None where there is none."""
    return _PEERS.get(family)


def without_launches(rows: Sequence[PublishedLatency], peers: Sequence[PublishedLatency]) -> Freed:
    """Replaces what is the host's by what the peer takes at the same sizes and point; drops it where that is not known.

    Args:
        rows: of one family, launched by the host.
        peers: of its peer, in replayed graphs; each of one part, as the rows.
    """
    launch_s = _launches_s(rows)
    taken = {(_sizes(row), row.point): row.latency_s for row in peers}
    known = [(row, taken.get((_sizes(row), row.point)), row.latency_s < _HIDDEN * launch_s[row.kernel]) for row in rows]
    shown = [(row.latency_s, peer_s) for row, peer_s, hidden in known if peer_s is not None and not hidden]
    if len(shown) < _FEWEST:
        return Freed([row for row, _, hidden in known if not hidden])
    own_s, peers_s = np.array(shown).T
    ratio = float(np.median(own_s / peers_s))
    freed = []
    for row, peer_s, hidden in known:
        if not hidden:
            freed.append(row)
        elif peer_s is not None:
            freed.append(replace(row, latency_s=min(row.latency_s, ratio * peer_s)))
    return Freed(freed, float(np.mean(np.abs(ratio * peers_s / own_s - 1))))


def _launches_s(rows: Sequence[PublishedLatency]) -> Mapping[str, float]:
    """What the launch of each kernel takes, in seconds."""
    of_kernel: dict[str, list[float]] = {}
    for row in rows:
        of_kernel.setdefault(row.kernel, []).append(row.latency_s)
    return {kernel: float(np.quantile(latencies_s, _LAUNCH)) for kernel, latencies_s in of_kernel.items()}


def _sizes(row: PublishedLatency) -> tuple[tuple[str, int], ...]:
    (part,) = parts_of(row.signature)
    return part.sizes
