"""`make bench`: one row a shipped model: operations, unique signatures, seconds to trace after imports, peak memory."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pytest_dooly.core.configuration import ServingOptions, aliases, resolve


def measure(alias: str) -> dict[str, float]:
    """Traces one model in this process; every import and the first use of the engine come before."""
    from pytest_dooly.core.signature import model_operations
    from pytest_dooly.engine import load_engine
    from pytest_dooly.tracing.trace import trace

    engine = load_engine("vllm")
    options = ServingOptions(device="cpu")
    trace(engine, resolve("llama-tiny", options))
    start = time.perf_counter()
    traced, _ = trace(engine, resolve(alias, options))
    operations = model_operations(traced)
    seconds = time.perf_counter() - start
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "operations": len(traced.operations),
        "signatures": len(operations),
        "trace_s": seconds,
        "peak_bytes": peak_bytes,
    }


def main() -> None:
    """Each model in a process of its own, so that a peak is its own."""
    if len(sys.argv) > 1:
        Path(sys.argv[2]).write_text(json.dumps(measure(sys.argv[1])), encoding="utf-8")
        return
    out = sys.stdout
    out.write(f"{'model':18} {'operations':>10} {'signatures':>10} {'seconds':>8} {'peak GB':>8}\n")
    for alias in aliases():
        with tempfile.TemporaryDirectory() as folder:
            answer = Path(folder) / "row.json"
            command = [sys.executable, "-m", "benchmarks.tracing", alias, str(answer)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            row = json.loads(answer.read_text(encoding="utf-8"))
        out.write(
            f"{alias:18} {row['operations']:10} {row['signatures']:10} {row['trace_s']:8.2f} "
            f"{row['peak_bytes'] / 1e9:8.2f}\n"
        )
        out.flush()


if __name__ == "__main__":
    main()
