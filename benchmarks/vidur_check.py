"""Predictions across sizes beside rows that nobody fitted: the profiles in microsoft/vidur.

Run as `python -m benchmarks.vidur_check --vidur CLONE [--db FILE] [--write DIR]`. CLONE is microsoft/vidur at 7d47513
(MIT), FILE a latency DB with aiconfigurator's tables of an H100 and an A100 (`dooly import aiconfigurator --system
h100_sxm a100_sxm`). Every row of `data/profiling/compute/{h100,a100}/MODEL/mlp.csv` is an operation of one layer at a
number of tokens and ranks; every row of `network/*_dgx/all_reduce.csv` is an all-reduce. Each is predicted from the
tables and set beside the median that Vidur has kept. Norms, rotary embeddings, activations and sums are no family of
the tables: those rows check the data sheet's estimates.

How their timing differs. Vidur takes one layer of a model in fp16, runs it 20 times in a row on the same weights, and
sums the durations of the kernels that PyTorch's profiler saw within an operation (`record_function`, Kineto): no launch
and no gap is in them, where the tables have replayed CUDA graphs of one operation by CUDA events. Its kernels are those
of Sarathi-Serve of 2024, PyTorch 2.1 with cuBLAS of CUDA 12.1, beside vLLM 0.24's. Its all-reduce is NCCL's kernel
alone, the median of three; the tables have vLLM's own kernel for small messages. Of each operation it keeps
milliseconds to three digits, a microsecond, which is up to a fifth of a small kernel. The stored snapshot lacks every
`attention.csv`, so that attention is not checked.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from pytest_dooly.core.batch import Limits, SweepPoint
from pytest_dooly.core.device import device_named
from pytest_dooly.core.operation import OperationKind
from pytest_dooly.core.signature import Signature
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.published.aiconfigurator.mapping import collective_signature, linear_signature
from pytest_dooly.published.grounds import Grounds
from pytest_dooly.published.parts import PartsModel

Array = npt.NDArray[np.float64]

DEVICES = {"h100": ("h100_sxm", "h100_dgx"), "a100": ("a100_sxm", "a100_dgx")}
"""Name of ours, and folder of the network's profile, by the folder of a device."""

LIMITS = Limits(max_num_tokens=8192, max_num_seqs=256, max_model_len=8192)
SIZES = ["num_tensor_parallel_workers", "n_head", "n_kv_head", "n_embd", "n_expanded_embd", "use_gated_mlp"]
PRODUCTS = ("attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj")
TOKENS = (1, 65, 257, 1025, 4097)
MESSAGE = 128
"""Elements of a row of a message, as the tables' signature has it."""


@dataclass(frozen=True)
class Rows:
    """One operation's rows and what is predicted of them, each of shape (rows,).

    Attributes:
        operation: its name in Vidur.
        basis: what the predictions rest on.
        measured_s: Vidur's medians, in seconds.
        predicted_s: in seconds.
        expected: relative error that is stated; not a number where none is.
        size: tokens, or bytes of a message.
    """

    operation: str
    basis: str
    measured_s: Array
    predicted_s: Array
    expected: Array
    size: Array

    def between(self, least: float, most: float) -> Rows:
        """Those of sizes from `least` to below `most`."""
        kept = (self.size >= least) & (self.size < most)
        arrays = (self.measured_s[kept], self.predicted_s[kept], self.expected[kept], self.size[kept])
        return Rows(self.operation, self.basis, *arrays)

    @property
    def errors(self) -> Array:
        """Relative, with their sign."""
        return self.predicted_s / self.measured_s - 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tables; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vidur", type=Path, required=True, metavar="CLONE", help="microsoft/vidur")
    parser.add_argument("--db", type=Path, default=Path(".dooly/latency.db"), metavar="FILE", help="latency DB")
    parser.add_argument("--write", type=Path, metavar="DIR", help="a report as well")
    options = parser.parse_args(arguments)
    lines: list[str] = []
    profiles = options.vidur / "data" / "profiling"
    with LatencyDB.open(options.db) as db:
        for folder, (name, network) in DEVICES.items():
            grounds = Grounds(db, device_named(name))
            found = [
                *_layers(grounds, profiles / "compute" / folder),
                *_messages(grounds, profiles / "network" / network),
            ]
            lines += _table(folder, found)
    text = "\n".join(lines)
    sys.stdout.write(text + "\n")
    if options.write is not None:
        options.write.mkdir(parents=True, exist_ok=True)
        title = "Predictions beside Vidur's profiles"
        (options.write / "vidur_check.md").write_text(f"# {title}\n\n{__doc__}\n```\n{text}\n```\n", encoding="utf-8")
    return 0


def _layers(grounds: Grounds, folder: Path) -> Iterator[Rows]:
    for path in sorted(folder.glob("*/*/mlp.csv")):
        for sizes, rows in pd.read_csv(path).groupby(SIZES):
            for operation, signature in _operations(dict(zip(SIZES, map(int, sizes), strict=True))).items():
                column = f"time_stats.{operation}.median"
                kept = rows[rows[column] > 0] if column in rows else rows.iloc[:0]
                if len(kept):
                    yield _predicted(grounds, operation, signature, kept["num_tokens"], kept[column])


def _operations(sizes: dict[str, int]) -> dict[str, Signature]:
    """Operations of a layer by Vidur's names, as one of the ranks runs them."""
    ranks, hidden = sizes["num_tensor_parallel_workers"], sizes["n_embd"]
    head = hidden // sizes["n_head"]
    heads, kv_heads = sizes["n_head"] // ranks, sizes["n_kv_head"] // ranks
    inner = sizes["n_expanded_embd"] // ranks
    gated = (2 if sizes["use_gated_mlp"] else 1) * inner
    flat = ("num_tokens", hidden)
    return {
        "attn_pre_proj": linear_signature("bfloat16", (heads + 2 * kv_heads) * head, hidden),
        "attn_post_proj": linear_signature("bfloat16", hidden, heads * head),
        "mlp_up_proj": linear_signature("bfloat16", gated, hidden),
        "mlp_down_proj": linear_signature("bfloat16", hidden, inner),
        "input_layernorm": _signature(OperationKind.NORM, "rms_norm", x=flat, weight=(hidden,)),
        "attn_rope": _signature(
            OperationKind.ROTARY,
            "rotary_embedding",
            query=("num_tokens", heads * head),
            key=("num_tokens", kv_heads * head),
        ),
        "mlp_act": _signature(OperationKind.ACTIVATION, "silu_and_mul", x=("num_tokens", gated)),
        "add": _signature(OperationKind.OTHER, "aten.add", arg0=flat, arg1=flat),
    }


def _signature(kind: OperationKind, name: str, **shapes: tuple[int | str, ...]) -> Signature:
    return Signature(kind, name, tuple((role, "bf16", shape) for role, shape in shapes.items()), (), "num_tokens")


def _messages(grounds: Grounds, folder: Path) -> Iterator[Rows]:
    frame = pd.read_csv(folder / "all_reduce.csv")
    within = frame["devices_per_node"] == frame["num_workers"]  # others go through a network between nodes
    frame = frame[within & (frame["size"] % (2 * MESSAGE) == 0) & (frame["size"] > 0)]
    for ranks, rows in frame.groupby("num_workers"):
        tokens = rows["size"] // (2 * MESSAGE)
        signature = collective_signature("all_reduce", int(str(ranks)))
        name = f"all_reduce x{ranks}"
        yield _predicted(grounds, name, signature, tokens, rows["time_stats.all_reduce.median"], rows["size"])


def _predicted(
    grounds: Grounds, operation: str, signature: Signature, tokens: Any, median_ms: Any, size: Any = None
) -> Rows:
    foundation = grounds.foundation(signature, LIMITS)
    points = [SweepPoint(num_tokens=int(count)) for count in tokens]
    model = foundation.model
    expected = model.predict(points)[1] if isinstance(model, PartsModel) else np.full(len(points), np.nan)
    return Rows(
        operation,
        foundation.basis.kind,
        np.asarray(median_ms, dtype=np.float64) / 1e3,
        model.predict_s(points),
        expected,
        np.asarray(tokens if size is None else size, dtype=np.float64),
    )


def _table(folder: str, found: Sequence[Rows]) -> list[str]:
    """Errors by operation and basis; then those of matrix products by the number of their tokens."""
    head = f"{'rows':>6} | {'median':>7} {'bias':>7} {'p90':>7} | {'spread':>7} | {'stated':>7}"
    lines = [folder, f"{'operation':16} {'rests on':13} {head}"]
    groups: dict[tuple[str, str], list[Rows]] = {}
    for each in found:
        groups.setdefault((each.operation, each.basis), []).append(each)
    lines += [f"{name:16} {basis:13} {_figures(rows)}" for (name, basis), rows in groups.items()]
    lines += ["", f"{'matrix products':16} {'rests on':13} {head}"]
    products = [each for each in found if each.operation in PRODUCTS]
    for least, most in pairwise(TOKENS):
        for basis in ("published", "across sizes"):
            rows = [each.between(least, most) for each in products if each.basis == basis]
            lines.append(f"{f'{least}-{most - 1} tokens':16} {basis:13} {_figures(rows)}")
    return [*lines, ""]


def _figures(rows: Sequence[Rows]) -> str:
    """Number of the rows; median, bias, 90th percentile and spread of their errors; the error that is stated.

    The spread is what is left of the median error where all predictions are multiplied by the factor that takes the
    bias away: two ways of timing that differ by a factor have none.
    """
    errors = np.concatenate([each.errors for each in rows])
    expected = np.concatenate([each.expected for each in rows])
    stated = f"{expected.mean():7.1%}" if np.isfinite(expected).all() else f"{'none':>7}"
    bias = float(np.median(errors))
    spread = float(np.median(np.abs((1 + errors) / (1 + bias) - 1)))
    sizes = np.abs(errors)
    middle = f"{np.median(sizes):7.1%} {bias:+7.1%} {np.quantile(sizes, 0.9):7.1%}"
    return f"{len(errors):6,} | {middle} | {spread:7.1%} | {stated}"


if __name__ == "__main__":
    sys.exit(main())
