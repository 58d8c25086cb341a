"""Operations of a few steps timed in turns, so that a slow moment of the machine falls on all of them alike.

Where the host's clock is read, whole forward passes are run and every leaf layer within is timed: that is a hundred
times as many calls as passes that halt before each. On a GPU a layer within a pass would wait for its launch, so that
each is isolated, as when it is profiled; so is everything that no layer shows.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

import psutil
import torch

from pytest_dooly.core.batch import Batch, SweepPoint
from pytest_dooly.core.operation import LAUNCH
from pytest_dooly.core.signature import ModelOperation
from pytest_dooly.core.turn import Place, Turn, point_within
from pytest_dooly.engine.base import Clock, Session
from pytest_dooly.timing.alone import time_alone
from pytest_dooly.timing.clock import Clocks
from pytest_dooly.timing.measure import samples_of

__all__ = ["References", "Turns"]

_BATCH_S = 0.05
"""Seconds that a turn spends on the passes of one step, about."""

_FEWEST_PASSES, _MOST_PASSES = 3, 12
"""Of one step in a turn: a single long call is seldom undisturbed."""

_ROUNDS = 4
"""Of an operation that is isolated, in every turn."""

_OTHERS_S = 1.0
"""Over which what other processes have is counted."""

_REFERENCE_ROUNDS = 3
"""Of each reference, at the beginning, the middle and the end of a turn."""


class References:
    """Three calls that are the same in every run, so that what becomes of them is the machine's doing.

    They answer to what slows a machine down: its cores' clock (a matrix product), its memory (a copy), and the caches
    and branches that an interpreter lives on (small operators, one after the other).
    """

    def __init__(self, clock: Clock, device: str) -> None:
        """Makes them.

        Args:
            clock: that layers are timed with.
            device: of torch.
        """
        self._clock = clock
        left, right = torch.ones(64, 512, device=device), torch.ones(512, 512, device=device)
        small, large = torch.ones(16, device=device), torch.ones(1 << 21, device=device)

        def launch() -> None:
            total = small
            for _ in range(40):
                total = total + small

        self._calls = {"product": lambda: torch.mm(left, right), "launches": launch, "copy": large.clone}

    def fastest_s(self) -> dict[str, float]:
        """Seconds of the fastest of some rounds of each, after one that is not counted."""
        fastest = {}
        for name, call in self._calls.items():
            fastest[name] = float(min(samples_of(call, self._clock, _REFERENCE_ROUNDS)))
        return fastest


class _Others:
    """What other processes have of the processors that this one may use: they share its caches and its memory."""

    def __init__(self) -> None:
        self._places = list(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else None
        self._kept = deque([self._read()])

    def share(self) -> float:
        """Over the last second or longer: the system counts in hundredths of one."""
        self._kept.append(self._read())
        while len(self._kept) > 2 and self._kept[-1][0] - self._kept[1][0] >= _OTHERS_S:
            self._kept.popleft()
        before, now = self._kept[0], self._kept[-1]
        there_s, idle_s, own_s = (later - earlier for later, earlier in zip(now[1:], before[1:], strict=True))
        return min(1.0, max(0.0, 1 - (idle_s + own_s) / there_s)) if there_s else 0.0

    def _read(self) -> tuple[float, float, float, float]:
        """The time, and seconds of processors so far: that there were, that were idle, that this process had."""
        now_s = time.perf_counter()
        every = psutil.cpu_times(percpu=True)
        mine = every if self._places is None else [every[place] for place in self._places if place < len(every)]
        idle_s = sum(each.idle + getattr(each, "iowait", 0.0) for each in mine)
        return now_s, now_s * len(mine), idle_s, time.process_time()


class Turns:
    """Takes turns over the operations of some steps in one session."""

    def __init__(
        self, session: Session, operations: Sequence[ModelOperation], batches: Sequence[Batch], clocks: Clocks
    ) -> None:
        """Runs every step once, which shows what layers there are and about how long a pass takes.

        Args:
            session: that holds the operations.
            operations: to be timed.
            batches: what the steps work on.
            clocks: that operations are timed with.

        Raises:
            Exception: whatever an operation raises.
        """
        self._session, self._clocks, self._batches = session, clocks, batches
        self._references = References(clocks.of_layers, clocks.device_name)
        self._others = _Others()
        self._operations = [each for each in operations if each.signature.name != LAUNCH or clocks.device_name != "cpu"]
        self._within: dict[Batch, list[ModelOperation]] = {}
        self._passes: dict[Batch, int] = {}
        shown: set[ModelOperation] = set()
        for batch in batches if clocks.device_name == "cpu" else ():
            self._pass(batch)  # the first allocates
            start_s = time.perf_counter()
            known = self._pass(batch)
            pass_s = time.perf_counter() - start_s
            self._passes[batch] = max(_FEWEST_PASSES, min(_MOST_PASSES, round(_BATCH_S / pass_s)))
            self._within[batch] = [each for each in self._operations if any(known.get(path) for path in each.layers)]
            shown |= set(self._within[batch])
        alone = [each for each in self._operations if each not in shown]
        pairs = [(each, point_within(each.signature, batch)) for batch in batches for each in alone]
        self._alone: list[tuple[ModelOperation, SweepPoint]] = list(dict.fromkeys(pairs))

    @property
    def places(self) -> frozenset[Place]:
        """Everything that a turn times."""
        within = {
            Place(each.signature.key, str(point_within(each.signature, batch)))
            for batch, operations in self._within.items()
            for each in operations
        }
        return frozenset(within | {Place(each.signature.key, str(point)) for each, point in self._alone})

    def turn(self) -> Turn:
        """One turn.

        Raises:
            Exception: whatever an operation raises.
        """
        start_s, start_cpu_s = time.perf_counter(), time.thread_time()
        beside = [self._references.fastest_s()]
        samples_s: dict[Place, list[float]] = {}
        for batch in self._within:
            self._time_passes(batch, samples_s)
        beside.append(self._references.fastest_s())
        for operation, point in self._alone:
            place = Place(operation.signature.key, str(point))
            rounds = time_alone(self._session, operation, point, self._clocks, _are_enough, warm_up_rounds=1)
            samples_s.setdefault(place, []).extend(rounds)
        beside.append(self._references.fastest_s())
        spent_s, cpu_s = time.perf_counter() - start_s, time.thread_time() - start_cpu_s
        return Turn(
            references_s=_fastest(beside),
            latencies_s={str(place): float(min(taken)) for place, taken in samples_s.items() if taken},
            spent_s=spent_s,
            # A thread that waits for a GPU gives its processor away by itself.
            held=min(1.0, cpu_s / spent_s) if self._clocks.device_name == "cpu" else 1.0,
            others=self._others.share() if self._clocks.device_name == "cpu" else 0.0,
        )

    def _pass(self, batch: Batch) -> Mapping[str, Sequence[float]]:
        return self._session.time_layers(batch, self._clocks.of_layers)

    def _time_passes(self, batch: Batch, samples_s: dict[Place, list[float]]) -> None:
        for _ in range(self._passes[batch]):
            passed = self._pass(batch)
            for operation in self._within[batch]:
                place = Place(operation.signature.key, str(point_within(operation.signature, batch)))
                taken = (sample for path in operation.layers for sample in passed.get(path, ()))
                # What is a difference of two times may come out as nothing.
                samples_s.setdefault(place, []).extend(sample for sample in taken if sample > 0)


def _are_enough(samples_s: Sequence[float]) -> bool:
    return len(samples_s) >= _ROUNDS


def _fastest(rounds: Iterable[Mapping[str, float]]) -> dict[str, float]:
    fastest: dict[str, float] = {}
    for each in rounds:
        for name, latency_s in each.items():
            fastest[name] = min(latency_s, fastest.get(name, latency_s))
    return fastest
