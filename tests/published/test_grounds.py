"""What a prediction rests on: the best of what the latency DB has, said with its error, its rows and its sources."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from pytest_dooly.core.batch import Batch, Limits, SweepPoint
from pytest_dooly.core.environment import EAGER, Environment
from pytest_dooly.core.signature import Signature, portable
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.prediction.shares import shares_at
from pytest_dooly.prediction.step import predict_step
from pytest_dooly.published.across import FEWEST_ROWS
from pytest_dooly.published.basis import Basis, Foundation
from pytest_dooly.published.estimate import Estimate
from pytest_dooly.published.family import Family, rest_of
from pytest_dooly.published.family_regressor import FamilyRegressor
from pytest_dooly.published.grounds import Grounds, grounds_of, latency_models
from pytest_dooly.published.parts import PartsModel, basis_at
from pytest_dooly.published.transfer import OF_A_KIND, OF_ANOTHER
from pytest_dooly.regress.regressor import Regressor
from tests.samples import ADMISSION, LIMITS, STEP, measured, served, uses
from tests.traced import (
    BETWEEN,
    DEEPSEEK_MOE,
    DEVICE,
    GRID,
    KNOWN,
    MAMBA,
    NORM,
    TIMED,
    attention,
    linear,
    linears,
    product_s,
    replayed,
    table,
)

Array = npt.NDArray[np.float64]

OWN = Environment(DEVICE.product, 1, "550", "vllm", "0.26.0", "2.13.0", "cuda_event", "in_pass", "cuda_graph")


@pytest.fixture
def db(tmp_path: Path) -> Iterator[LatencyDB]:
    with LatencyDB.open(tmp_path / "latency.db") as opened:
        yield opened


def measure(db: LatencyDB, signature: Signature, *, points: int = 8, latency_s: float = 1e-3) -> None:
    for num_tokens in range(1, points + 1):
        db.record(signature, OWN, SweepPoint(num_tokens=num_tokens), measured(latency_s), spent_s=1.0)


def predicted_s(foundation: Foundation, num_tokens: int) -> float:
    return float(foundation.model.predict_s([SweepPoint(num_tokens=num_tokens)])[0])


def test_the_best_that_is_known_decides(db: LatencyDB) -> None:
    measure(db, TIMED)
    db.publish(table(linears(GRID)))
    model = served(*map(uses, (TIMED, KNOWN, BETWEEN, NORM)))
    founded = Grounds(db, DEVICE).of(model)
    timed, known, between, norm = (founded[each.key] for each in (TIMED, KNOWN, BETWEEN, NORM))

    assert timed.basis == Basis("measured", 8, (str(OWN),), timed.basis.error)
    assert predicted_s(timed, 4) == pytest.approx(1e-3, rel=0.01)

    assert known.basis.kind == "published"
    assert known.basis.num_rows == 6
    assert known.basis.sources == ("tables 1, gemm.parquet",)
    assert predicted_s(known, 64) == pytest.approx(product_s(2048, 1024, 64), rel=0.1)

    assert between.basis.kind == "across sizes"
    assert between.basis.num_rows == 6 * len(GRID)
    assert predicted_s(between, 256) == pytest.approx(product_s(3072, 1536, 256), rel=0.1)
    for basis in (known.basis, between.basis):
        assert basis.error is not None
        assert 0 < basis.error < 0.05

    assert norm.basis == Basis("estimate", 0, ("data sheet of Toy GPU",), None)
    assert norm.model == Estimate(NORM, DEVICE)


def test_what_is_published_far_from_a_point_is_no_publication_of_it(db: LatencyDB) -> None:
    """As of Llama-2-7B on an H100, whose 102 rows of attention are prompts, and prompts of one token."""
    db.publish(table(linears(GRID)))
    known = Grounds(db, DEVICE).foundation(KNOWN, LIMITS)
    near, far = (basis_at(known, [SweepPoint(num_tokens=tokens)]) for tokens in (96, 2048))
    assert (near.kind, far.kind) == ("published", "across sizes")
    assert near.sources == far.sources == known.basis.sources
    assert near.error is not None
    assert far.error is not None
    assert near.error < far.error


def test_a_few_measurements_of_our_own_say_less_than_published_ones(db: LatencyDB) -> None:
    db.publish(table(linears(GRID)))
    measure(db, KNOWN, points=4)
    assert Grounds(db, DEVICE).foundation(KNOWN, LIMITS).basis.kind == "published"
    measure(db, KNOWN, points=5)
    assert Grounds(db, DEVICE).foundation(KNOWN, LIMITS).basis.kind == "measured"


def test_what_can_be_relied_on_need_not_be_timed(db: LatencyDB) -> None:
    db.publish(table(linears(GRID)))
    grounds, beyond = Grounds(db, DEVICE), linear(16_384, 1024)
    assert not grounds.foundation(beyond, LIMITS).basis.reliable
    assert grounds.foundation(BETWEEN, LIMITS).basis.reliable
    model = served(*map(uses, (KNOWN, BETWEEN, beyond, NORM)))
    assert set(grounds.predictable(model, target=0.99)) == {KNOWN.key, BETWEEN.key}
    assert set(grounds.predictable(model, target=1e-9)) == {KNOWN.key}
    assert not Basis("estimate", 0, (), None).within(0.99)
    assert Basis("measured", 9, (), 0.5).within(0.01)
    assert not Basis("across sizes", 9, (), 0.01, reliable=False).within(0.05)


def test_a_regressor_is_fitted_once_and_kept_until_its_latencies_change(db: LatencyDB) -> None:
    db.publish(table(linears(GRID)))
    lines: list[str] = []
    grounds = Grounds(db, DEVICE, progress=lines.append)
    assert lines == []  # lazily
    first = grounds.foundation(KNOWN, LIMITS)
    grounds.foundation(BETWEEN, LIMITS)
    assert lines == [f"fitting gemm bf16 on Toy GPU to {6 * len(GRID)} published latencies"]

    again = Grounds(db, DEVICE, progress=lines.append).foundation(KNOWN, LIMITS)
    assert len(lines) == 1
    assert again == first
    assert predicted_s(again, 77) == predicted_s(first, 77)

    db.publish(table(linears(GRID, factor=2), version="2"))
    changed = Grounds(db, DEVICE, progress=lines.append).foundation(KNOWN, LIMITS)
    assert len(lines) == 2
    assert predicted_s(changed, 64) == pytest.approx(2 * predicted_s(first, 64), rel=0.1)
    assert changed.basis.sources == ("tables 2, gemm.parquet",)


def test_replayed_graphs_count_before_eager_launches_and_then_the_most_rows(db: LatencyDB) -> None:
    few = GRID[:5]
    db.publish(table(linears(GRID, factor=4), file="eager", environment=replayed(execution=EAGER)))
    assert predicted_s(Grounds(db, DEVICE).foundation(KNOWN, LIMITS), 64) == pytest.approx(
        4 * product_s(2048, 1024, 64), rel=0.1
    )
    db.publish(table(linears(few, factor=2), file="few", environment=replayed("0.10")))
    assert Grounds(db, DEVICE).foundation(KNOWN, LIMITS).basis.sources == ("tables 1, few",)
    db.publish(table(linears(GRID), file="graphs"))
    assert Grounds(db, DEVICE).foundation(KNOWN, LIMITS).basis.sources == ("tables 1, graphs",)


def test_too_few_latencies_found_nothing_and_the_next_best_are_taken(db: LatencyDB) -> None:
    rows = linears([(2048, 1024)], tokens=range(1, FEWEST_ROWS))
    db.publish(table(rows, file="few"))
    assert Grounds(db, DEVICE).foundation(KNOWN, LIMITS).basis.kind == "estimate"
    db.publish(table(linears(GRID), file="eager", environment=replayed(execution=EAGER)))
    assert Grounds(db, DEVICE).foundation(KNOWN, LIMITS).basis.sources == ("tables 1, eager",)


def test_other_devices_and_other_operations_found_nothing(db: LatencyDB) -> None:
    db.publish(table(linears(GRID), environment=dataclasses.replace(replayed(), device="Other GPU")))
    grounds = Grounds(db, DEVICE)
    assert grounds.empty
    assert not grounds.has_latencies
    assert grounds.foundation(KNOWN, LIMITS).basis.kind == "estimate"
    db.publish(table(linears(GRID), file="toy"))
    assert not Grounds(db, DEVICE).empty
    assert Grounds(db, DEVICE).foundation(NORM, LIMITS).basis.kind == "estimate"


def test_a_gpu_without_latencies_takes_those_of_one_like_it(db: LatencyDB, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_dooly.published.grounds.device_named", {"toy": DEVICE}.__getitem__)
    slow = dataclasses.replace(DEVICE, name="slow", product="Slow GPU", memory_bytes_per_s=0.5e12, like="toy")
    assert Grounds(db, slow).empty
    db.publish(table(linears(GRID)))
    grounds = Grounds(db, slow)
    assert not grounds.empty
    assert not grounds.has_own
    known, norm = (grounds.foundation(each, LIMITS) for each in (KNOWN, NORM))
    assert known.basis.kind == "another GPU"
    assert known.basis.sources == ("tables 1, gemm.parquet, for Slow GPU",)
    assert not known.basis.within(1.0)
    # Of the 2.5 µs of a launch and a product that waits for 4 MB of weights, the latter takes twice as long.
    there = predicted_s(Grounds(db, DEVICE).foundation(KNOWN, LIMITS), 1)
    ratio = predicted_s(Foundation(Estimate(KNOWN, slow), known.basis), 1) / predicted_s(
        Foundation(Estimate(KNOWN, DEVICE), known.basis), 1
    )
    assert 1.5 < ratio < 2
    assert predicted_s(known, 1) == pytest.approx(ratio * there)
    assert norm.basis.kind == "estimate"
    assert norm.model == Estimate(NORM, slow)


def test_another_gpu_s_latencies_are_as_sure_as_the_two_are_alike(
    db: LatencyDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_dooly.published.grounds.device_named", {"toy": DEVICE}.__getitem__)
    db.publish(table(linears(GRID)))
    own = Grounds(db, DEVICE).foundation(KNOWN, LIMITS)
    point = [SweepPoint(num_tokens=64)]
    for changed, added in (
        ({}, OF_A_KIND),
        ({"memory_bytes_per_s": 1.4e12}, OF_A_KIND),
        ({"memory_bytes_per_s": 1.6e12}, OF_ANOTHER),
        ({"flops_per_s": 0.5e14}, OF_ANOTHER),
        ({"compute_capability": (8, 6)}, OF_ANOTHER),
    ):
        device = dataclasses.replace(DEVICE, product="Other GPU", like="toy", **changed)
        moved = Grounds(db, device).foundation(KNOWN, LIMITS)
        assert moved.basis.error == pytest.approx(np.hypot(own.basis.error or 0, added))
        assert basis_at(moved, point).error == pytest.approx(np.hypot(basis_at(own, point).error or 0, added))
        assert basis_at(moved, point).kind == "another GPU"


def test_what_is_known_of_a_gpu_comes_before_another_s(db: LatencyDB, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_dooly.published.grounds.device_named", {"other": DEVICE}.__getitem__)
    device = dataclasses.replace(DEVICE, product=OWN.device, like="other")
    measure(db, TIMED)
    db.publish(table(linears(GRID)))
    grounds = Grounds(db, device)
    assert grounds.has_own
    assert grounds.foundation(TIMED, LIMITS).basis.kind == "measured"


def test_measurements_of_what_has_no_family_are_something_too(db: LatencyDB) -> None:
    measure(db, NORM)
    grounds = Grounds(db, DEVICE)
    assert not grounds.empty
    assert grounds.foundation(dataclasses.replace(NORM, attributes=(("dispatch", "cuda"),)), LIMITS).basis.num_rows == 8


def test_our_own_measurements_of_many_sizes_outrank_what_others_published(db: LatencyDB) -> None:
    db.publish(table(linears(GRID, factor=9)))
    for (signature, point), latency_s in linears(GRID).items():
        db.record(signature, OWN, point, measured(latency_s), spent_s=1.0)
    across = Grounds(db, DEVICE).foundation(BETWEEN, LIMITS)
    assert across.basis.kind == "across sizes"
    assert across.basis.sources == (str(OWN),)
    assert predicted_s(across, 256) == pytest.approx(product_s(3072, 1536, 256), rel=0.1)


def attended(phase: str) -> dict[tuple[Signature, SweepPoint], float]:
    """Latencies of one phase on a GPU's backend, a microsecond for each 1,000 tokens that are new or in the cache."""
    batches = {
        "prefill": [Batch.uniform(n, length) for n in (1, 2, 4, 8) for length in (16, 64, 256, 512)],
        "decode": [Batch.uniform(n, 1, length) for n in (1, 2, 4, 8) for length in (16, 64, 256, 512)],
    }
    return {
        (attention(heads, 8, 128, backend="FLASH_ATTN"), SweepPoint(batch=batch)): 5e-6
        + 1e-9 * sum(request.seq_len for request in batch.requests)
        for batch in batches[phase]
        for heads in (16, 32)
    }


def test_attention_of_a_cpu_trace_rests_on_the_backend_of_the_gpu(db: LatencyDB) -> None:
    db.publish(table(attended("prefill") | attended("decode"), file="attention"))
    founded = Grounds(db, DEVICE).foundation(attention(32, 8, 128), LIMITS)
    assert founded.basis.kind == "published"
    assert founded.basis.num_rows == 32
    assert founded.basis.sources == ("tables 1, attention",)
    points = [SweepPoint(batch=Batch.parse(text)) for text in ("4x64", "8x1+256", "4x64,8x1+256")]
    prompts_s, decodes_s, both_s = founded.model.predict_s(points)
    assert both_s == pytest.approx(prompts_s + decodes_s)
    assert Grounds(db, DEVICE).foundation(attention(32, 8, 128, backend="OTHER"), LIMITS).basis.kind == "estimate"
    assert Grounds(db, DEVICE).attention_backends == ("FLASH_ATTN",)


def test_attention_of_which_one_phase_is_published_is_estimated(db: LatencyDB) -> None:
    db.publish(table(attended("prefill"), file="attention"))
    grounds = Grounds(db, DEVICE)
    assert grounds.regressor(Family("prefill", "auto")) is not None
    assert grounds.regressor(Family("decode", "auto")) is None
    assert grounds.foundation(attention(32, 8, 128), LIMITS).basis.kind == "estimate"


def test_a_mixer_rests_on_products_of_other_sizes_and_on_the_data_sheet(db: LatencyDB) -> None:
    db.publish(table(linears(GRID)))
    founded = Grounds(db, DEVICE).foundation(MAMBA, LIMITS)
    products = [linear(5152, 2688), linear(2688, 2048)]
    assert founded.basis.kind == "across sizes"
    assert not founded.basis.within(1.0)  # what it does besides its products is in no table
    step = [SweepPoint(batch=Batch.parse("8x1+100"))]
    products_s = sum(predicted_s(Grounds(db, DEVICE).foundation(each, LIMITS), 8) for each in products)
    rest = rest_of(MAMBA)
    assert rest is not None
    rest_s = Estimate(rest, DEVICE).predict_s(step)[0]
    assert founded.model.predict_s(step)[0] == pytest.approx(products_s + rest_s)


def mixtures() -> dict[tuple[Signature, SweepPoint], float]:
    """Latencies of experts alone, without router and shared experts."""
    experts = dataclasses.replace(
        DEEPSEEK_MOE, tensors=tuple(tensor for tensor in DEEPSEEK_MOE.tensors if not tensor[0].endswith(".weight"))
    )
    texts = (f"T{tokens}E{activated}M{tokens}" for tokens in (1, 8, 64, 512) for activated in (6, 16, 32, 64))
    return {(experts, SweepPoint.parse(text)): 2e-5 for text in texts}


def test_a_mixture_needs_latencies_of_all_its_parts_and_counts_each_once(db: LatencyDB) -> None:
    db.publish(table(mixtures(), file="moe"))
    assert Grounds(db, DEVICE).foundation(DEEPSEEK_MOE, LIMITS).basis.kind == "estimate"
    db.publish(table(linears(GRID)))
    founded = Grounds(db, DEVICE).foundation(DEEPSEEK_MOE, LIMITS)
    assert founded.basis.kind == "across sizes"  # the experts are known, the router and the shared experts are not
    assert founded.basis.num_rows == 16 + 6 * len(GRID)
    assert founded.basis.sources == ("tables 1, moe", "tables 1, gemm.parquet")
    assert isinstance(founded.model, PartsModel)
    assert founded.model.grounds == (
        f"16 published latencies of experts bf16, {6 * len(GRID)} published latencies of gemm bf16"
    )


def test_a_fitted_regressor_comes_back_from_json(db: LatencyDB) -> None:
    db.publish(table(linears(GRID)))
    fitted = Grounds(db, DEVICE).regressor(Family("gemm", "bf16"))
    assert fitted is not None
    document = json.loads(json.dumps(fitted.to_json(), allow_nan=False))
    assert FamilyRegressor.from_json(document, family=fitted.family, device=DEVICE, sources=fitted.sources) == fitted
    assert fitted.ranges["num_tokens"] == (1, 256)
    assert set(fitted.rows.values()) == {6}


def test_a_step_is_predicted_with_models_of_every_kind(db: LatencyDB) -> None:
    measure(db, TIMED)
    db.publish(table(linears(GRID)))
    model = served(*map(uses, (TIMED, KNOWN, BETWEEN, NORM, STEP, ADMISSION)))
    foundations = Grounds(db, DEVICE).of(model)
    models = {key: each.model for key, each in foundations.items()}
    assert {type(each) for each in models.values()} == {Regressor, PartsModel, Estimate}
    step = predict_step(model, models, Batch.uniform(4, 1, 64))
    shares = shares_at(model, foundations, step.batch)
    assert sum(shares.by_kind.values()) == pytest.approx(1)
    assert {kind for kind, share in shares.by_kind.items() if not share} == {"another precision", "another GPU"}
    beyond = predict_step(served(uses(KNOWN)), models, Batch.uniform(1, 4096))
    assert beyond.out_of_range == (f"{KNOWN.label}: num_tokens 4,096 is outside of the published 1 to 256",)


def test_a_signature_without_what_only_the_device_decides() -> None:
    cpu, gpu = attention(32, 8, 128), attention(32, 8, 128, backend="FLASH_ATTN")
    tensors = tuple(
        (role, dtype, ("((context_len + query_len + 15) // 16)",)) if role == "block_table" else (role, dtype, shape)
        for role, dtype, shape in gpu.tensors
    )
    gpu = dataclasses.replace(
        gpu, tensors=tensors, attributes=tuple((n, 16 if n == "block_size" else v) for n, v in gpu.attributes)
    )
    assert cpu != gpu
    assert portable(cpu) == portable(gpu)
    assert portable(cpu) != portable(attention(32, 8, 128, window=128))


def test_what_stands_in_for_missing_regressors(db: LatencyDB) -> None:
    own = dataclasses.replace(OWN, device="NVIDIA H200")
    measure(db, TIMED)
    model = served(*map(uses, (KNOWN, NORM)))
    assert grounds_of(db, OWN) is None  # a device that we have no data sheet of
    assert grounds_of(db, own) is None  # one of which nothing is known
    assert latency_models(model, db, own) == {}
    db.publish(table(linears(GRID), environment=dataclasses.replace(replayed(), device="NVIDIA H200")))
    assert grounds_of(db, own) is not None
    assert set(latency_models(model, db, own)) == {KNOWN.key}


def test_limits_decide_the_error_that_is_expected(db: LatencyDB) -> None:
    db.publish(table(linears(GRID)))
    grounds = Grounds(db, DEVICE)
    small, large = (
        grounds.foundation(BETWEEN, Limits(max_num_tokens=most, max_num_seqs=1, max_model_len=most)).basis
        for most in (16, 256)
    )
    assert small.error != large.error


def test_an_operation_of_no_family_rests_on_what_others_have_measured_of_it(db: LatencyDB) -> None:
    points = {(NORM, SweepPoint(num_tokens=n)): 1e-6 * n for n in (1, 2, 4, 8, 16)}
    few = dict(list(points.items())[:4])
    db.publish(table(few, file="few.csv"))
    assert Grounds(db, DEVICE).foundation(NORM, LIMITS).basis.kind == "estimate"
    db.publish(table(points, file="norms.csv", environment=replayed("0.19.0")))
    found = Grounds(db, DEVICE).foundation(NORM, LIMITS)
    assert (found.basis.kind, found.basis.num_rows, found.basis.sources) == ("published", 5, ("tables 1, norms.csv",))
    assert predicted_s(found, 12) == pytest.approx(12e-6, rel=0.05)
    elsewhere = dataclasses.replace(NORM, attributes=(("dispatch", "forward_cuda"),))
    assert Grounds(db, DEVICE).foundation(elsewhere, LIMITS).basis == found.basis


def test_steps_of_prompts_and_decodes_are_not_the_sum_of_both_where_they_were_timed(db: LatencyDB) -> None:
    signature = attention(8, 2, 64, backend="FLASH_ATTN")
    alone = {f"{n}x1+{c}": 1e-6 * n * c for n in (1, 2, 4, 8) for c in (64, 128, 256)}
    alone |= {f"{q}+{c}": 1e-6 * q + 1e-9 * c for q in (16, 32, 64, 128) for c in (0, 64, 128)}
    beside = {f"{q},{n}x1+{c}": 1e-6 * q + 3e-6 * n * c for q in (16, 64) for n in (1, 2, 4, 8) for c in (64, 128, 256)}

    def found(latencies_s: dict[str, float], file: str) -> float:
        db.publish(table({(signature, SweepPoint.parse(text)): s for text, s in latencies_s.items()}, file=file))
        model = Grounds(db, DEVICE).foundation(attention(8, 2, 64), LIMITS).model
        return float(model.predict_s([SweepPoint(batch=Batch.parse("16,4x1+128"))])[0])

    assert found(alone, "alone.csv") == pytest.approx(16e-6 + 512e-6, rel=0.1)
    assert found(beside, "beside.csv") == pytest.approx(16e-6 + 3 * 512e-6, rel=0.1)
