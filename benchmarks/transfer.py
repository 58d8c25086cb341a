"""`make bench-transfer`: a GPU's operations by another's tables and both data sheets, beside its own tables.

Run as `python -m benchmarks.transfer [--db FILE] [--write DIR]`. Each of some GPUs that have public tables is taken
for one without: its operations are predicted from another's latencies (`published/transfer.py`), and from its own.
What they differ by is what another GPU's latencies add to an error: kernels, clocks and caches are not scaled by a
data sheet. Operations are those of models as they are served, at the points of their sweeps; steps are their sums.

Likewise products and experts in a precision that a GPU has tables of, as if it had but others, beside the data sheet's
estimate (`published/another_precision.py`).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.public import write
from benchmarks.study.redundancy import import_tables, progress
from pytest_dooly.core.batch import Batch
from pytest_dooly.core.configuration import ServingOptions, resolve
from pytest_dooly.core.device import device_named
from pytest_dooly.core.signature import ServedModel, Signature
from pytest_dooly.engine import load_engine
from pytest_dooly.errors import DoolyError
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.prediction.step import predict_step
from pytest_dooly.published.another_precision import AnotherPrecision, like
from pytest_dooly.published.basis import Foundation
from pytest_dooly.published.estimate import Estimate
from pytest_dooly.published.family import Family, lone_parts_of, table_of
from pytest_dooly.published.grounds import Grounds
from pytest_dooly.published.kernels import estimated_s
from pytest_dooly.published.transfer import transferred
from pytest_dooly.regress.regressor import LatencyModel
from pytest_dooly.serving import serve
from pytest_dooly.sweep.grid import sweep

Array = npt.NDArray[np.float64]

PAIRS = (
    ("h200_sxm", "h100_sxm", "same chip, other memory"),
    ("h100_sxm", "h200_sxm", "same chip, other memory"),
    ("a100_sxm", "h100_sxm", "another generation"),
    ("h100_sxm", "a100_sxm", "another generation"),
    ("a100_sxm", "l40s", "another generation, memory and links"),
    ("l40s", "a100_sxm", "another generation, memory and links"),
    ("l40s", "rtx_pro_6000_server", "another generation"),
    ("rtx_pro_6000_server", "l40s", "another generation"),
)
"""GPUs without and with tables, and how alike they are."""

MODELS = (("llama3", 1), ("qwen3-8b", 1), ("llama3-70b", 8), ("mixtral-8x7b", 2), ("qwen3-30b-a3b", 2))
"""With their tensor-parallel size."""

SIZES = 60
"""Of each GPU's kernels of a precision, that are compared."""

FEWEST, FEWEST_ASKED = 30, 8
"""Sizes of what a kernel is predicted by, and of what is predicted."""

KERNELS = ("experts", "gemm", "latent decode", "latent prefill")
"""That are compared; of the last two the mean is left out, since most of them is attention."""

STEPS = ("1x1+512", "16x1+1024", "64x1+1024", "1x2048+0", "8x1+512,1024+0")


def main() -> None:
    """Imports the tables that are needed, compares, prints, and writes where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--db", metavar="FILE", type=Path, help="latency DB to import into; a temporary one else")
    parser.add_argument("--write", metavar="DIR", type=Path, help="a report as well")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, LatencyDB.open(options.db or Path(folder) / "latency.db") as db:
        import_tables(db, sorted({name for pair in PAIRS for name in pair[:2]}))
        text = "\n".join(report(db))
    sys.stdout.write(f"{text}\n")
    if options.write is not None:
        write(options.write / "transfer.md", "Another GPU's latencies in place of one's own", __doc__, text)


def report(db: LatencyDB) -> Iterator[str]:
    """A line for each pair: operations by kind, and steps."""
    models = list(_traced(db))
    grounds = {name: Grounds(db, device_named(name), progress=progress) for pair in PAIRS for name in pair[:2]}
    yield "Relative difference of latencies by another GPU's tables from those by its own: mean size (mean with sign)"
    yield f"{'GPU':20} {'by':20} {'operations':>18} {'linear':>18} {'attention':>18} {'moe':>18} {'steps':>18}"
    every: list[Array] = []
    for without, of, alike in PAIRS:
        by_kind: dict[str, list[Array]] = {}
        steps: list[float] = []
        for model in models:
            own, other = grounds[without].of(model), _by_another(grounds[of], grounds[without], model)
            for operation in model.operations:
                key, kind = operation.signature.key, operation.signature.kind.value
                if key in other and own[key].basis.kind != "estimate":
                    by_kind.setdefault(kind, []).append(_apart(operation.signature, model, own[key], other[key]))
            known = {key: each.model for key, each in own.items()}
            moved = known | {key: each.model for key, each in other.items()}
            steps += [_step_s(model, moved, text) / _step_s(model, known, text) - 1 for text in STEPS]
        every += [np.concatenate([each for of_kind in by_kind.values() for each in of_kind])]
        cells = [every[-1], *(np.concatenate(by_kind[k]) if k in by_kind else np.empty(0) for k in _KINDS)]
        line = " ".join(f"{_cell(each):>18}" for each in (*cells, np.array(steps)))
        yield f"{without:20} {of:20} {line}  {alike}"
    yield f"{'all':41} {_cell(np.concatenate(every)):>18}"
    yield ""
    yield "Relative difference of kernels by another precision from their own tables: mean size (mean with sign)"
    heads = f"{'GPU':20} {'kernel':15} {'precision':15} {'by':15} {'latencies':>10}"
    yield f"{heads} {'by that':>18} {'by the data sheet':>18}"
    compared: list[tuple[Array, Array]] = []
    for here in grounds.values():
        for asked, by, by_another, by_data_sheet in _by_precision(db, here):
            line = (
                f"{here.device.name:20} {asked.kernel:15} {asked.precision:15} {by.precision:15} {len(by_another):10,}"
            )
            yield f"{line} {_cell(by_another):>18} {_cell(by_data_sheet):>18}"
            if not asked.kernel.startswith("latent"):
                compared.append((by_another, by_data_sheet))
    means = np.mean([[np.abs(each).mean() for each in pair] for pair in compared], axis=0)
    yield f"{'mean of the lines of experts and products':79} {' '.join(f'{mean:>18.0%}' for mean in means)}"


_KINDS = ("linear", "attention", "moe")


def _traced(db: LatencyDB) -> Iterator[ServedModel]:
    engine = load_engine("vllm")
    for name, ranks in MODELS:
        options = ServingOptions(tensor_parallel_size=ranks, max_num_tokens=4096, max_num_seqs=256, max_model_len=8192)
        configuration = resolve(name, options)
        try:
            yield serve(engine, configuration, db, engine.environment(configuration), progress=progress)
        except DoolyError as error:
            progress(f"left out: {name}: {error}")


def _by_another(of: Grounds, without: Grounds, model: ServedModel) -> Mapping[str, Foundation]:
    """Foundations by the other GPU's tables, of operations that it has any of."""
    found = {}
    for operation in model.operations:
        signature = operation.signature
        there, here = (Estimate(signature, each.device) for each in (of, without))
        moved = transferred(of.foundation(signature, model.limits), there, here)
        if moved is not None:
            found[signature.key] = moved
    return found


def _by_precision(db: LatencyDB, grounds: Grounds) -> Iterator[tuple[Family, Family, Array, Array]]:
    """Families, each other one that could stand in, and relative differences by that and by the data sheet.

    What is compared with is what the family's own regressor says of its own latencies, which has taken off launches
    that these were timed with.
    """
    for asked in sorted(grounds.families, key=str):
        own = grounds.regressor(asked) if asked.kernel in KERNELS else None
        if own is None or len(own.rows) < FEWEST_ASKED:
            continue
        columns = _columns(db, grounds, asked)
        own_s, data_sheet_s = own.predict(columns)[0], estimated_s(asked, columns, grounds.device)
        for other in like(asked, grounds.families, grounds.device):
            by = grounds.regressor(other)
            if by is not None and len(by.rows) >= FEWEST:
                by_another_s = AnotherPrecision(asked, by).predict(columns)[0]
                yield asked, other, by_another_s / own_s - 1, data_sheet_s / own_s - 1


def _columns(db: LatencyDB, grounds: Grounds, family: Family) -> dict[str, Array]:
    """Sizes and request values of the published latencies of some sizes of a family."""
    signatures = db.signatures()
    rows = []
    for environment in db.environments():
        if environment.device == grounds.device.product:
            counts = db.published_counts(environment)
            keys = [key for key in counts if family in (part.family for part in lone_parts_of(signatures[key]))]
            rows += [row for of in db.published(environment, keys).values() for row in of]
    table = table_of(family, rows)
    kept = table.groups % max(1, len(table.sizes) // SIZES) == 0
    return {name: values[kept] for name, values in table.columns.items()}


def _apart(signature: Signature, model: ServedModel, own: Foundation, other: Foundation) -> Array:
    points = sweep(signature, model.limits)
    return np.asarray(other.model.predict_s(points) / own.model.predict_s(points) - 1)


def _step_s(model: ServedModel, models: Mapping[str, LatencyModel], text: str) -> float:
    return predict_step(model, models, Batch.parse(text)).latency_s


def _cell(errors: Sequence[float] | Array) -> str:
    known = np.asarray(errors)
    return f"{np.abs(known).mean():.0%} ({known.mean():+.0%})" if len(known) else ""


if __name__ == "__main__":
    main()
