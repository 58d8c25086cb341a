"""Clocks that a device's time is read from, behind one interface; see `Clock`.

A GPU works through what it is handed while the host goes on, so the host's clock says little about it: the time of a
layer is read from events on the device. What is the host's own work stays on the host's clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from pytest_dooly.core.environment import CUDA_EVENT, CUDA_GRAPH, Environment
from pytest_dooly.core.operation import LAUNCH, OperationKind
from pytest_dooly.core.signature import Signature
from pytest_dooly.engine.base import Clock, IsolatedCall

__all__ = ["Clocks", "CudaDevice", "Device", "DeviceClock", "HostClock"]

_NOT_IN_GRAPHS = frozenset({OperationKind.LOGITS, OperationKind.SAMPLER})
"""Kinds of operations that the engine runs eagerly after the graph of its model."""

_SLACK_S, _LONGEST_HOLD_S = 50e-6, 10e-3
"""Seconds that a device is held for at least, and at most."""


class Device(Protocol):
    """A device that works through what it is handed, in order, while the host goes on.

    Attributes:
        name: what torch calls it.
    """

    name: str

    def record(self) -> Any:
        """An event, which the device reaches when it has done everything that it was handed before."""

    def elapsed_s(self, start: Any, end: Any) -> float:
        """Device seconds from one event to another; waits until it has reached both."""

    def synchronise(self) -> None:
        """Waits until the device has done everything that it was handed."""

    def hold(self, seconds: float) -> None:
        """Keeps the device busy for about that long, without touching its caches or making the host wait."""

    def capture(self, run: Callable[[], object]) -> Callable[[], object]:
        """What hands the device everything at once that `run` hands it bit by bit."""


class CudaDevice:
    """The current CUDA device; see `Device`."""

    name = "cuda"

    def __init__(self) -> None:
        import torch

        self._cuda = torch.cuda

    def record(self) -> Any:
        """A timed event on the current stream."""
        event = self._cuda.Event(enable_timing=True)
        event.record()
        return event

    def elapsed_s(self, start: Any, end: Any) -> float:
        """Device seconds from one event to another; CUDA counts in steps of half a microsecond."""
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    def synchronise(self) -> None:
        """Waits for all streams."""
        self._cuda.synchronize()

    def hold(self, seconds: float) -> None:
        """A kernel that counts cycles."""
        self._cuda._sleep(int(seconds * self._cycles_per_s))

    def capture(self, run: Callable[[], object]) -> Callable[[], object]:
        """The replay of a CUDA graph."""
        # What is set up at first use, a compiled kernel for one, is no part of a graph.
        side = self._cuda.Stream()
        side.wait_stream(self._cuda.current_stream())
        with self._cuda.stream(side):
            run()
        self._cuda.current_stream().wait_stream(side)
        graph = self._cuda.CUDAGraph()
        with self._cuda.graph(graph):
            run()
        replay: Callable[[], object] = graph.replay
        return replay

    @cached_property
    def _cycles_per_s(self) -> float:
        cycles = 1_000_000
        self._cuda._sleep(cycles)
        start = self.record()
        self._cuda._sleep(cycles)
        return cycles / self.elapsed_s(start, self.record())


class HostClock:
    """The host's monotonic clock, which can be stopped while something runs that is not to be counted."""

    def __init__(self, device: Device | None = None) -> None:
        """Starts the clock.

        Args:
            device: is awaited before the clock is read, stopped or goes on; None where nothing is to be awaited.
        """
        self._device = device
        self._stopped_s = 0.0
        self._stopped_at = 0.0
        self._depth = 0

    def now(self) -> float:
        """Seconds that the clock has been running."""
        return self._read() - self._stopped_s

    def pause(self) -> None:
        """Stops the clock; pauses may nest."""
        if self._depth == 0:
            self._stopped_at = self._read()
        self._depth += 1

    def resume(self) -> None:
        """Lets the clock go on."""
        self._depth -= 1
        if self._depth == 0:
            self._stopped_s += self._read() - self._stopped_at

    def _read(self) -> float:
        if self._device is not None:
            self._device.synchronise()
        return time.perf_counter()


@dataclass
class _Pause:
    """A span that is not counted; knows the next one, so that those before the last reading are forgotten."""

    start: Any = None
    end: Any = None
    next: _Pause | None = None


@dataclass(frozen=True)
class _Reading:
    """An event, and the last pause before it."""

    device: Device
    event: Any
    pause: _Pause = field(repr=False)

    def __sub__(self, earlier: _Reading) -> float:
        """Device seconds between two readings, less the pauses between them; waits for the device."""
        elapsed_s = self.device.elapsed_s(earlier.event, self.event)
        pause = earlier.pause
        while pause is not self.pause and pause.next is not None:
            pause = pause.next
            elapsed_s -= self.device.elapsed_s(pause.start, pause.end)
        return elapsed_s


class DeviceClock:
    """The device's own time, read from events among its work; reading it makes nobody wait, a difference does."""

    def __init__(self, device: Device) -> None:
        """Starts the clock of a device."""
        self._device = device
        self._paused_at: Any = None
        self._last = _Pause()
        self._depth = 0

    def now(self) -> _Reading:
        """A reading, of which the difference to another is in seconds."""
        return _Reading(self._device, self._device.record(), self._last)

    def pause(self) -> None:
        """Stops the clock; pauses may nest."""
        if self._depth == 0:
            self._paused_at = self._device.record()
        self._depth += 1

    def resume(self) -> None:
        """Lets the clock go on."""
        self._depth -= 1
        if self._depth == 0:
            self._last.next = _Pause(self._paused_at, self._device.record())
            self._last = self._last.next


class Clocks:
    """What the time of each operation is read from in an environment, and how its call is made ready for that.

    On the host, everything is read from its clock. On a GPU, a layer's time is the device's; that of overheads is the
    host's, with the device awaited; and what it takes the host to launch a layer is the host's, with nothing awaited.
    """

    def __init__(self, environment: Environment, device: Callable[[], Device] | None = None) -> None:
        """Makes no device before one is needed.

        Args:
            environment: says which clock is read and whether graphs are replayed.
            device: makes the device; None for the current CUDA device.
        """
        self._on_host = environment.clock != CUDA_EVENT
        self._replays = environment.execution == CUDA_GRAPH
        self._host = HostClock()
        self._make_device = device or CudaDevice

    def of(self, operation: Signature) -> Clock:
        """The clock that the operation is timed with."""
        if self._on_host or operation.name == LAUNCH:
            return self._host
        return self._awaiting if operation.kind is OperationKind.OVERHEAD else self._events

    @property
    def of_layers(self) -> Clock:
        """The clock that layers are timed with."""
        return self._host if self._on_host else self._events

    @property
    def device_name(self) -> str:
        """Where layers run, as torch names it."""
        return "cpu" if self._on_host else self._device.name

    def ready(self, operation: Signature, call: IsolatedCall) -> IsolatedCall:
        """The call as it is timed: replayed from a graph where the engine replays one, on a device held until then.

        Raises:
            Exception: whatever the device says of a call that cannot be captured.
        """
        if self._on_host:
            return call
        if operation.kind is OperationKind.OVERHEAD:
            return _awaited(call, self._device) if operation.name == LAUNCH else call
        if self._replays and operation.kind not in _NOT_IN_GRAPHS:
            call.before()
            call = IsolatedCall(self._device.capture(call.run), call.again or call.before)
        return _held(call, self._device)

    @cached_property
    def _device(self) -> Device:
        return self._make_device()

    @cached_property
    def _awaiting(self) -> HostClock:
        return HostClock(self._device)

    @cached_property
    def _events(self) -> DeviceClock:
        return DeviceClock(self._device)


def _awaited(call: IsolatedCall, device: Device) -> IsolatedCall:
    """A call before which the device has become idle."""

    def before() -> None:
        call.before()
        device.synchronise()

    return IsolatedCall(call.run, before)


def _held(call: IsolatedCall, device: Device) -> IsolatedCall:
    """A call that the device begins when the host has handed over all of it, so that it never waits for the host.

    In a step it does not wait either, unless the host's launches take longer than its own work; that is an overhead.
    """
    launch_s = 0.0

    def before() -> None:
        device.synchronise()
        call.before()
        device.hold(min(_SLACK_S + 2 * launch_s, _LONGEST_HOLD_S))

    def run() -> object:
        nonlocal launch_s
        start_s = time.perf_counter()
        result = call.run()
        launch_s = time.perf_counter() - start_s
        return result

    return IsolatedCall(run, before)
