"""`make bench-transfer`: a GPU's operations by another's tables and both data sheets, beside its own tables.

Run as `python -m benchmarks.transfer [--db FILE] [--write DIR]`. Each of some GPUs that have public tables is taken
for one without: its operations are predicted from another's latencies (`published/transfer.py`), and from its own.
What they differ by is what another GPU's latencies add to an error: kernels, clocks and caches are not scaled by a
data sheet. Operations are those of models as they are served, at the points of their sweeps; steps are their sums.

Likewise experts in a precision that a GPU has tables of, as if it had bf16 alone, beside the data sheet's estimate.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.public import write
from benchmarks.study.redundancy import import_tables, progress
from pytest_dooly.core.batch import Batch, Limits
from pytest_dooly.core.configuration import ServingOptions, resolve
from pytest_dooly.core.device import device_named
from pytest_dooly.core.environment import Environment
from pytest_dooly.core.signature import ServedModel, Signature
from pytest_dooly.engine import load_engine
from pytest_dooly.errors import DoolyError
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.prediction.step import predict_step
from pytest_dooly.published.basis import Foundation
from pytest_dooly.published.estimate import Estimate
from pytest_dooly.published.family import parts_of
from pytest_dooly.published.grounds import Grounds
from pytest_dooly.published.transfer import transferred, unquantised
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
"""Of each GPU's experts of a precision, that are compared."""

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
    yield "Relative difference of experts with weights taken for bf16 from their own tables: mean size (mean with sign)"
    yield f"{'GPU':20} {'precision':>10} {'latencies':>10} {'by bf16':>18} {'by the data sheet':>18}"
    found = [cells for of in grounds.values() for cells in _by_bf16(db, of)]
    for gpu, precision, by_bf16, estimated in found:
        yield f"{gpu:20} {precision:>10} {len(by_bf16):10,} {_cell(by_bf16):>18} {_cell(estimated):>18}"
    means = [[np.abs(each).mean() for each in pair] for _, _, *pair in found]
    yield f"{'mean of the lines':42} {' '.join(f'{mean:>18.0%}' for mean in np.mean(means, axis=0))}"


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


def _by_bf16(db: LatencyDB, grounds: Grounds) -> Iterator[tuple[str, str, Array, Array]]:
    """GPU, precision, and relative differences of experts' latencies by bf16 and by the data sheet from their own."""
    device, signatures, limits = grounds.device, db.signatures(), Limits(8192, 1024, 8192)
    keys: dict[str, list[tuple[Environment, str]]] = {}
    for environment in db.environments():
        for key in db.published_counts(environment) if environment.device == device.product else ():
            parts = parts_of(signatures[key])
            if parts and parts[0].family.kernel == "experts" and len(parts) == 1:
                keys.setdefault(parts[0].family.precision, []).append((environment, key))
    for precision, of in sorted(keys.items()):
        pairs = []
        for environment, key in of[:: max(1, len(of) // SIZES)]:
            signature = _unpacked(signatures[key])
            wide, here = unquantised(signature), Estimate(signature, device)
            if wide is None:
                continue
            moved = transferred(grounds.foundation(wide, limits), Estimate(wide, device), here)
            if moved is not None:
                rows = db.published(environment, [key])[key]
                points, own_s = [row.point for row in rows], np.array([row.latency_s for row in rows])
                pairs.append([each.predict_s(points) / own_s - 1 for each in (moved.model, here)])
        if pairs:
            by_bf16, estimated = (np.concatenate(each) for each in zip(*pairs, strict=True))
            yield device.name, precision, by_bf16, estimated


def _unpacked(signature: Signature) -> Signature:
    """Tables have two weights of four bits in a byte, where traces have the shapes that they stand for."""
    tensors = tuple(
        (role, "uint4", (*shape[:-1], 2 * int(shape[-1]))) if dtype == "uint8" and role.endswith("weight") else each
        for each in signature.tensors
        for role, dtype, shape in [each]
    )
    return replace(signature, tensors=tensors)


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
