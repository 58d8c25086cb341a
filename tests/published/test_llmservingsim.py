"""Bundles of LLMServingSim: what their rows stand for, and what is left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_dooly.core.published_latency import PublishedTable
from pytest_dooly.core.signature import ServedModel, portable
from pytest_dooly.errors import ConfigurationError, DoolyError, PublishedDataError
from pytest_dooly.published.llmservingsim import Bundle
from tests.samples import served, uses
from tests.traced import LOGITS, MIXTRAL_MOE, NORM, attention, linear

ATTENTION, DOWN, OTHER_NORM = attention(16, 4, 128), linear(2048, 4096), linear(1, 1)
META = """\
profiler_version: 1.0.0
vllm_version: 0.19.0
gpu: NVIDIA GeForce RTX 4090
hardware: RTX4090
model: someone/Some-8B
variant: bf16
tp_degrees: [1, 2]
engine_effective:
  block_size: 16
  hf_overrides: {num_attention_heads: 16, intermediate_size: 4096}
"""
FILES = {
    "dense.csv": (
        "layer,tokens,time_us\ndown_proj,8,20.5\ndown_proj,16,21\nlayernorm,8,2\nact_fn,8,1\nfinal_layernorm,8,3\n"
    ),
    "per_sequence.csv": "layer,sequences,time_us\nlm_head,4,1100\n",
    "attention.csv": (
        "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us\n0,0,4,32,9\n16,64,0,0,10\n16,0,4,32,25\n0,0,0,0,1\n"
    ),
    "moe.csv": "tokens,activated_experts,time_us\n5,4,50\n",
}


def model(*, heads: int = 16) -> ServedModel:
    return served(
        uses(NORM, layer="model.layers.0.input_layernorm"),
        uses(OTHER_NORM, layer="model.layers.0.post_attention_layernorm"),
        uses(attention(heads, 4, 128), layer="model.layers.0.self_attn.attn"),
        uses(DOWN, layer="model.layers.0.mlp.down_proj"),
        uses(MIXTRAL_MOE, layer="model.layers.0.mlp.experts"),
        uses(LOGITS, layer="logits_processor"),
    )


def write(root: Path) -> Path:
    """The bundle in a directory."""
    directory = root / "bf16" / "tp2"
    directory.mkdir(parents=True)
    (directory.parent / "meta.yaml").write_text(META)
    for name, text in FILES.items():
        (directory / name).write_text(text)
    return directory


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write(tmp_path)


def tables(directory: Path, of: ServedModel | None = None) -> dict[str, PublishedTable]:
    return {t.source.file.rpartition("/")[2]: t for t in Bundle.open(directory).tables(of or model())}


def test_rows_are_latencies_of_the_models_operations_on_the_profiled_gpu(directory: Path) -> None:
    found = tables(directory)
    assert list(found) == list(FILES)
    rows = {name: next(iter(table.rows.values())) for name, table in found.items()}
    told = {name: [(str(r.point), round(r.latency_s * 1e6, 3), r.kernel) for r in of] for name, of in rows.items()}
    assert told == {
        "dense.csv": [("T8", 20.5, "down_proj"), ("T16", 21, "down_proj")],
        "per_sequence.csv": [("R4", 1100, "lm_head")],
        "attention.csv": [("4x1+32", 9, "attention"), ("16+64", 10, "attention"), ("16+0,4x1+32", 25, "attention")],
        "moe.csv": [("T5E4M3", 50, "moe")],  # ten choices in turn over four experts
    }
    attended = rows["attention.csv"][0].signature
    assert portable(attended) == portable(ATTENTION)
    assert dict(attended.attributes) | {"backend": "FLASH_ATTN", "block_size": 16} == dict(attended.attributes)
    assert attended.tensors[-1] == ("block_table", "int32", ("((context_len + query_len + 15) // 16)",))
    (environment,) = found["moe.csv"].rows
    assert (environment.device, environment.engine_version) == ("NVIDIA GeForce RTX 4090", "0.19.0")
    source = found["moe.csv"].source
    assert (source.name, source.licence) == ("LLMServingSim 1.0.0, RTX4090/someone/Some-8B/bf16/tp2/moe.csv", "MIT")


def test_what_is_left_out_is_counted_by_reason_and_no_row_is_lost(directory: Path) -> None:
    found = tables(directory)
    assert found["dense.csv"].unmapped == {
        "layernorm is the mean of 2 operations": 1,
        "no operation of the model is a act_fn": 1,
        "no operation of the model is a final_layernorm": 1,
    }
    assert found["attention.csv"].unmapped == {"a batch without requests": 1}
    for name, text in FILES.items():
        assert found[name].num_rows + sum(found[name].unmapped.values()) == text.count("\n") - 1


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("lm_head,0,5", "a sequences of 0"),
        ("lm_head,2,0", "the latency is no positive number"),
        ("lm_head,2,nan", "the latency is no positive number"),
        ("lm_head,4,7", "the same operation and point again: the first is kept"),
    ],
)
def test_a_row_that_nothing_can_be_made_of(directory: Path, row: str, reason: str) -> None:
    with (directory / "per_sequence.csv").open("a") as file:
        file.write(f"{row}\n")
    assert tables(directory)["per_sequence.csv"].unmapped == {reason: 1}


def test_another_model_is_refused(directory: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"small has num_attention_heads 64, and someone/Some-8B.* has 32"):
        tables(directory, model(heads=32))
    meta = directory.parent / "meta.yaml"
    meta.write_text(META.replace("4096", "1024"))
    with pytest.raises(ConfigurationError, match=r"intermediate_size 8192, .* has 2048: name that model with --model"):
        tables(directory)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("meta.yaml", "{", "meta.yaml cannot be read"),
        ("meta.yaml", "gpu: a", "meta.yaml cannot be read .KeyError"),
        ("meta.yaml", META.replace("bf16", "fp8"), "is of variant 'fp8': only bundles of variant 'bf16'"),
        ("tp2/moe.csv", "tokens,time_us\n", "moe.csv has no column activated_experts, only tokens, time_us"),
        ("tp2/moe.csv", "tokens,activated_experts,time_us\n1,8\n", "moe.csv, line 2: .*fetch the bundle again"),
        ("tp2/moe.csv", "tokens,activated_experts,time_us\na,8,1\n", "moe.csv, line 2: .*'a'"),
    ],
)
def test_a_damaged_bundle_is_one_message(directory: Path, name: str, text: str, message: str) -> None:
    (directory.parent / name).write_text(text)
    with pytest.raises(PublishedDataError, match=message):
        tables(directory)


def test_other_directories_are_no_bundles(directory: Path) -> None:
    (directory.parent / "tp3").touch()
    for other in (directory.parent, directory.parent / "tp3", directory.parent / "tp4"):
        with pytest.raises(DoolyError, match=r"is no bundle of LLMServingSim: name a directory tp1"):
            Bundle.open(other)
