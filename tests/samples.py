"""Small pieces of data that many tests need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pytest_dooly.core.batch import Batch, Limits, SweepPoint
from pytest_dooly.core.environment import CUDA_EVENT, CUDA_GRAPH, REPEATED, UNKNOWN, Environment
from pytest_dooly.core.measurement import Measurement
from pytest_dooly.core.operation import OperationKind
from pytest_dooly.core.published_latency import PublishedLatency, PublishedTable, Source
from pytest_dooly.core.signature import Attribute, ModelOperation, ServedModel, Signature
from pytest_dooly.regress.fit import fit
from pytest_dooly.regress.regressor import Regressor

LIMITS = Limits(max_num_tokens=512, max_num_seqs=8, max_model_len=1024)

ENVIRONMENT = Environment("CPU", 2, "none", "fake", "1", "2.13.0", "perf_counter", "warm", "eager")

LINEAR = Signature(
    OperationKind.LINEAR,
    "linear",
    (("input", "bf16", ("num_tokens", 64)), ("weight", "bf16", (128, 64))),
    (("method", "unquantized"),),
    "num_tokens",
)
ATTENTION = Signature(
    OperationKind.ATTENTION,
    "attention",
    (("query", "bf16", ("num_tokens", 64)),),
    (("head_size", 16), ("num_heads", 4), ("num_kv_heads", 2)),
    "batch",
)
MIXTURE = Signature(
    OperationKind.MOE,
    "fused_moe",
    (("input", "bf16", ("num_tokens", 64)), ("w13_weight", "bf16", (8, 256, 64))),
    (("num_local_experts", 8), ("top_k", 2)),
    "routing",
)
SAMPLER = Signature(OperationKind.SAMPLER, "sampler", (("logits", "fp32", ("num_reqs", 256)),), (), "num_reqs")
STEP = Signature(OperationKind.OVERHEAD, "step", (), (("swept", "batch"),), "batch")
ADMISSION = Signature(OperationKind.OVERHEAD, "admission", (), (), "num_tokens")


def windowed(window: int) -> Signature:
    attributes: tuple[Attribute, ...] = (*ATTENTION.attributes, ("sliding_window", window))
    return Signature(ATTENTION.kind, ATTENTION.name, ATTENTION.tensors, attributes, "batch")


def measured(latency_s: float) -> Measurement:
    return Measurement(rounds=20, min_s=latency_s, median_s=latency_s, mean_s=latency_s, iqr_s=latency_s / 20)


def fitted(signature: Signature, latency_s: Callable[[SweepPoint], float], points: Sequence[SweepPoint]) -> Regressor:
    return fit(signature, {point: measured(latency_s(point)) for point in points})


def uses(signature: Signature, multiplicity: int = 1, layer: str = "layers.0.x") -> ModelOperation:
    origins = tuple((role, dtype, tuple(map(str, shape))) for role, dtype, shape in signature.tensors)
    return ModelOperation(signature, multiplicity, (layer,), origins)


def served(*operations: ModelOperation, name: str = "small", limits: Limits = LIMITS) -> ServedModel:
    return ServedModel(
        key=f"key-of-{name}", name=name, architecture="SmallForCausalLM", limits=limits, operations=operations
    )


TOKENS = [SweepPoint(num_tokens=2**i) for i in range(10)]
REQUESTS = [SweepPoint(num_reqs=2**i) for i in range(4)]
BATCHES = [SweepPoint(batch=Batch.uniform(n, q, c)) for n in (1, 2, 4, 8) for q in (1, 16, 64) for c in (0, 32, 256)]


def model_and_regressors() -> tuple[ServedModel, dict[str, Regressor]]:
    """A model of two linears' worth of layers, with latencies that a test can add up by hand.

    A linear takes 10 µs a token, attention 1 µs a request, the sampler 2 µs a request, a step 100 µs and an admission
    50 µs.
    """
    model = served(uses(LINEAR, 3), uses(ATTENTION, 2), uses(SAMPLER), uses(STEP), uses(ADMISSION))
    return model, {
        LINEAR.key: fitted(LINEAR, lambda p: 10e-6 * (p.num_tokens or 0), TOKENS),
        ATTENTION.key: fitted(ATTENTION, lambda p: 1e-6 * (p.batch.num_reqs if p.batch else 0), BATCHES),
        SAMPLER.key: fitted(SAMPLER, lambda p: 2e-6 * (p.num_reqs or 0), REQUESTS),
        STEP.key: fitted(STEP, lambda p: 100e-6, BATCHES),
        ADMISSION.key: fitted(ADMISSION, lambda p: 50e-6, TOKENS),
    }


PUBLISHED = Environment("CPU", 1, UNKNOWN, "vllm", "0.24.0", UNKNOWN, CUDA_EVENT, REPEATED, CUDA_GRAPH)


def published(
    rows: Mapping[tuple[Signature, SweepPoint], float],
    *,
    file: str = "gemm.parquet",
    version: str = "0.12.0",
    unmapped: Mapping[str, int] | None = None,
) -> PublishedTable:
    """One file of latencies, in seconds, that others have published of the same device as ENVIRONMENT's."""
    latencies = tuple(
        PublishedLatency(signature, point, latency_s, kernel="cublas") for (signature, point), latency_s in rows.items()
    )
    source = Source("aiconfigurator-core", version, "Apache-2.0", file, f"sha of {file} {version}", mapping=1)
    return PublishedTable(source, {PUBLISHED: latencies}, unmapped or {})
