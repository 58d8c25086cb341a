"""`make bench-search`: 256 ways to serve llama3-70b under an SLO, with what the search takes on this machine.

The search is a process of its own, from an empty table of outcomes; then it is asked for again, which takes what is
kept. Latencies are those of public tables, imported first where the latency DB lacks them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.study.redundancy import import_tables
from pytest_dooly.core.device import device_named
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.published.grounds import Grounds

DEVICES = {"h100_sxm": 2.5, "h200_sxm": 3.5, "b200_sxm": 5.0, "a100_sxm": 1.6}
"""With a price for each GPU and hour, which are examples."""

ASKED = (
    *("search", "llama3-70b", "--device", *DEVICES, "--tp", "1", "2", "4", "8"),
    *("--max-num-seqs", "64", "128", "256", "1024", "--max-num-tokens", "2048", "8192"),
    *("--kv-cache-dtype", "auto", "fp8", "--prompt", "1024", "--output", "256"),
    *(
        "--slo",
        "ttft_p99:500ms,tpot_p90:40ms",
        "--price",
        ",".join(f"{name}={price}" for name, price in DEVICES.items()),
    ),
)


def prepared(about: str | None, *, requests: str) -> argparse.Namespace:
    """What the command line asks for, with public tables in the latency DB.

    Args:
        about: the benchmark, for `--help`.
        requests: of the traffic, where it does not say.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, default=Path("reports/search"), metavar="DIR")
    parser.add_argument("--db", type=Path, default=Path(".dooly/search.db"), help="latency DB (.dooly/search.db)")
    parser.add_argument("--requests", default=requests, help=f"of the traffic ({requests})")
    asked = parser.parse_args()
    with LatencyDB.open(asked.db) as db:
        import_tables(db, [name for name in DEVICES if Grounds(db, device_named(name)).empty])
    return asked


def main() -> None:
    """Searches twice and writes what came of it."""
    asked = prepared(__doc__, requests="1000")
    arguments = (*ASKED, "--requests", asked.requests)
    asked.write.mkdir(parents=True, exist_ok=True)
    begin_s = time.perf_counter()
    table = searched(asked.db, *arguments, "--png", str(asked.write / "search.png"))
    first_s, first_cpu_s = time.perf_counter() - begin_s, sum(os.times()[2:4])
    begin_s = time.perf_counter()
    document = json.loads(searched(asked.db, *arguments, "--json"))
    again_s = time.perf_counter() - begin_s
    best = searched(asked.db, *arguments, "--explain", "1")
    simulated = [each["outcome"] for each in document["candidates"]] + document["missed"]
    number, cores = document["grid"], len(os.sched_getaffinity(0))
    rates = sum(each["simulations"] for each in simulated)
    lines = [
        "# A search",
        "",
        f"`make bench-search` on {cores} cores that others use too: {first_s:.0f} s for {number} candidates "
        f"({first_cpu_s:.0f} s of processor time, imports included), {number / first_s:.2f} a second; "
        f"{len(simulated)} of them simulated at {rates:,} rates of {asked.requests} requests, "
        f"{len(document['excluded'])} excluded before. The same again, from what is kept: {again_s:.0f} s. Prices are "
        "examples.",
        "",
        *("```", f"dooly {' '.join(arguments)}", "```", "", "```", table.rstrip(), "```", ""),
        *("`--explain 1`:", "", "```", best.rstrip(), "```", ""),
    ]
    (asked.write / "search.md").write_text("\n".join(lines), encoding="utf-8")


def searched(db: Path, *arguments: str) -> str:
    """What the command prints."""
    command = [sys.executable, "-m", "pytest_dooly.cli", *arguments, "--db", str(db)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
