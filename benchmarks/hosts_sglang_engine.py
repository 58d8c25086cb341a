"""One run of SGLang Simulator, in an interpreter that has SGLang: asked on standard input, answered in a file.

`benchmarks/hosts_sglang.py` starts it. The engine is the simulator's own, as its benchmark's runner makes it; what is
ours is the predictor, and where it is asked for a clock that leaves out what this machine's processor takes.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from types import SimpleNamespace
from typing import Any

from pytest_dooly.hosts.sglang.predictor import run_scheduler_process


def without_processor(*args: Any, **kwargs: Any) -> Any:
    """The scheduler's process, whose simulated clock is moved on by predicted steps alone."""
    from sglang_simulator.simulation.sglang import scheduler

    # Its clock adds the seconds that the scheduler itself takes, by `time.time`; to no other module.
    scheduler.time = SimpleNamespace(**{**vars(time), "time": lambda: 1.0})
    return run_scheduler_process(*args, **kwargs)


def main() -> None:
    """Starts the engine, sends all requests, has the figures written."""
    asked: dict[str, Any] = json.load(sys.stdin)
    os.environ |= asked["environment"]
    from sglang_simulator.compat import apply_simulator_server_args
    from sglang_simulator.simulation.sglang.engine import SGLangSimulationEngine

    process = without_processor if asked["without_processor"] else run_scheduler_process
    kind = type("Engine", (SGLangSimulationEngine,), {"run_scheduler_process_func": staticmethod(process)})
    options = dict(asked["options"])
    apply_simulator_server_args(options)
    engine = kind(**options)
    begin_s = time.perf_counter()

    async def send() -> None:
        await engine.tokenizer_manager.start_profile()  # forgets what there was
        sent = []
        for request in asked["requests"]:
            simulation = {"total_request": len(asked["requests"]), "created_time": request["arrival_s"]}
            sampling = {"ignore_eos": True, "max_new_tokens": request["output_len"]}
            sampling["custom_params"] = {"simulation": simulation}
            sent.append(engine.async_generate(input_ids=request["tokens"], sampling_params=sampling))
        await asyncio.gather(*sent)
        await engine.tokenizer_manager.start_profile()  # writes them

    engine.loop.run_until_complete(send())
    json.dump({"wall_s": time.perf_counter() - begin_s}, sys.stdout)
    sys.stdout.flush()
    engine.shutdown()


if __name__ == "__main__":
    main()
