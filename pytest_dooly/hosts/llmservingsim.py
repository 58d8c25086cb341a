"""A bundle of operator tables as LLMServingSim reads them: each of its layers as our operations that it stands for.

The other direction of `published/llmservingsim.py`, which says where a bundle comes from and how its layers are named;
what is written here is read back there. Latencies are microseconds of one run. Where a layer stands for several
operations (norms with and without a residual; the two norms of queries and keys; experts and their router) it has what
makes the simulator's sum right, which runs `layernorm` twice in each layer and every other one once. Left out is what
the simulator adds by itself (collectives) or has no layer for (the engine's own share of a step, launches).
"""

from __future__ import annotations

import csv
import importlib.metadata
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_dooly.core.device import Device
from pytest_dooly.core.operation import OperationKind
from pytest_dooly.core.signature import ModelOperation, ServedModel
from pytest_dooly.core.work import Work
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.latency_db.export import written_whole
from pytest_dooly.prediction.step import step_operations
from pytest_dooly.published.llmservingsim import PLACES
from pytest_dooly.regress.regressor import LatencyModel

__all__ = ["Written", "write_bundle"]

Array = npt.NDArray[np.float64]

_ONCE = ("embedding", "final_layernorm", "lm_head", "sampler")
"""Layers that the simulator runs once a step; all others run in each layer of the model."""

_IN_A_LAYER = {"layernorm": 2}
"""How often, where that is not once."""

_BY_REQUEST = ("lm_head", "sampler")

_ROUTER = ("mlp.gate", "block_sparse_moe.gate")
"""How the paths of a mixture's router end, which is timed with its experts."""

_SHORTEST = 16
"""Tokens of the shortest chunk and context."""

_FINE, _COARSE = 16, 64
"""Distance of sizes above 64, and above 2,048, as in the bundles that are published."""


@dataclass(frozen=True)
class Written:
    """A bundle.

    Attributes:
        directory: of the tables, `tp<N>`.
        rows: of each file.
        left_out: labels of the operations that no layer stands for.
    """

    directory: Path
    rows: Mapping[str, int]
    left_out: tuple[str, ...]


def write_bundle(
    model: ServedModel,
    models: Mapping[str, LatencyModel],
    root: Path,
    *,
    name: str,
    device: Device,
    ranks: int,
    engine_version: str,
    block_size: int = 16,
) -> Written:
    """Writes `<root>/<device>/<name>/bf16/tp<ranks>/` and the `meta.yaml` beside it, which other sizes share.

    Args:
        model: one rank of it, with the limits that it is served with.
        models: latency models by signature key.
        root: `profiler/perf` of a clone, or any directory.
        name: that the simulator has for the model.
        device: that the latencies are of.
        ranks: tensor-parallel size.
        engine_version: of the vLLM that the operations are of.
        block_size: tokens in one KV block.

    Raises:
        ConfigurationError: the model is none of attention, as those that the simulator knows.
        ExportError: a file cannot be written.
    """
    operations = step_operations(model)
    found = {name: _placed(operations, ends) for name, ends in PLACES.items()}
    if not found["attention"]:
        raise ConfigurationError(f"{model.name} has no self_attn.attn, around which LLMServingSim builds each layer")
    tables = _Tables(model, models, {**found, "moe": found["moe"] and [*found["moe"], *_placed(operations, _ROUTER)]})
    files = {
        "dense.csv": tables.by_size("tokens", model.limits.max_num_tokens, by_request=False),
        "per_sequence.csv": tables.by_size("sequences", model.limits.max_num_seqs, by_request=True),
        "attention.csv": tables.attention(),
        **({"moe.csv": tables.mixture()} if found["moe"] else {}),
    }
    directory = root / device.name / name / "bf16" / f"tp{ranks}"
    for file, rows in files.items():
        _write(directory / file, rows)
    meta = _meta(model, name, device, block_size=block_size, engine_version=engine_version)
    sizes = sorted({ranks, *(int(each.name[2:]) for each in directory.parent.glob("tp[1-9]*"))})
    meta["engine_effective"]["hf_overrides"] = _sizes_at(tables, ranks, sizes[-1])
    with written_whole(directory.parent / "meta.yaml") as temporary:
        # JSON is YAML.
        temporary.write_text(json.dumps({**meta, "tp_degrees": sizes}, indent=2) + "\n", encoding="utf-8")
    return Written(directory, {file: len(rows) - 1 for file, rows in files.items()}, tables.left_out(operations))


@dataclass(frozen=True)
class _Part:
    """Of an operation, the runs that a layer of the simulator stands for."""

    operation: ModelOperation
    runs: int

    def latencies_s(self, models: Mapping[str, LatencyModel], work: Work) -> Array:
        """Of all those runs, shape (points,)."""
        signature = self.operation.signature
        # A router sees tokens, whatever experts it sends them to.
        seen = work if work.activated is None or signature.swept == "routing" else Work.of_sizes(work.query_lens)
        return self.runs * models[signature.key].predict_s(seen)


class _Tables:
    """The rows of each file, a header first."""

    def __init__(
        self, model: ServedModel, models: Mapping[str, LatencyModel], parts: Mapping[str, Sequence[_Part]]
    ) -> None:
        self._limits, self._models, self.parts = model.limits, models, parts
        self._layers = sum(part.runs for part in parts["attention"])

    def by_size(self, column: str, longest: int, *, by_request: bool) -> list[tuple[Any, ...]]:
        sizes = _sizes(longest)
        rows: list[tuple[Any, ...]] = [("layer", column, "time_us")]
        for name, parts in self.parts.items():
            if parts and name not in ("attention", "moe") and (name in _BY_REQUEST) is by_request:
                rows += zip([name] * len(sizes), sizes, self._us(name, Work.of_sizes(sizes)), strict=True)
        return rows

    def attention(self) -> list[tuple[Any, ...]]:
        limits = self._limits
        contexts = _doubled(_SHORTEST, limits.max_model_len - 1)
        numbers = _doubled(1, min(limits.max_num_seqs, limits.max_num_tokens))
        decodes = [(0, 0), *((number, context) for number in numbers for context in contexts)]
        chunks = _doubled(min(_SHORTEST, limits.max_num_tokens), min(limits.max_num_tokens, limits.max_model_len))
        prompts = [(0, 0), *((chunk, context) for chunk in chunks for context in (0, *contexts))]
        points = [
            (*prompt, *decode)
            for prompt in prompts
            for decode in decodes
            if sum(prompt) <= limits.max_model_len and 0 < prompt[0] + decode[0] <= limits.max_num_tokens
        ]
        groups = [
            (place, query_len, context_len, count)
            for place, (chunk, before, number, context) in enumerate(points)
            for query_len, context_len, count in ((chunk, before, 1), (1, context, number))
            if query_len and count
        ]
        places, queries, befores, counts = np.array(groups).T
        starts = np.searchsorted(places, np.arange(len(points)))
        work = Work.of_batches(queries, befores, starts, counts=counts)
        rows = [(*point, time_us) for point, time_us in zip(points, self._us("attention", work), strict=True)]
        return [("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us"), *rows]

    def mixture(self) -> list[tuple[Any, ...]]:
        attributes = dict(self.parts["moe"][0].operation.signature.attributes)
        experts, top_k = int(attributes["num_local_experts"]), int(attributes["top_k"])
        points = [
            (tokens, activated)
            for tokens in _doubled(1, self._limits.max_num_tokens)
            for activated in _doubled(top_k, experts)
            if activated <= tokens * top_k
        ]
        tokens, activated = np.array(points).T
        work = Work.of_sizes(tokens, activated=activated, busiest=-(-tokens * top_k // activated))
        rows = [(*point, time_us) for point, time_us in zip(points, self._us("moe", work), strict=True)]
        return [("tokens", "activated_experts", "time_us"), *rows]

    def left_out(self, operations: Iterable[ModelOperation]) -> tuple[str, ...]:
        """Labels of the operations that no layer stands for."""
        kept = {part.operation.signature for parts in self.parts.values() for part in parts}
        return tuple(o.signature.label for o in operations if o.signature not in kept)

    def _us(self, name: str, work: Work) -> list[float]:
        """What the simulator is to count each time that it comes to the layer, in microseconds."""
        times = 1 if name in _ONCE else self._layers * _IN_A_LAYER.get(name, 1)
        total_s = sum(part.latencies_s(self._models, work) for part in self.parts[name])
        return [float(f"{value:.6g}") for value in np.asarray(total_s) / times * 1e6]


def _placed(operations: Iterable[ModelOperation], ends: tuple[str, ...]) -> list[_Part]:
    """Operations of the layers whose paths end so."""
    kept = (o for o in operations if o.signature.kind is not OperationKind.OVERHEAD)
    parts = (_Part(o, sum(path.endswith(ends) for path in o.layers)) for o in kept)
    return [part for part in parts if part.runs]


def _meta(
    model: ServedModel, name: str, device: Device, *, block_size: int, engine_version: str
) -> dict[str, dict[str, Any] | Any]:
    return {
        "profiler_version": f"pytest-dooly {importlib.metadata.version('pytest-dooly')}",
        "vllm_version": engine_version,
        "gpu": device.product,
        "hardware": device.name,
        "architecture": model.architecture,
        "model": name,
        "variant": "bf16",
        "engine_effective": {
            "block_size": block_size,
            "max_num_batched_tokens": model.limits.max_num_tokens,
            "max_num_seqs": model.limits.max_num_seqs,
        },
        "skew_fit": {"enabled": False},
    }


def _sizes_at(tables: _Tables, ranks: int, last: int) -> dict[str, int]:
    """Sizes of a rank, at the largest tensor-parallel size that is there."""
    attributes = dict(tables.parts["attention"][0].operation.signature.attributes)
    sizes = {
        "num_attention_heads": int(attributes["num_heads"]),
        "num_key_value_heads": int(attributes["num_kv_heads"]),
    }
    for part in tables.parts["down_proj"]:
        for role, _, shape in part.operation.signature.tensors:
            if role == "weight":
                sizes["intermediate_size"] = int(shape[1])
    return {key: max(size * ranks // last, 1) for key, size in sizes.items()}


def _write(path: Path, rows: Iterable[tuple[Any, ...]]) -> None:
    with written_whole(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _sizes(longest: int) -> list[int]:
    """Every size at first, then steps as the published bundles have them."""
    steps = [*range(1, 16), *range(16, 64, 4), *range(64, 2048, _FINE), *range(2048, longest, _COARSE)]
    return [*(size for size in steps if size < longest), longest]


def _doubled(first: int, last: int) -> list[int]:
    """From the first on, each twice the one before, and the last."""
    sizes = [first]
    while sizes[-1] * 2 < last:
        sizes.append(sizes[-1] * 2)
    return [*sizes, last] if last > first else sizes
