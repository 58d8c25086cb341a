"""A pass that halts: every call is made by whoever asks for it, and the pass goes on with what it came to."""

from __future__ import annotations

import pytest

from pytest_dooly.engine.halting import Halted, HaltingPass
from pytest_dooly.errors import EngineError


class Pass:
    """Two layers, each the double of its input."""

    def __init__(self) -> None:
        self.log: list[object] = []
        self.halting = HaltingPass(self.forward, "a layer")
        self.layer = Halted(lambda value, plus=0: 2 * value + plus, self.halting)

    def forward(self) -> None:
        try:
            first = self.layer(1)
            self.log.append(first)
            self.log.append(self.layer.forward(first, plus=1))
        finally:
            self.log.append("left")


def test_each_call_is_made_where_the_pass_has_come_to() -> None:
    run = Pass()
    results = []
    for _ in range(3):
        run.halting.proceed()
        results.append(run.halting.call())
    assert results == [2, 5, 2]
    assert run.log == [2, 5, "left"]


def test_a_pass_that_is_left_closes_what_it_has_opened() -> None:
    run = Pass()
    run.halting.proceed()
    run.halting.close()
    assert run.log == ["left"]
    run.halting.close()


def test_a_pass_that_never_halts_is_named() -> None:
    halting = HaltingPass(lambda: None, "attention-4h2kv16-bf16")
    with pytest.raises(EngineError, match=r"cannot isolate attention-4h2kv16-bf16: the forward pass never calls it"):
        halting.proceed()


def test_what_goes_wrong_in_the_pass_reaches_the_caller() -> None:
    def forward() -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        HaltingPass(forward, "a layer").proceed()


def test_a_layer_keeps_its_attributes() -> None:
    class Layer:
        size = 3

    assert Halted(Layer(), HaltingPass(lambda: None, "x")).size == 3
