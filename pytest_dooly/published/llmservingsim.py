"""The operator bundles of LLMServingSim: their rows as latencies of the operations of the model that they are of.

Nothing else knows these files (`profiler/perf/<hardware>/<model>/<variant>/tp<N>/` of casys-kaist/LLMServingSim, whose
`docs/docs/profiler/output-bundle.md` describes them). What is assumed of them is what their profiler does, and what a
row does not say:

- Latencies are microseconds of kernels within eager forward passes of one layer, means of three: what the host needs to
  launch them, and what lies between them, is in none.
- Rows are keyed by a layer's name in vLLM, not by sizes: these are those of the model's trace. A name that stands for
  several operations has the mean of them (`layernorm`: with and without a residual) and is left out.
- Ranks are emulated on one GPU by smaller layers, so that no collective is timed.
- Attention writes the step's keys and values, and runs FlashAttention.
- A mixture is timed with its router, on one rank with all experts; tokens go to the activated ones in turn.
"""

from __future__ import annotations

import csv
import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pytest_dooly.core.batch import Batch, Routing, SweepPoint
from pytest_dooly.core.environment import CUDA_EVENT, EAGER, UNKNOWN, Environment
from pytest_dooly.core.operation import OperationKind
from pytest_dooly.core.published_latency import PublishedLatency, PublishedTable, Source
from pytest_dooly.core.signature import ServedModel, Signature
from pytest_dooly.errors import ConfigurationError, MissingExtraError, PublishedDataError

__all__ = ["PACKAGE", "PLACES", "Bundle"]

PACKAGE = "LLMServingSim"

MAPPING = 1
"""Raised when a row becomes another operation or point, so that an import replaces what an older one has made."""

_LICENCE = "MIT"

PLACES: Mapping[str, tuple[str, ...]] = {
    "embedding": ("embed_tokens",),
    "layernorm": ("input_layernorm", "post_attention_layernorm"),
    "qkv_proj": ("self_attn.qkv_proj",),
    "qk_norm": ("self_attn.q_norm", "self_attn.k_norm"),
    "rotary_emb": ("self_attn.rotary_emb",),
    "attention": ("self_attn.attn",),
    "o_proj": ("self_attn.o_proj",),
    "gate_up_proj": ("mlp.gate_up_proj",),
    "act_fn": ("mlp.act_fn",),
    "down_proj": ("mlp.down_proj",),
    "moe": ("mlp.experts", "block_sparse_moe.experts"),
    "final_layernorm": ("model.norm",),
    "lm_head": ("logits_processor",),
    "sampler": ("sampler",),
}
"""How the paths of the layers end that a name stands for."""

_ON_GPU = {"backend": "FLASH_ATTN", "dispatch": "forward_cuda"}
"""Attributes of a signature that the device of its trace decides, as vLLM decides them on the profiled GPUs."""


@dataclass(frozen=True)
class _File:
    """How the rows of one file are read.

    Attributes:
        columns: whole numbers that the file must have, besides `time_us`, and whether each may be 0.
        point: what a row was timed at, or why that is unknown.
        layer: that every row is of; None where a column `layer` says so.
    """

    columns: Mapping[str, bool]
    point: Callable[[Mapping[str, int], Signature], SweepPoint | str]
    layer: str | None = None


@dataclass(frozen=True)
class Bundle:
    """One directory of tables: a model on a GPU at one tensor-parallel size.

    Attributes:
        directory: that holds the tables, `tp<N>`.
        ranks: N.
        meta: what `meta.yaml` beside it says.
    """

    directory: Path
    ranks: int
    meta: Mapping[str, Any]

    @classmethod
    def open(cls, directory: Path) -> Bundle:
        """The bundle in a directory.

        Raises:
            PublishedDataError: there is no bundle, or its meta.yaml cannot be read.
            MissingExtraError: PyYAML is missing.
        """
        directory = directory.resolve()
        named = re.fullmatch(r"tp([1-9]\d*)", directory.name)
        path = directory.parent / "meta.yaml"
        if named is None or not directory.is_dir() or not path.is_file():
            raise PublishedDataError(
                f"{directory} is no bundle of {PACKAGE}: name a directory tp1, tp2, … with a meta.yaml beside it, "
                "as in profiler/perf/RTX4090/meta-llama/Llama-3.1-8B/bf16/tp1"
            )
        return cls(directory, int(named[1]), _meta(path))

    @property
    def model(self) -> str:
        """Hub id of the model that it is of."""
        return str(self.meta["model"])

    @property
    def device(self) -> str:
        """The GPU, as its driver names it."""
        return str(self.meta["gpu"])

    def tables(self, model: ServedModel) -> Iterator[PublishedTable]:
        """The latencies of every table, file after file.

        Args:
            model: the bundle's model as traced at the bundle's tensor-parallel size, on any device.

        Raises:
            ConfigurationError: the model has other sizes than the bundle's.
            PublishedDataError: a file is damaged or has other columns.
        """
        self._check(model)
        signatures = {name: self._signatures(model, ends) for name, ends in PLACES.items()}
        for name, file in _FILES.items():
            path = self.directory / name
            if path.is_file():
                yield self._table(path, file, signatures)

    def _check(self, model: ServedModel) -> None:
        """Refuses another model: meta.yaml has sizes of a rank, at the last size that was profiled."""
        sizes = self.meta["engine_effective"]["hf_overrides"]
        last = self.meta["tp_degrees"][-1]
        attention = next((o.signature for o in model.operations if o.signature.name == "attention"), None)
        heads = 0 if attention is None else int(dict(attention.attributes)["num_heads"])
        found = [("num_attention_heads", heads)]
        for signature in self._signatures(model, PLACES["down_proj"]):
            found += [("intermediate_size", int(shape[1])) for role, _, shape in signature.tensors if role == "weight"]
        for name, size in found:
            if sizes[name] * last != size * self.ranks:
                raise ConfigurationError(
                    f"{model.name} has {name} {size * self.ranks}, and {self.model}, which {self.directory} is of, has "
                    f"{sizes[name] * last}: name that model with --model"
                )

    def _signatures(self, model: ServedModel, ends: tuple[str, ...]) -> list[Signature]:
        """Operations of the layers whose paths end so, as they are on the profiled GPU."""
        block_size = int(self.meta["engine_effective"]["block_size"])
        of = (o for o in model.operations if any(path.endswith(ends) for path in o.layers))
        return [_on_gpu(o.signature, block_size) for o in of if o.signature.kind is not OperationKind.OVERHEAD]

    def _table(self, path: Path, file: _File, signatures: Mapping[str, list[Signature]]) -> PublishedTable:
        content = path.read_bytes()
        rows: dict[tuple[Signature, SweepPoint], PublishedLatency] = {}
        unmapped: Counter[str] = Counter()
        for row in _rows(path, content.decode(errors="replace"), file):
            found = _latency(row, file, signatures)
            if isinstance(found, str):
                unmapped[found] += 1
            elif rows.setdefault((found.signature, found.point), found) is not found:
                unmapped["the same operation and point again: the first is kept"] += 1
        return PublishedTable(self._source(path, content), {self._environment: tuple(rows.values())}, dict(unmapped))

    def _source(self, path: Path, content: bytes) -> Source:
        where = (self.meta["hardware"], self.model, self.meta["variant"], self.directory.name, path.name)
        return Source(
            package=PACKAGE,
            version=str(self.meta["profiler_version"]),
            licence=_LICENCE,
            file="/".join(map(str, where)),
            sha256=hashlib.sha256(content).hexdigest(),
            mapping=MAPPING,
        )

    @property
    def _environment(self) -> Environment:
        return Environment(
            device=self.device,
            device_count=1,
            driver=UNKNOWN,
            engine="vllm",
            engine_version=str(self.meta["vllm_version"]),
            torch_version=UNKNOWN,
            clock=CUDA_EVENT,
            cache_mode="in_pass",
            execution=EAGER,
        )


def _latency(row: Mapping[str, Any], file: _File, signatures: Mapping[str, list[Signature]]) -> PublishedLatency | str:
    """The latency of a row, or why it is none of an operation."""
    for name, may_be_zero in file.columns.items():
        if row[name] < (0 if may_be_zero else 1):
            return f"a {name} of {row[name]}"
    if not 0 < row["time_us"] < math.inf:
        return "the latency is no positive number"
    layer = file.layer or row["layer"]
    found = signatures.get(layer, [])
    if len(found) != 1:
        return f"{layer} is the mean of {len(found)} operations" if found else f"no operation of the model is a {layer}"
    point = file.point(row, found[0])
    return point if isinstance(point, str) else PublishedLatency(found[0], point, row["time_us"] / 1e6, layer)


def _attended(row: Mapping[str, int], signature: Signature) -> SweepPoint | str:
    """One chunk of a prompt, decodes, or both."""
    chunk = [(row["prefill_chunk"], row["kv_prefill"])] if row["prefill_chunk"] else []
    requests = [*chunk, *[(1, row["kv_decode"])] * row["n_decode"]]
    return SweepPoint(batch=Batch.of(requests)) if requests else "a batch without requests"


def _routed(row: Mapping[str, int], signature: Signature) -> SweepPoint | str:
    num_tokens, activated = row["tokens"], row["activated_experts"]
    busiest = -(-num_tokens * int(dict(signature.attributes)["top_k"]) // activated)
    return SweepPoint(num_tokens=num_tokens, routing=Routing(activated, busiest))


_FILES: Mapping[str, _File] = {
    "dense.csv": _File({"tokens": False}, lambda row, _: SweepPoint(num_tokens=row["tokens"])),
    "per_sequence.csv": _File({"sequences": False}, lambda row, _: SweepPoint(num_reqs=row["sequences"])),
    "attention.csv": _File(
        dict.fromkeys(("prefill_chunk", "kv_prefill", "n_decode", "kv_decode"), True), _attended, "attention"
    ),
    "moe.csv": _File(dict.fromkeys(("tokens", "activated_experts"), False), _routed, "moe"),
}


def _on_gpu(signature: Signature, block_size: int) -> Signature:
    """The signature as a trace on the profiled GPU would give it."""
    decided: dict[str, str | int] = {**_ON_GPU, "block_size": block_size}
    blocks = f"((context_len + query_len + {block_size - 1}) // {block_size})"
    return replace(
        signature,
        tensors=tuple((r, d, (blocks,)) if r == "block_table" else (r, d, shape) for r, d, shape in signature.tensors),
        attributes=tuple((name, decided.get(name, value)) for name, value in signature.attributes),
    )


def _meta(path: Path) -> Mapping[str, Any]:
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError(
            f"reading {path} needs PyYAML: run pip install 'pytest-dooly[public-data]', which brings it"
        ) from error
    try:
        meta = yaml.safe_load(path.read_bytes())
        engine = meta["engine_effective"]
        needed = (meta["gpu"], meta["hardware"], meta["model"], meta["profiler_version"], meta["vllm_version"])
        complete = all(needed) and engine["block_size"] and engine["hf_overrides"]["num_attention_heads"]
        known = complete and meta["variant"] == "bf16" and meta["tp_degrees"][-1]
    except (yaml.YAMLError, KeyError, TypeError, IndexError) as error:
        raise PublishedDataError(f"{path} cannot be read ({error!r}): fetch the bundle again") from error
    if not known:
        raise PublishedDataError(f"{path} is of variant {meta['variant']!r}: only bundles of variant 'bf16' are read")
    return meta


def _rows(path: Path, text: str, file: _File) -> Iterator[dict[str, Any]]:
    """The rows with whole numbers, and the latency in microseconds.

    Raises:
        PublishedDataError: a column is missing or of another type.
    """
    lines = csv.DictReader(text.splitlines())
    needed = {*file.columns, "time_us", *(() if file.layer else ("layer",))}
    missing = sorted(needed - set(lines.fieldnames or ()))
    if missing:
        present = ", ".join(lines.fieldnames or ())
        raise PublishedDataError(f"{path} has no column {', '.join(missing)}, only {present}: fetch the bundle again")
    for number, line in enumerate(lines, 2):
        try:
            values = {name: int(line[name]) for name in file.columns}
            yield {**values, "layer": line.get("layer"), "time_us": float(line["time_us"])}
        except (TypeError, ValueError) as error:
            raise PublishedDataError(f"{path}, line {number}: {error}; fetch the bundle again") from error
