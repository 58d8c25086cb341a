"""What latency DBs of these tests hold, and how their files are looked at."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from pytest_dooly.core.batch import Batch, Limits, SweepPoint
from pytest_dooly.core.environment import Environment
from pytest_dooly.core.measurement import Measurement
from pytest_dooly.core.operation import OperationKind
from pytest_dooly.core.published_latency import PublishedLatency, PublishedTable, Source
from pytest_dooly.core.signature import ModelOperation, ServedModel, Signature

CPU = Environment("AMD EPYC", 2, "avx512", "vllm", "0.32.0", "2.13.0+cpu", "perf_counter", "rotated", "eager")
GPU = dataclasses.replace(CPU, device="NVIDIA H200", device_count=1, clock="cuda_event")
POINT = SweepPoint(num_tokens=128)
OTHER_POINT = SweepPoint(batch=Batch.parse("8x1+512"))
MEASUREMENT = Measurement(rounds=10, min_s=0.1, median_s=0.2, mean_s=0.3, iqr_s=0.05)
SOURCE = Source("tables", "1.0", "MIT", "h200/gemm.parquet", "abc", 1)


def linear(columns: int = 4096) -> Signature:
    tensors = (("input", "bf16", ("num_tokens", 1024)), ("weight", "bf16", (columns, 1024)))
    return Signature(OperationKind.LINEAR, "linear", tensors, (("has_bias", False),), "num_tokens")


ATTENTION = Signature(
    OperationKind.ATTENTION,
    "attention",
    (("query", "bf16", ("num_tokens", 32, 128)), ("key", "bf16", ("num_tokens", 8, 128))),
    (("head_size", 128), ("num_heads", 32), ("num_kv_heads", 8), ("scale", 0.0883)),
    "batch",
)


def served_model(key: str = "aa", name: str = "llama3") -> ServedModel:
    return ServedModel(
        key=key,
        name=name,
        architecture="LlamaForCausalLM",
        limits=Limits(max_num_tokens=2048, max_num_seqs=256, max_model_len=8192),
        operations=(
            ModelOperation(
                signature=linear(),
                multiplicity=2,
                layers=("model.layers.0.up", "model.layers.1.up"),
                origins=(
                    ("input", "bf16", ("num_tokens", "hidden_size")),
                    ("weight", "bf16", ("4*hidden_size", "1024")),
                ),
            ),
            ModelOperation(signature=ATTENTION, multiplicity=2, layers=("model.layers.0.attn",), origins=()),
        ),
    )


@contextmanager
def sqlite(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path)) as connection, connection:
        yield connection


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below the directory, so that a comparison sees a changed byte and a file left behind."""
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def row(latency_s: float = 1e-3, signature: Signature | None = None, **changes: Any) -> PublishedLatency:
    latency = PublishedLatency(signature or linear(), POINT, latency_s, "cutlass")
    return dataclasses.replace(latency, **changes)


def table(
    *rows: PublishedLatency, source: Source = SOURCE, where: Environment = GPU, **unmapped: int
) -> PublishedTable:
    return PublishedTable(source, {where: rows}, unmapped)


def dump(path: Path) -> list[str]:
    with sqlite(path) as connection:
        return list(connection.iterdump())
