"""`vllm serve` on loopback with random weights, and vLLM's own client beside it; see `TrafficServer`."""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import torch

from pytest_dooly.core.configuration import ModelConfiguration
from pytest_dooly.core.replay import Replay
from pytest_dooly.core.traffic import Traffic
from pytest_dooly.engine.vllm.arguments import engine_arguments, engine_config, limits_of
from pytest_dooly.engine.vllm.client import CLIENT_ENVIRONMENT, client_arguments, read_result, trace_lines
from pytest_dooly.engine.vllm.processes import LOOPBACK, OwnProcess, free_port
from pytest_dooly.engine.vllm.tokenizer import write_tokenizer
from pytest_dooly.errors import EngineError
from pytest_dooly.scheduling.scheduler import SchedulerOptions, room_for_all

__all__ = ["VllmServer", "flags"]

_START_S, _LOOK_S = 900.0, 0.5
"""Seconds that the server has to come up, and between two looks whether it has."""

_COMMAND = (sys.executable, "-m", "pytest_dooly.engine.vllm.command")

_OFFLINE = {"HF_HUB_OFFLINE": "1"}

_NAME = "dooly"
"""The model's, as clients ask for it."""

_HITS, _ENDED = "vllm:prefix_cache_hits_total", "vllm:request_prefill_time_seconds_count"
_TO_FIRST_TOKEN_S = ("vllm:request_queue_time_seconds_sum", "vllm:request_prefill_time_seconds_sum")
"""Of the server: tokens found in the prefix cache, requests that ended, seconds that these took in the engine."""

_COUNTER = re.compile(r"^([\w:]+)\{[^}]*\} (\S+)$", flags=re.M)

# A proxy that the environment names is not asked for what is here.
_HERE = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class VllmServer:
    """As profiled: eager, one step after the other, as many threads, room for all requests.

    But for what a server adds: prefix caching, a tokenizer, and HTTP in a process before the engine's. The model runs
    in the engine's own process, by the variable that `VllmEngine` sets and the server inherits; on a CPU vLLM would
    give it one more, which the engine waits for in a busy loop.
    """

    def __init__(self, configuration: ModelConfiguration, *, port: int = 0) -> None:
        """Finds out how it will schedule; starts nothing.

        Args:
            configuration: what is served.
            port: on loopback; 0 for any that is free.

        Raises:
            ConfigurationError: vLLM refuses the configuration, or the port is taken.
        """
        config = engine_config(configuration)
        limits, block_size = limits_of(config), int(config.cache_config.block_size)
        self.options = SchedulerOptions(
            limits, room_for_all(limits, block_size), block_size, prefix_caching=True, async_scheduling=False
        )
        self._configuration = configuration
        self._vocab_size = int(config.model_config.get_vocab_size())
        self._port = free_port(port)
        self._replays = 0

    def __enter__(self) -> Self:
        """Starts server and client; returns when requests are answered.

        Raises:
            EngineError: the server does not come up; shows the end of its log.
        """
        with ExitStack() as stack:
            self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dooly-")))
            write_tokenizer(self._folder, self._vocab_size)
            # As many threads as latencies were measured with: vLLM would keep a core for itself.
            environment = {"OMP_NUM_THREADS": str(torch.get_num_threads()), **_OFFLINE}
            self._server = OwnProcess(
                [*_COMMAND, "serve", *self._arguments()], self._folder / "server.log", environment
            )
            stack.callback(self._server.end)
            self._await_health()
            self._client = OwnProcess(
                [*_COMMAND, "client"], self._folder / "client.log", {**CLIENT_ENVIRONMENT, **_OFFLINE}
            )
            stack.callback(self._client.end)
            self._running = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends both, with all that they have started."""
        self._running.close()

    def replay(self, traffic: Traffic) -> Replay:
        """Sends every request at its time; see `TrafficServer.replay`."""
        self._replays += 1
        trace, result = self._folder / "trace.jsonl", self._folder / "result.json"
        trace.write_text("\n".join(trace_lines(traffic, self._replays)), encoding="utf-8")
        arguments = client_arguments(
            traffic,
            base_url=self._url,
            model=_NAME,
            tokenizer=str(self._folder),
            trace=str(trace),
            result=(str(self._folder), result.name),
        )
        before = self._counters()
        answer = self._client.ask(json.dumps(arguments))
        self._check(answer)
        after = self._counters()
        ended, *spent_s = (after.get(name, 0.0) - before.get(name, 0.0) for name in (_ENDED, *_TO_FIRST_TOKEN_S))
        replay = read_result(
            traffic,
            json.loads(result.read_text(encoding="utf-8")),
            cached_tokens=int(after.get(_HITS, 0.0) - before.get(_HITS, 0.0)),
            engine_ttft_s=sum(spent_s) / ended if ended else None,
        )
        result.unlink()
        if len(replay.errors) == len(traffic.requests):
            raise EngineError(f"all {len(traffic.requests)} requests to vLLM's server failed: {replay.errors[0]}")
        return replay

    @property
    def _url(self) -> str:
        return f"http://{LOOPBACK}:{self._port}"

    def _arguments(self) -> list[str]:
        """Arguments of `vllm serve`."""
        arguments = engine_arguments(self._configuration)
        model = arguments.pop("model")
        arguments |= {
            "skip_tokenizer_init": False,
            "enable_prefix_caching": True,
            "tokenizer": str(self._folder),
            "served_model_name": _NAME,
            "host": LOOPBACK,
            "port": self._port,
            "generation_config": "vllm",
            "block_size": self.options.block_size,
            # As where it is profiled, the number of blocks decides.
            "kv_cache_memory_bytes": 2**30,
            "num_gpu_blocks_override": self.options.num_blocks,
            "disable_uvicorn_access_log": True,
        }
        return [model, *flags(arguments)]

    def _await_health(self) -> None:
        until_s = time.monotonic() + _START_S
        while time.monotonic() < until_s:
            if not self._server.alive:
                raise EngineError(
                    f"vLLM's server has ended before it was up; its log ends:\n{self._server.last_lines()}"
                )
            try:
                with _HERE.open(f"{self._url}/health", timeout=5):
                    return
            except (urllib.error.URLError, TimeoutError, ConnectionError):
                time.sleep(_LOOK_S)
        raise EngineError(f"vLLM's server is not up after {_START_S:g} s; its log ends:\n{self._server.last_lines()}")

    def _check(self, answer: str) -> None:
        """Raises what has gone wrong in a replay."""
        if not self._server.alive:
            raise EngineError(f"vLLM's server has died; its log ends:\n{self._server.last_lines()}")
        if not answer:
            raise EngineError(f"vLLM's client has died; its log ends:\n{self._client.last_lines()}")
        if answer != "ok":
            raise EngineError(f"vLLM's client failed: {answer}")

    def _counters(self) -> dict[str, float]:
        """What the server has counted since it came up, by name."""
        try:
            with _HERE.open(f"{self._url}/metrics", timeout=60) as answer:
                text = answer.read().decode()
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            self._check("ok")
            raise EngineError(f"vLLM's server does not answer any more: {error}") from error
        return {name: float(value) for name, value in _COUNTER.findall(text)}


def flags(arguments: dict[str, Any]) -> list[str]:
    """Arguments of `vllm.LLM` as options of `vllm serve`."""
    texts: list[str] = []
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            texts.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            texts += [f"--{flag}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return texts
