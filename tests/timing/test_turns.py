"""Turns over the operations of steps, on the fake engine: everything that a step runs, and nothing twice."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pytest_dooly.core.batch import Batch
from pytest_dooly.core.configuration import ModelConfiguration, resolve
from pytest_dooly.core.operation import OperationKind
from pytest_dooly.core.signature import ModelOperation, model_operations
from pytest_dooly.core.turn import Place, Turn, point_within
from pytest_dooly.engine import load_engine
from pytest_dooly.engine.base import Session
from pytest_dooly.timing.clock import Clocks
from pytest_dooly.timing.turns import Turns
from pytest_dooly.tracing.trace import trace
from tests.models import LLAMA, write
from tests.samples import ADMISSION, ATTENTION, MIXTURE, SAMPLER

BATCHES = [Batch.parse("2x1+8"), Batch.parse("2x4")]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelConfiguration, tuple[ModelOperation, ...]]:
    folder = write(tmp_path_factory.mktemp("model"), LLAMA, hidden_size=64, intermediate_size=96, vocab_size=128)
    configuration = resolve(str(folder))
    return configuration, model_operations(trace(load_engine("fake"), configuration)[0])


@pytest.fixture
def session(served: tuple[ModelConfiguration, tuple[ModelOperation, ...]]) -> Iterator[Session]:
    opened = load_engine("fake").open(served[0])
    yield opened
    opened.close()


def test_a_turn_times_every_operation_of_every_step(
    served: tuple[ModelConfiguration, tuple[ModelOperation, ...]], session: Session
) -> None:
    configuration, operations = served
    turns = Turns(session, operations, BATCHES, Clocks(load_engine("fake").environment(configuration)))
    turn = turns.turn()
    expected = {Place(o.signature.key, str(point_within(o.signature, b))) for o in operations for b in BATCHES}
    assert {Place.parse(text) for text in turn.latencies_s} == expected == turns.places
    assert all(latency_s > 0 for latency_s in (*turn.latencies_s.values(), *turn.references_s.values()))
    assert set(turn.references_s) == {"product", "launches", "copy"}
    assert Turn.from_json(turn.to_json()) == turn


def test_the_fastest_call_counts(
    served: tuple[ModelConfiguration, tuple[ModelOperation, ...]], session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration, operations = served
    norm = next(each for each in operations if each.signature.kind is OperationKind.NORM)
    turns = Turns(session, [norm], BATCHES[:1], Clocks(load_engine("fake").environment(configuration)))
    passes = iter([[5.0, 3.0], [0.0, 4.0], [9.0, 9.0]] * 9)
    monkeypatch.setattr(session, "time_layers", lambda *_: {norm.layers[0]: next(passes)})
    assert list(turns.turn().latencies_s.values()) == [3.0]  # a difference that came out as nothing is none


def test_what_operations_see_of_a_step() -> None:
    batch = Batch.parse("2x1+8,6")
    points = [str(point_within(each, batch)) for each in (ATTENTION, SAMPLER, ADMISSION)]
    assert points == ["2x1+8,6+0", "R3", "T6"]
    routed = point_within(MIXTURE, batch)
    assert (routed.num_tokens, routed.routing is not None) == (8, True)
