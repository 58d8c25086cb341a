"""VLLM's commands, whose server notes when it hands requests to the engine.

Into the file that DOOLY_INTAKE names, a line for each: seconds of the epoch. Started by `benchmarks.intake`.
"""

from __future__ import annotations

import os
import runpy
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

COMMAND = "pytest_dooly.engine.vllm.command"


def note_times(path: Path) -> None:
    """Has every request that goes to an engine noted in a file."""
    from vllm.v1.engine.async_llm import AsyncLLM

    handed_on = AsyncLLM.generate

    async def generate(self: Any, *arguments: Any, **options: Any) -> AsyncIterator[Any]:
        with path.open("a") as file:
            file.write(f"{time.time()}\n")
        async for output in handed_on(self, *arguments, **options):
            yield output

    AsyncLLM.generate = generate


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        note_times(Path(os.environ["DOOLY_INTAKE"]))
    runpy.run_module(COMMAND, run_name="__main__")
