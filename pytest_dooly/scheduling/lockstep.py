"""Engines that share the experts of a mixture: each schedules for itself, and all take each step together.

Source: data-parallel attention of vLLM 0.32.0. `DPLBAsyncMPClient.get_core_engine_for_request` sends a request to the
engine with the fewest under way, the next one in turn of several. `DPEngineCoreProc` runs a step without requests where
an engine has none and another has, since the operator of a mixture waits for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from pytest_dooly.core.traffic import TrafficRequest
from pytest_dooly.scheduling.native import NativeScheduler
from pytest_dooly.scheduling.scheduler import Scheduled, Scheduler, SchedulerOptions, Together

__all__ = ["Lockstep", "scheduler_of"]


class Lockstep:
    """The schedulers of engines that step together, as one; see `Scheduler`."""

    def __init__(
        self, options: SchedulerOptions, make: Callable[[SchedulerOptions], Scheduler] = NativeScheduler
    ) -> None:
        """Idle engines.

        Args:
            options: how each of them schedules, and how many they are.
            make: makes an idle scheduler of one engine.
        """
        alone = replace(options, engines=1)
        self._engines = [make(alone) for _ in range(options.engines)]
        self._homes: dict[int, int] = {}
        self._next = 0  # the engine that is asked first

    def add(self, place: int, request: TrafficRequest) -> None:
        """Lets a request wait at the engine with the fewest; see `Scheduler.add`.

        Raises:
            ConfigurationError: it is longer than max_model_len.
        """
        number = len(self._engines)
        in_turn = [(self._next + i) % number for i in range(number)]
        home = min(in_turn, key=lambda at: self._engines[at].num_waiting + self._engines[at].num_running)
        self._engines[home].add(place, request)
        self._homes[place], self._next = home, (home + 1) % number

    def schedule(self) -> Scheduled | None:
        """The next step of all; None where no engine has one."""
        steps = [engine.schedule() for engine in self._engines]
        return Together(steps) if any(step is not None for step in steps) else None

    def update(self, step: Scheduled) -> Sequence[int]:
        """Takes note of a step's end; see `Scheduler.update`."""
        assert isinstance(step, Together)
        parts = zip(self._engines, step.engines, strict=True)
        return [place for engine, part in parts if part is not None for place in engine.update(part)]

    @property
    def num_waiting(self) -> int:
        """Requests that wait to be admitted, at all engines."""
        return sum(engine.num_waiting for engine in self._engines)

    @property
    def num_running(self) -> int:
        """Requests that are admitted, at all engines."""
        return sum(engine.num_running for engine in self._engines)

    @property
    def used_blocks(self) -> int:
        """KV blocks held at the engine that holds most."""
        return max(engine.used_blocks for engine in self._engines)

    def cached_tokens(self, place: int) -> int:
        """Tokens of a request's prompt that its engine had in the prefix cache when it was first admitted."""
        return self._engines[self._homes[place]].cached_tokens(place)


def scheduler_of(
    options: SchedulerOptions, make: Callable[[SchedulerOptions], Scheduler] = NativeScheduler
) -> Scheduler:
    """An idle scheduler of one engine, or of several that step together.

    Args:
        options: how each of them schedules, and how many they are.
        make: makes an idle scheduler of one engine.
    """
    return make(options) if options.engines == 1 else Lockstep(options, make)
