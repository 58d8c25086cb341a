"""SGLang Simulator's server with our predictor known to its scheduler.

Run as `python -m pytest_dooly.hosts.sglang`, with the simulator and its SGLang on PYTHONPATH and its own options.
"""

from __future__ import annotations

import runpy
import sys

from pytest_dooly.errors import DoolyError

__all__ = ["main"]


def main() -> None:
    """Runs the server; what goes wrong on our side is one message and exit status 1."""
    try:
        from pytest_dooly.hosts.sglang.predictor import run_scheduler_process
    except DoolyError as error:
        sys.exit(f"error: {error}")
    from sglang_simulator.simulation.sglang import hook_bootstrap

    hook_bootstrap.run_simulator_scheduler_process = run_scheduler_process
    runpy.run_module("sglang_simulator.simulation.sglang.launch_server", run_name="__main__")


if __name__ == "__main__":
    main()
