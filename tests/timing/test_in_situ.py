"""Operations alone and within a pass, on the fake engine: every operation that a layer shows, at every batch."""

from __future__ import annotations

from pathlib import Path

from pytest_dooly.core.batch import Batch
from pytest_dooly.core.configuration import resolve
from pytest_dooly.core.operation import OperationKind
from pytest_dooly.core.signature import ServedModel, model_operations
from pytest_dooly.engine import load_engine
from pytest_dooly.timing.clock import Clocks
from pytest_dooly.timing.in_situ import measure_in_situ
from pytest_dooly.tracing.trace import trace
from tests.models import LLAMA, write


def test_every_layer_is_timed_both_ways(tmp_path: Path) -> None:
    engine = load_engine("fake")
    configuration = resolve(str(write(tmp_path, LLAMA, hidden_size=64, intermediate_size=96, vocab_size=128)))
    traced, limits = trace(engine, configuration)
    model = ServedModel("key", "small", traced.architecture, limits, model_operations(traced))
    batches = [Batch.parse("1+16"), Batch.parse("2x1+8,4+0")]
    lines: list[str] = []
    session = engine.open(configuration)
    try:
        clocks = Clocks(engine.environment(configuration))
        found = measure_in_situ(session, model, batches, clocks, progress=lines.append)
    finally:
        session.close()
    layers = [each for each in model.operations if each.signature.kind not in (OperationKind.OVERHEAD,)]
    shown = {operation.signature.label for operation in layers if "/" not in operation.layers[0]}
    for step, batch in zip(found.steps, batches, strict=True):
        assert step.batch == str(batch)
        assert {row.label for row in step.rows} == shown
        assert all(row.isolated_s > 0 and row.in_situ_s > 0 for row in step.rows)
    assert {row.label: row.multiplicity for row in found.rows}.items() <= {
        operation.signature.label: operation.multiplicity for operation in layers
    }.items()
    assert len(lines) == 2
