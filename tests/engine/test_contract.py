"""What every engine adapter must do; the real engine where it is installed, the fake always."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from pytest_dooly.core.batch import Batch, Limits, SweepPoint
from pytest_dooly.core.configuration import ModelConfiguration, ServingOptions, resolve
from pytest_dooly.core.operation import OperationKind, evaluate
from pytest_dooly.core.signature import ModelOperation, model_operations
from pytest_dooly.core.workload import Workload
from pytest_dooly.engine import load_engine
from pytest_dooly.engine.base import Engine, Session
from pytest_dooly.errors import ConfigurationError, EngineError
from pytest_dooly.timing.clock import HostClock
from pytest_dooly.tracing.trace import _Repeats, trace
from tests.models import DENSE, LLAMA, write
from tests.scheduling.schedulers import served as steps_of

needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
LIMITS = Limits(max_num_tokens=256, max_num_seqs=4, max_model_len=256)
OPTIONS = ServingOptions(device="cpu", **dataclasses.asdict(LIMITS))
POINTS = {
    "num_tokens": [SweepPoint(num_tokens=1), SweepPoint(num_tokens=48)],
    "num_reqs": [SweepPoint(num_reqs=3)],
    "batch": [SweepPoint(batch=Batch.parse(text)) for text in ("2x1+16", "64")],
}


@pytest.fixture(scope="module", params=["fake", pytest.param("vllm", marks=needs_vllm)])
def engine(request: pytest.FixtureRequest) -> Engine:
    return load_engine(request.param)


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> ModelConfiguration:
    return resolve(str(write(tmp_path_factory.mktemp("llama"), LLAMA)), OPTIONS)


@pytest.fixture(scope="module")
def operations(engine: Engine, configuration: ModelConfiguration) -> tuple[ModelOperation, ...]:
    return model_operations(trace(engine, configuration)[0])


@pytest.fixture(scope="module")
def session(
    engine: Engine, configuration: ModelConfiguration, operations: tuple[ModelOperation, ...]
) -> Iterator[Session]:
    session = engine.open(configuration, isolating=operations, kv_tokens=1024)
    yield session
    session.close()


def test_environment_is_stable_and_complete(engine: Engine, configuration: ModelConfiguration) -> None:
    environment = engine.environment(configuration)
    assert environment == engine.environment(configuration)
    assert environment.engine == engine.name
    assert all(str(value) for value in vars(environment).values())


def test_limits_are_those_asked_for(engine: Engine, configuration: ModelConfiguration) -> None:
    _, limits = trace(engine, configuration)
    assert (limits.max_num_tokens, limits.max_num_seqs, limits.max_model_len) == (256, 4, 256)


def test_a_trace_finds_every_kind_and_names_every_size(engine: Engine, configuration: ModelConfiguration) -> None:
    recorded, _ = trace(engine, configuration)
    kinds = {operation.kind for operation in recorded.operations}
    assert {"embedding", "norm", "linear", "attention", "activation", "sampler", "overhead"} <= kinds
    down = next(
        o for o in recorded.operations if o.layer.endswith("layers.1.mlp.down_proj") or o.layer.endswith("1.down_proj")
    )
    assert [str(dim) for dim in down.inputs[0].shape] == ["num_tokens", "intermediate_size"]
    assert [str(dim) for dim in down.parameters[0].shape] == ["hidden_size", "intermediate_size"]
    request = {"num_tokens": 7, "num_reqs": 3, "query_len": 5, "context_len": 140}
    sizes = {
        evaluate(dim, {**recorded.symbols, **request}) for o in recorded.operations for t in o.inputs for dim in t.shape
    }
    # 2 heads of keys, of 145 tokens in 2 blocks of 128.
    assert sizes <= {2, 3, 7, 64, 128, 145, 256, 512, 704, 1408, 2048}


def test_tracing_twice_gives_the_same(engine: Engine, configuration: ModelConfiguration) -> None:
    assert trace(engine, configuration) == trace(engine, configuration)


@pytest.mark.parametrize("name", DENSE)
def test_a_repeated_layer_is_recorded_as_if_it_had_run(
    engine: Engine, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = resolve(str(write(tmp_path, DENSE[name], num_hidden_layers=4)), OPTIONS)
    with monkeypatch.context() as patch:
        patch.setattr(_Repeats, "taken", lambda self, layers: contextlib.nullcontext())
        every_layer = trace(engine, configuration)
    assert trace(engine, configuration) == every_layer


def test_every_operation_runs_alone_and_again(session: Session, operations: tuple[ModelOperation, ...]) -> None:
    clock = HostClock()
    for operation in operations:
        for point in POINTS[operation.signature.swept]:
            with session.isolate(operation, point, clock) as call:
                for _ in range(3):
                    call.before()
                    start = clock.now()
                    call.run()
                    assert clock.now() >= start, operation.signature.label


def test_an_isolated_layer_computes_what_it_is_for(session: Session, operations: tuple[ModelOperation, ...]) -> None:
    down = next(o for o in operations if "down_proj" in o.layers[0])
    with session.isolate(down, SweepPoint(num_tokens=7), HostClock()) as call:
        call.before()
        output: Any = call.run()
    output = output[0] if isinstance(output, tuple) else output
    assert tuple(output.shape) == (7, 256)


def test_a_pass_shows_every_layer_as_often_as_it_runs(session: Session, operations: tuple[ModelOperation, ...]) -> None:
    latencies_s = session.time_layers(Batch.of([(1, 20), (6, 0)]), HostClock())
    for operation in operations:
        if operation.layers[0] not in latencies_s or operation.signature.kind is OperationKind.OVERHEAD:
            continue
        samples = [sample for path in operation.layers for sample in latencies_s[path]]
        assert len(samples) == operation.multiplicity, operation.signature.label
        assert min(samples) > 0
    assert {"linear", "attention"} <= {o.signature.name for o in operations if o.layers[0] in latencies_s}


def test_generate_reports_every_request(session: Session) -> None:
    timings = session.generate(Workload(16, 4, 3))
    assert len(timings) == 3
    for timing in timings:
        assert timing.ttft_s > 0
        assert timing.tpot_s is not None
        assert timing.tpot_s > 0
    assert session.generate(Workload(16, 1, 1))[0].tpot_s is None
    assert len(session.generate(Workload(16, 2, 2, num_reqs=5))) == 5


@contextlib.contextmanager
def batches_of(session: Any) -> Iterator[list[Batch]]:
    """What every step of a session works on, requests in the order in which they were admitted."""
    batches: list[Batch] = []
    if not hasattr(session, "_requests"):  # the fake
        step = session._step

        def run(batch: Batch) -> None:
            batches.append(batch)
            step(batch)

        with mock.patch.object(session, "_step", run):
            yield batches
        return
    scheduler = session._requests.scheduler
    schedule_ = scheduler.schedule

    def schedule_one(*args: Any) -> Any:
        scheduled = schedule_(*args)
        query_len = scheduled.num_scheduled_tokens
        computed = {new.req_id: new.num_computed_tokens for new in scheduled.scheduled_new_reqs}
        cached = scheduled.scheduled_cached_reqs
        computed |= dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        if query_len:
            batches.append(Batch.of((query_len[each], computed[each]) for each in sorted(query_len, key=_admitted)))
        return scheduled

    with mock.patch.object(scheduler, "schedule", schedule_one):
        yield batches


def _admitted(request: str) -> int:
    return int(request.split("-")[0])


@pytest.mark.parametrize(
    "workload",
    [
        Workload(100, 3, 4),
        Workload(100, 5, 3, num_reqs=8),
        Workload(150, 4, 6, num_reqs=9),  # two wait for a seat
        Workload(8, 1, 2, num_reqs=5),
    ],
    ids=str,
)
def test_the_virtual_scheduler_makes_the_steps_that_the_engine_makes(session: Session, workload: Workload) -> None:
    with batches_of(session) as batches:
        session.generate(workload)
    assert batches == [step.batch for step in steps_of(workload, LIMITS)[0]]


def test_a_broken_configuration_is_one_clear_error(engine: Engine, tmp_path: Path) -> None:
    broken = {key: value for key, value in LLAMA.items() if key != "vocab_size"} | {"num_attention_heads": "many"}
    configuration = resolve(str(write(tmp_path, broken)), OPTIONS)
    with pytest.raises((ConfigurationError, EngineError)) as error:
        trace(engine, configuration)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_kinds_are_pytest_markers() -> None:
    assert all(kind.value.isidentifier() for kind in OperationKind)
