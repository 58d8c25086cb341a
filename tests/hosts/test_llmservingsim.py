"""Bundles for LLMServingSim: what is written is read back by our own import, and adds up to what a step takes."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.core.device import device_named
from pytest_dooly.core.signature import ModelOperation, ServedModel, Signature, portable
from pytest_dooly.core.work import Features, Work
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.hosts.llmservingsim import Written, write_bundle
from pytest_dooly.published.llmservingsim import Bundle
from pytest_dooly.regress.regressor import LatencyModel
from tests.hosts.conftest import LAYERS, planned
from tests.samples import STEP, served, uses
from tests.traced import MIXTRAL_MOE, NORM, attention, collective, linear

H100 = device_named("h100_sxm")
RESIDUAL = replace(NORM, tensors=(*NORM.tensors, ("residual", "bf16", ("num_tokens", 4096))))
GATE = linear(8, 4096)


class Law:
    """Microseconds: so many, one a new token, a thousandth a token before, a hundred an expert, ten at the busiest."""

    def __init__(self, fixed: float) -> None:
        self.fixed = fixed

    def predict_s(self, points: Sequence[SweepPoint] | Work) -> npt.NDArray[np.float64]:
        work = points if isinstance(points, Work) else Work.of(points)
        of = Features(work, None)
        before = work.sum(work.context_lens)
        return 1e-6 * (self.fixed + of.tokens + 1e-3 * before + 100 * of.activated + 10 * of.busiest)

    def out_of_range(self, points: SweepPoint | Work) -> str | None:
        return None


def laws(model: ServedModel) -> dict[str, LatencyModel]:
    return {o.signature.key: Law(10.0 * place) for place, o in enumerate(model.operations, 1)}


def law_of(model: ServedModel, signature: Signature) -> Law:
    (place,) = [n for n, o in enumerate(model.operations, 1) if portable(o.signature) == portable(signature)]
    return Law(10.0 * place)


def mixture() -> ServedModel:
    """Two layers with experts; norms with and without a residual; a collective and the engine's share of a step."""

    def each(signature: Signature, *names: str) -> ModelOperation:
        paths = tuple(f"model.layers.{layer}.{name}" for layer in range(LAYERS) for name in names)
        return replace(uses(signature, len(paths)), layers=paths)

    return served(
        replace(uses(NORM), layers=("model.layers.0.input_layernorm",)),
        replace(
            uses(RESIDUAL, 4),
            layers=(
                *each(RESIDUAL, "post_attention_layernorm").layers,
                "model.layers.1.input_layernorm",
                "model.norm",
            ),
        ),
        each(attention(32, 8, 128), "self_attn.attn"),
        each(linear(4096, 4096), "self_attn.o_proj"),
        each(collective("all_reduce", 4096, 2), "self_attn.o_proj.sum"),
        each(GATE, "block_sparse_moe.gate"),
        each(MIXTRAL_MOE, "block_sparse_moe.experts"),
        uses(STEP),
        name="mixture",
    )


def write(model: ServedModel, root: Path, ranks: int = 1) -> Written:
    return write_bundle(
        model, laws(model), root, name=f"someone/{model.name}", device=H100, ranks=ranks, engine_version="0.32.0"
    )


def rows(directory: Path, file: str) -> list[Mapping[str, str]]:
    return list(csv.DictReader((directory / file).read_text().splitlines()))


@pytest.mark.parametrize("model", [planned(), mixture()], ids=lambda model: model.name)
def test_what_is_written_is_read_back_operation_by_operation(model: ServedModel, tmp_path: Path) -> None:
    written = write(model, tmp_path)
    bundle = Bundle.open(written.directory)
    assert (bundle.model, bundle.device, bundle.ranks) == (f"someone/{model.name}", H100.product, 1)
    tables = list(bundle.tables(model))
    assert {table.source.file.rpartition("/")[2] for table in tables} == set(written.rows)
    seen = set()
    for table in tables:
        for latency in next(iter(table.rows.values())):
            expected_s = law_of(model, latency.signature).predict_s([latency.point])[0]
            if latency.signature == MIXTRAL_MOE:
                expected_s += law_of(model, GATE).predict_s([SweepPoint(num_tokens=latency.point.num_tokens)])[0]
            if latency.kernel != "final_layernorm":
                assert latency.latency_s == pytest.approx(expected_s, rel=1e-5)
                seen.add(latency.signature.name)
        # Both norms of a dense layer are one operation; those of the mixture are two.
        again = "the same operation and point again: the first is kept"
        assert set(table.unmapped) <= {again, "layernorm is the mean of 2 operations"}
    expected = {"planned": {"embedding", "rms_norm", "linear", "attention", "logits", "sampler"}}
    assert seen == expected.get(model.name, {"linear", "attention", "fused_moe"})


def test_each_layer_has_what_makes_the_simulator_s_sum_right(tmp_path: Path) -> None:
    """It runs `layernorm` twice in each of the layers, `final_layernorm` once."""
    model = mixture()
    dense = rows(write(model, tmp_path).directory, "dense.csv")
    found = {row["layer"]: float(row["time_us"]) for row in dense if row["tokens"] == "8"}
    plain_us, residual_us = 10 + 8, 20 + 8
    assert found["layernorm"] == pytest.approx((plain_us + 3 * residual_us) / (2 * LAYERS))
    assert found["final_layernorm"] == pytest.approx(residual_us)
    assert found["o_proj"] == pytest.approx(40 + 8)


def test_activated_experts_are_an_axis(tmp_path: Path) -> None:
    points = {
        (int(row["tokens"]), int(row["activated_experts"])): float(row["time_us"])
        for row in rows(write(mixture(), tmp_path).directory, "moe.csv")
    }
    assert {activated for tokens, activated in points if tokens == 1} == {2}
    assert {activated for tokens, activated in points if tokens == 16} == {2, 4, 8}
    experts_us = 70 + 16 + 100 * 4 + 10 * 8  # 32 choices over four of them
    assert points[16, 4] == pytest.approx(experts_us + 60 + 16)


def test_what_no_layer_stands_for_is_told(tmp_path: Path) -> None:
    labels = write(mixture(), tmp_path).left_out
    assert [label.partition("-")[0] for label in labels] == ["all_reduce", "step"]
    assert write(planned(), tmp_path).left_out == ()


def test_several_ranks_share_one_description(tmp_path: Path) -> None:
    model = planned()
    assert write(model, tmp_path, ranks=2).directory.name == "tp2"
    first = write(model, tmp_path, ranks=1).directory
    for ranks in (1, 2):
        bundle = Bundle.open(first.parent / f"tp{ranks}")
        assert bundle.meta["tp_degrees"] == [1, 2]
    # Two ranks of this model are another one than its single rank, which is what was written last.
    assert list(Bundle.open(first).tables(model))
    with pytest.raises(ConfigurationError, match="has num_attention_heads 64"):
        list(Bundle.open(first.parent / "tp2").tables(model))


def test_a_model_without_attention_is_refused(tmp_path: Path) -> None:
    model = served(uses(linear(8, 8)))
    with pytest.raises(ConfigurationError, match=r"small has no self_attn\.attn"):
        write(model, tmp_path)
    assert not list(tmp_path.iterdir())
