"""What aiconfigurator itself estimates of the published runs, in an environment of its own: its pins differ from ours.

    pip install aiconfigurator==0.12.0 msgspec, somewhere else
    PYTHONPATH=. ELSEWHERE/bin/python -m benchmarks.arena.theirs

writes `estimates.csv` beside the runs: one row for each way to serve and load, for closed loops alone, since batches of
one size are all that it knows. Its mode is `agg` with the defaults; lengths are the means of what the client drew.
"""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.arena.runs import PublishedRun, read_runs

ESTIMATES = Path(__file__).with_name("estimates.csv")

_KEY = ("model", "device", "ranks", "experts", "prompt_len", "output_len", "shortest", "concurrency")
_FIGURES = ("ttft_ms", "tpot_ms", "why_not")


def estimates() -> Mapping[tuple[str, ...], tuple[float, float]]:
    """TTFT and TPOT in seconds of every run that it can estimate, by `key_of`."""
    with ESTIMATES.open(encoding="utf-8") as file:
        return {
            tuple(row[name] for name in _KEY): (float(row["ttft_ms"]) / 1e3, float(row["tpot_ms"]) / 1e3)
            for row in csv.DictReader(file)
            if not row["why_not"]
        }


def key_of(run: PublishedRun) -> tuple[str, ...]:
    """What decides over its estimate."""
    return tuple(str(getattr(run, name)) for name in _KEY)


def main() -> None:
    """Estimates every run that is a closed loop, and writes the file."""
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder, ESTIMATES.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*_KEY, *_FIGURES])
        for run in _different():
            writer.writerow([*key_of(run), *_estimated(run, Path(folder))])
            sys.stderr.write(".")


def _different() -> Iterator[PublishedRun]:
    """Closed loops, each way to serve and load once."""
    from benchmarks.arena.models import document_of

    seen = set()
    for run, _, _ in read_runs():
        if run is None or run.concurrency is None or run.engines > 1 or run.low_trust or run.roughly:
            continue
        if key_of(run) in seen:
            continue
        seen.add(key_of(run))
        if document_of(run.model) is not None:
            yield run


def _estimated(run: PublishedRun, folder: Path) -> tuple[str, str, str]:
    """Its TTFT and TPOT, or why it has none."""
    from benchmarks.arena.models import LIKE, written

    why_not = ""
    for model in (LIKE.get(run.model, run.model), str(written(run.model, folder))):
        try:
            found_ms = _estimate(model, run)
        except Exception as error:  # noqa: BLE001 - whatever it does not know
            why_not = " ".join(str(error).split())[:160]
        else:
            return f"{found_ms[0]:.6g}", f"{found_ms[1]:.6g}", ""
    return "", "", why_not


def _estimate(model: str, run: PublishedRun) -> tuple[float, float]:
    """TTFT and TPOT in ms."""
    from aiconfigurator.cli.api import cli_estimate  # type: ignore[import-not-found,unused-ignore]

    mean = (1 + run.shortest) / 2
    with contextlib.redirect_stdout(io.StringIO()):
        found = cli_estimate(
            model,
            run.device,
            backend_name="vllm",
            backend_version="current",
            isl=round(mean * run.prompt_len),
            osl=max(2, round(mean * run.output_len)),
            batch_size=run.concurrency,
            tp_size=run.ranks,
            moe_tp_size=run.ranks // run.experts,
            moe_ep_size=run.experts,
        )
    return found.ttft, found.tpot


if __name__ == "__main__":
    main()
