"""Regressors on published GPU latencies, by held-out error: ours, a random forest, and the package's own interpolation.

Run as `python -m benchmarks.public [--system h200_sxm] [--only TEXT] [--write DIR]`. Each family of a table is split
two ways with fixed seeds: 20 % of the rows held out, and 20 % of the sizes held out with all their rows; and each again
with a fifth of its other rows to learn from. Every method learns from the same rows and is asked about the same.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.package_baseline import predict_held_out
from pytest_dooly.core.device import Device, device_named
from pytest_dooly.core.published_latency import PublishedLatency
from pytest_dooly.published.across import AcrossSizes
from pytest_dooly.published.aiconfigurator import mapping, tables
from pytest_dooly.published.family import Family, Table, parts_of, table_of
from pytest_dooly.published.kernels import describe

Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.intp]

SHARE, FIFTH = 0.2, 5
A_FIFTH = ", a fifth"
TABLES = {
    "gemm": "gemm_perf",
    "context_attention": "context_attention_perf",
    "generation_attention": "generation_attention_perf",
    "moe": "moe_perf",
    "mla_context": "mla_context_module_perf",
    "mla_generation": "mla_generation_module_perf",
    "custom_allreduce": "custom_allreduce_perf",
}
"""The package's files by the name that its baseline knows them by."""


@dataclass(frozen=True)
class Data:
    """One family of a table: the package's rows, and the same rows as arrays."""

    table: str
    version: str
    family: Family
    frame: Any
    arrays: Table


@dataclass(frozen=True)
class Result:
    """What a method made of one split.

    Attributes:
        errors: absolute relative, of the test rows that it answers.
        coverage: share of the test rows that it answers.
        fit_s: seconds of CPU to learn; None where nothing is learnt ahead.
        per_s: predictions a second of CPU, all test rows in one call.
    """

    errors: Array
    coverage: float
    fit_s: float | None
    per_s: float

    def beats(self, other: Result) -> tuple[bool, bool]:
        """Whether the median is no higher, and whether the 95th percentile is not."""
        if not len(other.errors):
            return True, True
        median, tail = (bool(np.quantile(self.errors, q) <= np.quantile(other.errors, q)) for q in (0.5, 0.95))
        return median, tail

    def __str__(self) -> str:
        if not len(self.errors):
            return f"{'no answer':>13}"
        return f"{np.median(self.errors):6.2%} {np.quantile(self.errors, 0.95):6.1%}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tables; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--system", default="h200_sxm")
    parser.add_argument("--only", nargs="*", default=[], help="families whose name contains one of these")
    parser.add_argument("--write", type=Path, metavar="DIR", help="a report as well")
    options = parser.parse_args(arguments)
    lines: list[str] = []
    won: dict[str, list[npt.NDArray[np.bool_]]] = {}

    def say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
        lines.append(line)

    device = device_named(options.system)
    say(f"{device.product}: median and 95th percentile of the absolute relative error of held-out rows")
    say("")
    names = f"{'across sizes':13} | {'forest':13} | {'the package':13}"
    say(f"{'family':26} {'split':14} {'fit to':>6} {'test':>5} | {names} | fit, CPU s  | 1,000 predictions a CPU s")
    for data in families(options.system):
        if options.only and not any(text in f"{data.table} {data.family}" for text in options.only):
            continue
        all_points: Result | None = None
        for split, learn, test in splits(data.arrays):
            ours = measured(across(data, device), data, learn, test)
            other = measured(forest(data), data, learn, test)
            package = interpolated(data, options.system, learn, test)
            if split.endswith(A_FIFTH) and all_points is not None:
                rivals = [all_points]
            else:
                all_points, rivals = other, [other, package]
            won.setdefault(split, []).append(np.all([ours.beats(rival) for rival in rivals], axis=0))
            part = "" if package.coverage == 1 else f" ({package.coverage:.0%})"
            say(
                f"{data.family!s:26} {split:14} {len(learn):6} {len(test):5} | {ours} | {other} | {package}{part}"
                f" | {ours.fit_s:5.1f} {other.fit_s:5.1f}"
                f" | {ours.per_s / 1e3:6.1f} {other.per_s / 1e3:6.1f} {package.per_s / 1e3:6.1f}"
            )
    say("")
    for split, wins in won.items():
        rivals_named = "the forest with all points" if split.endswith(A_FIFTH) else "both"
        median, tail = np.sum(wins, axis=0)
        say(
            f"{split}: no higher than {rivals_named}: the median in {median}, the 95th percentile in {tail}, "
            f"both in {np.all(wins, axis=1).sum()} of {len(wins)} families"
        )
    if options.write is not None:
        path = options.write / f"{options.system}.md"
        write(path, "Held-out error on published latencies", __doc__, "\n".join(lines))
    return 0


def families(system: str) -> Iterator[Data]:
    """Every family of the system's tables, with all its rows."""
    import pandas as pd

    root = tables.installed()
    for path in tables.table_files(root, system, "vllm", None):
        table = next((name for name, stem in TABLES.items() if stem == path.stem), None)
        if table is None:
            continue
        frame = pd.read_parquet(path)
        for name, default in tables.OPTIONAL.items():  # older tables lack them
            frame[name] = frame.get(name, default)
        if table == "custom_allreduce":
            frame = frame[frame["kernel_source"] == "vLLM_custom_graph"]
        frame = frame.drop_duplicates([name for name in frame.columns if name != "latency"]).reset_index(drop=True)
        yield from _by_family(table, path.parent.name, frame, mapping.readers(root)[path.stem])


def _by_family(table: str, version: str, frame: Any, reader: Any) -> Iterator[Data]:
    found: dict[Family, tuple[list[int], list[PublishedLatency]]] = {}
    for place, row in enumerate(frame.itertuples(index=False)):
        latency = reader.latency(row)
        if isinstance(latency, str):
            continue
        signature, point, kernel, variant = latency
        parts = parts_of(signature)
        if not parts:
            continue  # experts without a gate
        decode = point.batch is not None and point.batch.num_tokens == point.batch.num_reqs
        if decode != (table in ("generation_attention", "mla_generation")):
            continue  # prompts of one token: decodes to us, and few
        part = parts[-1] if decode else parts[0]
        places, rows = found.setdefault(part.family, ([], []))
        places.append(place)
        rows.append(PublishedLatency(signature, point, row.latency / 1e3, kernel, variant))
    for family, (places, rows) in found.items():
        # table_of gathers the rows of a signature: bring the package's rows into the same order.
        order: dict[Any, list[int]] = {}
        for place, row in zip(places, rows, strict=True):
            order.setdefault(row.signature, []).append(place)
        arrays = table_of(family, rows)
        ordered = frame.iloc[[place for each in order.values() for place in each]].reset_index(drop=True)
        assert np.allclose(ordered["latency"].to_numpy() / 1e3, arrays.latencies_s)
        yield Data(table, version, family, ordered, arrays)


def splits(arrays: Table) -> Iterator[tuple[str, Rows, Rows]]:
    """Name, rows to learn from and rows to test on; after each split, the same with a fifth to learn from."""
    random = np.random.default_rng(0)
    rows = random.permutation(len(arrays))
    test, learn = np.split(rows, [round(SHARE * len(rows))])
    yield "rows", np.sort(learn), np.sort(test)
    yield f"rows{A_FIFTH}", np.sort(learn[: len(learn) // FIFTH]), np.sort(test)
    if len(arrays.sizes) > 4:
        held = random.permutation(len(arrays.sizes))[: round(SHARE * len(arrays.sizes))]
        out = np.isin(arrays.groups, held)
        learn = random.permutation(np.flatnonzero(~out))
        yield "sizes", np.sort(learn), np.flatnonzero(out)
        yield f"sizes{A_FIFTH}", np.sort(learn[: len(learn) // FIFTH]), np.flatnonzero(out)


Learn = Callable[[Rows], Callable[[Rows], Array]]


def measured(method: Learn, data: Data, learn: Rows, test: Rows) -> Result:
    """A method that learns from some rows and predicts the latencies of others."""
    start = time.process_time()
    predict = method(learn)
    learnt = time.process_time()
    latencies_s = predict(test)
    done = time.process_time()
    errors = np.abs(latencies_s / data.arrays.latencies_s[test] - 1)
    return Result(errors, 1.0, learnt - start, len(test) / (done - learnt))


def across(data: Data, device: Device) -> Learn:
    """Our regressor across sizes, features included."""

    def learn(rows: Rows) -> Callable[[Rows], Array]:
        described = describe(data.family, data.arrays.columns, device)
        groups = np.unique(data.arrays.groups[rows], return_inverse=True)[1]
        learner = AcrossSizes.fit(
            described.matrix[rows],
            described.roofline_s[rows],
            data.arrays.latencies_s[rows],
            groups,
            described.num_sizes,
        )

        def predict(asked: Rows) -> Array:
            columns = {name: values[asked] for name, values in data.arrays.columns.items()}
            of = describe(data.family, columns, device)
            return learner.predict(of.matrix, of.roofline_s)[0]

        return predict

    return learn


def forest(data: Data) -> Learn:
    """A random forest on the sizes and request values as they are, of log latencies."""
    from sklearn.ensemble import RandomForestRegressor

    matrix = np.column_stack(list(data.arrays.columns.values()))

    def learn(rows: Rows) -> Callable[[Rows], Array]:
        model = RandomForestRegressor(n_estimators=100, random_state=0, n_jobs=1)
        model.fit(matrix[rows], np.log(data.arrays.latencies_s[rows]))
        return lambda asked: np.asarray(np.exp(model.predict(matrix[asked])))

    return learn


def interpolated(data: Data, system: str, learn: Rows, test: Rows) -> Result:
    """The package's answer from the same rows; its estimate where it interpolates nothing."""
    asked = data.frame.iloc[test]
    where = (data.frame.iloc[learn], asked.drop(columns="latency"), system, data.version)
    start = time.process_time()
    latency_ms = predict_held_out(data.table, *where)
    done = time.process_time()
    lacking = np.isnan(latency_ms)
    if lacking.any():
        smoothed = "generation_attention_smoothed" if data.table == "generation_attention" else data.table
        latency_ms[lacking] = predict_held_out(smoothed, *where, mode="HYBRID")[lacking]
    known = ~np.isnan(latency_ms)
    errors = np.abs(latency_ms[known] / asked["latency"].to_numpy()[known] - 1)
    return Result(errors, float(known.mean()), None, len(test) / (done - start))


def write(path: Path, title: str, about: str | None, text: str) -> None:
    """The printed tables as a file, below what they are about."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"# {title}\n\n{(about or '').strip()}\n\n```\n{text}\n```\n")


if __name__ == "__main__":
    sys.exit(main())
