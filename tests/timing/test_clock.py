"""Clocks of a host and of a device, whose time is simulated and never asserted; also through pytest-benchmark."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pytest_dooly import engine as engine_module
from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.core.configuration import ModelConfiguration
from pytest_dooly.core.environment import CUDA_EVENT, CUDA_GRAPH, EAGER, PERF_COUNTER, Environment
from pytest_dooly.core.operation import LAUNCH, Operation, OperationKind
from pytest_dooly.core.signature import ModelOperation, Signature
from pytest_dooly.engine.base import Clock, Engine, IsolatedCall, Origins, Session, Skeleton
from pytest_dooly.engine.fake import FakeEngine
from pytest_dooly.timing import clock as clock_module
from pytest_dooly.timing.clock import Clocks, Device, DeviceClock, HostClock
from tests.models import LLAMA, write
from tests.samples import ENVIRONMENT, LINEAR, SAMPLER, STEP

LAUNCH_S, RECORD_S, GAP_S = 5e-6, 1e-6, 0.25e-6
"""Host seconds of handing over a kernel and an event; device seconds between kernels that come one by one."""

KERNELS_S = (2e-6, 30e-6)
"""Device seconds of the two kernels of each layer: one that is over before the next is handed over, one that is not."""

HOST_S, WAITED_S, FORWARD_S, INPUTS_S = 200e-6, 50e-6, 3e-3, 1e-6
"""Seconds of a step's own work on the host and on the device, of its forward pass, and of what precedes a layer."""


class Host:
    """Takes the place of the module `time`."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def perf_counter(self) -> float:
        return self.now_s

    def passes(self, seconds: float) -> None:
        self.now_s += seconds


class SimulatedDevice:
    """Works through kernels while its host goes on; an event is the second at which the device reaches it."""

    name = "cpu"

    def __init__(self, host: Host) -> None:
        self.host = host
        self.captures = 0
        self._free_at_s = 0.0
        self._graph: list[float] | None = None

    def launch(self, kernel_s: float) -> None:
        self.host.passes(LAUNCH_S)
        if self._graph is not None:
            self._graph.append(kernel_s)
        else:
            self._work(GAP_S + kernel_s)

    def record(self) -> float:
        self.host.passes(RECORD_S)
        self._work(0)
        return self._free_at_s

    def elapsed_s(self, start: float, end: float) -> float:
        self.host.now_s = max(self.host.now_s, end)
        return end - start

    def synchronise(self) -> None:
        self.host.now_s = max(self.host.now_s, self._free_at_s)

    def hold(self, seconds: float) -> None:
        self.host.passes(LAUNCH_S)
        self._work(seconds)

    def capture(self, run: Callable[[], object]) -> Callable[[], object]:
        self.captures += 1
        run()
        self._graph = graph = list[float]()
        run()
        self._graph = None

        def replay() -> None:
            self.host.passes(LAUNCH_S)
            self._work(sum(graph))

        return replay

    def _work(self, seconds: float) -> None:
        self._free_at_s = max(self._free_at_s, self.host.now_s) + seconds


class SimulatedEngine(FakeEngine):
    """Serves on a simulated GPU."""

    def __init__(self, device: SimulatedDevice, clock: str, *, interrupted: bool = False) -> None:
        self._device = device
        self._clock = clock
        self._interrupted = interrupted

    def environment(self, configuration: ModelConfiguration) -> Environment:
        execution = configuration.options.execution
        return dataclasses.replace(ENVIRONMENT, device="simulated GPU", clock=self._clock, execution=execution)

    @contextmanager
    def skeleton(self, configuration: ModelConfiguration, origins: Origins) -> Iterator[Skeleton]:
        with super().skeleton(configuration, origins) as skeleton:
            launch = Operation(OperationKind.OVERHEAD, LAUNCH, (), (), (), "layers.0")
            overheads = (*skeleton.overheads(), launch)
            skeleton.overheads = lambda: overheads  # type: ignore[method-assign]
            yield skeleton

    def open(
        self, configuration: ModelConfiguration, *, isolating: Sequence[ModelOperation] = (), kv_tokens: int = 0
    ) -> Session:
        session = super().open(configuration, isolating=isolating, kv_tokens=kv_tokens)
        session.isolate = self._isolate  # type: ignore[method-assign]
        return session

    @contextmanager
    def _isolate(self, operation: ModelOperation, point: SweepPoint, clock: Clock) -> Iterator[IsolatedCall]:
        if operation.signature.name == "step":
            yield IsolatedCall(lambda: self._step(clock))
        else:
            paused = clock if self._interrupted and operation.signature.name != LAUNCH else None
            yield IsolatedCall(lambda: self._layer(paused), lambda: self._device.launch(INPUTS_S))

    def _layer(self, paused: Clock | None) -> None:
        for kernel_s in KERNELS_S:
            self._device.launch(kernel_s)
            if paused is not None:
                paused.pause()
                self._device.launch(FORWARD_S)
                paused.resume()

    def _step(self, clock: Clock) -> None:
        self._device.host.passes(HOST_S)
        self._device.launch(WAITED_S)
        clock.pause()
        self._device.launch(FORWARD_S)
        clock.resume()


@pytest.fixture(scope="module", autouse=True)
def _loaded(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Everything compiled is loaded: pytester unloads what an inner session loads, and numpy cannot be loaded twice."""
    for module in (
        *("matplotlib.pyplot", "matplotlib.backends.backend_svg", "scipy.optimize"),
        *("pytest_dooly.report.plots", "pytest_dooly.profiling", "pytest_dooly.tracing.trace"),
    ):
        importlib.import_module(module)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host()
    monkeypatch.setattr(clock_module, "time", host)
    return host


@pytest.fixture
def device(host: Host, monkeypatch: pytest.MonkeyPatch) -> SimulatedDevice:
    device = SimulatedDevice(host)
    monkeypatch.setattr(clock_module, "CudaDevice", lambda: device)
    return device


def test_a_stopped_clock_does_not_count(host: Host) -> None:
    clock = HostClock()
    start = clock.now()
    host.passes(1)
    clock.pause()
    host.passes(10)
    clock.resume()
    host.passes(2)
    assert clock.now() - start == 3


@pytest.mark.parametrize("clock_of", [lambda device: HostClock(), HostClock, DeviceClock])
def test_pauses_nest(clock_of: Callable[[Device], Clock], host: Host, device: SimulatedDevice) -> None:
    clock = clock_of(device)
    start = clock.now()
    clock.pause()
    clock.pause()
    host.passes(5)
    clock.resume()
    host.passes(5)
    clock.resume()
    host.passes(1)
    # A device that has nothing to do reaches an event at the second that the host records it.
    assert clock.now() - start == pytest.approx(1, abs=3 * RECORD_S)


def test_a_device_s_clock_counts_what_the_device_does_and_no_pause(device: SimulatedDevice) -> None:
    clock = DeviceClock(device)
    device.hold(1)
    readings = [clock.now()]
    for kernel_s in (3e-3, 5e-3):
        device.launch(kernel_s)
        clock.pause()
        device.launch(7e-3)
        clock.resume()
        readings.append(clock.now())
    # Of any two readings, and whichever is asked for first.
    assert readings[2] - readings[0] == pytest.approx(8e-3 + 2 * GAP_S, abs=1e-9)
    assert readings[1] - readings[0] == pytest.approx(3e-3 + GAP_S, abs=1e-9)
    assert readings[2] - readings[1] == pytest.approx(5e-3 + GAP_S, abs=1e-9)


def test_reading_a_device_s_clock_does_not_wait(host: Host, device: SimulatedDevice) -> None:
    clock = DeviceClock(device)
    before_s = host.now_s
    start = clock.now()
    device.launch(1)
    end = clock.now()
    assert host.now_s - before_s == pytest.approx(2 * RECORD_S + LAUNCH_S)
    assert end - start == pytest.approx(1, abs=1e-4)
    assert host.now_s - before_s > 1


def test_the_host_s_clock_awaits_the_device_where_it_is_told_to(device: SimulatedDevice) -> None:
    spans = []
    for clock in (HostClock(), HostClock(device)):
        start = clock.now()
        device.launch(1)
        spans.append(clock.now() - start)
    assert spans == pytest.approx([LAUNCH_S, 1 + LAUNCH_S + GAP_S])


def medians(pytester: pytest.Pytester, *args: str) -> dict[str, set[float]]:
    """What pytest-benchmark reports of each kind of operation, in nanoseconds."""
    write(pytester.path / "model", LLAMA, hidden_size=64, intermediate_size=96, vocab_size=128)
    result = pytester.runpytest_inprocess(
        *("-p", "no:cov", "--dooly-model=model", "--benchmark-json=benchmark.json", *args),
        *("--dooly-max-num-tokens=16", "--dooly-max-model-len=32", "--dooly-max-num-seqs=2"),
    )
    assert result.ret == 0
    reported: dict[str, set[float]] = {}
    for benchmark in json.loads(Path("benchmark.json").read_text(encoding="utf-8"))["benchmarks"]:
        reported.setdefault(benchmark["group"].partition("-")[0], set()).add(round(benchmark["stats"]["median"] * 1e9))
    return reported


def serve_on(
    device: SimulatedDevice, clock: str, monkeypatch: pytest.MonkeyPatch, *, interrupted: bool = False
) -> None:
    def load(name: str) -> Engine:
        return SimulatedEngine(device, clock, interrupted=interrupted)

    monkeypatch.setattr(engine_module, "load_engine", load)


def in_ns(seconds: float) -> set[float]:
    return {round(seconds * 1e9)}


@pytest.mark.parametrize("interrupted", [False, True])
def test_pytest_benchmark_reports_the_device_s_time_and_no_pause(
    pytester: pytest.Pytester, device: SimulatedDevice, monkeypatch: pytest.MonkeyPatch, *, interrupted: bool
) -> None:
    serve_on(device, CUDA_EVENT, monkeypatch, interrupted=interrupted)
    reported = medians(pytester)
    assert len(reported) > 5
    # The host's own work with the device awaited, less the forward pass, however long that takes.
    assert reported.pop("step") == in_ns(HOST_S + LAUNCH_S + GAP_S + WAITED_S)
    # The host's launches, which need not await anything.
    assert reported.pop(LAUNCH) == in_ns(2 * LAUNCH_S)
    for label, latencies_ns in reported.items():
        assert latencies_ns == in_ns(sum(KERNELS_S) + 2 * GAP_S), label
    assert device.captures == 0


def test_pytest_benchmark_reports_the_time_of_a_replayed_graph(
    pytester: pytest.Pytester, device: SimulatedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_on(device, CUDA_EVENT, monkeypatch)
    reported = medians(pytester, "--dooly-execution=cuda_graph")
    assert reported.pop("step") == in_ns(HOST_S + LAUNCH_S + GAP_S + WAITED_S)
    assert reported.pop("sampler") == in_ns(sum(KERNELS_S) + 2 * GAP_S)  # which engines leave out of their graphs
    reported.pop(LAUNCH)
    for label, latencies_ns in reported.items():
        assert latencies_ns == in_ns(sum(KERNELS_S)), label
    assert device.captures > len(reported)


def test_the_host_s_clock_would_report_launches_for_layers(
    pytester: pytest.Pytester, device: SimulatedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_on(device, PERF_COUNTER, monkeypatch)
    reported = medians(pytester)
    for label in reported.keys() - {"step", LAUNCH}:
        assert reported[label] == in_ns(2 * LAUNCH_S), label
    assert reported["step"] == in_ns(HOST_S + LAUNCH_S)


def test_a_device_that_is_not_held_would_wait_for_the_host(device: SimulatedDevice) -> None:
    """What `Clocks.ready` is for: here the device is idle when the layer comes."""
    clock = DeviceClock(device)
    start = clock.now()
    for kernel_s in KERNELS_S:
        device.launch(kernel_s)
    assert clock.now() - start > sum(KERNELS_S) + 2 * GAP_S + LAUNCH_S


@pytest.mark.parametrize("execution", [EAGER, CUDA_GRAPH])
@pytest.mark.parametrize("signature", [LINEAR, SAMPLER, STEP])
def test_a_call_that_needs_no_preparation_is_made_ready_too(
    signature: Signature, execution: str, device: SimulatedDevice
) -> None:
    environment = dataclasses.replace(ENVIRONMENT, clock=CUDA_EVENT, execution=execution)
    clocks = Clocks(environment, lambda: device)
    call = clocks.ready(signature, IsolatedCall(lambda: device.launch(1e-3)))
    clock, spans = clocks.of(signature), list[Any]()
    for _ in range(2):
        call.before()
        start = clock.now()
        call.run()
        spans.append(clock.now() - start)
    assert spans == pytest.approx([1e-3, 1e-3], rel=0.01)


def test_a_long_launch_does_not_hold_the_device_for_long(host: Host, device: SimulatedDevice) -> None:
    """The first run of a kernel may compile it for seconds."""
    environment = dataclasses.replace(ENVIRONMENT, clock=CUDA_EVENT)
    call = Clocks(environment, lambda: device).ready(LINEAR, IsolatedCall(lambda: host.passes(60)))
    call.run()
    before_s = host.now_s
    call.before()
    device.synchronise()
    assert host.now_s - before_s < 0.1
