"""A virtual clock: requests arrive, a scheduler makes steps of them, a device takes its time over each.

How vLLM's engine goes on (`EngineCore.step_with_batch_queue`, 0.14 and later): with asynchronous scheduling the next
step is made as soon as one begins, so that two are under way; a request that comes in meanwhile joins the one after,
and what a step has generated is handed on while the next one runs.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pytest_dooly.core.replay import tpot_s
from pytest_dooly.core.traffic import Traffic
from pytest_dooly.scheduling.scheduler import Scheduled, Scheduler

__all__ = ["Server", "Simulated", "StepLatency", "StepRecord", "run"]

Array = npt.NDArray[np.float64]

_WAY_IN = 0.95
"""Share of what a server adds to a request, besides tokenising it, that it takes to read it and hand it on.

By that a server keeps up with 163 requests of 128 tokens a second where it adds 6.1 ms and 2.5 µs a token. Published
runs that sent a thousand of them at once had them all served after 4.2 s and more (239 a second: gpt-oss-120b on two
H100s, vLLM 0.10.2; 161: Qwen3-235B-A22B FP8 on four, 0.11.0, to which the share was fitted), and had their first tokens
after 1 to 17 s, which no single figure is right for (`make arena`).
"""

_READ = 0.5
"""Share of taking a request in that a server does for all that have come together before it hands on the first of them.

Its one thread goes round: it reads all that has come before it goes on with any. Of 64, 256 and 1,000 requests sent at
once vLLM 0.32's server handed all but one or two to the engine in the last 40 to 50 % of the time that it took over all
of them (1.1 to 1.9 ms each; `make bench-intake` on two cores of an AMD EPYC of 2025, and fitted to no run).
"""

_STEPS_BETWEEN = 1000
"""Steps from one report of progress to the next."""


class StepLatency(Protocol):
    """What takes its time over a step: a table, a predictor, or an engine that runs it."""

    def step_s(self, step: Scheduled) -> float:
        """Seconds that the step takes."""


@dataclass(frozen=True)
class Server:
    """What lies between the client and the engine.

    Attributes:
        request_s: seconds from a request's sending to its arrival at the engine.
        token_s: seconds from a step's end to the client's receipt of its tokens.
        async_scheduling: whether two steps are under way at once.
        admission_s: seconds that the engine itself is kept by each request before its next step, where client and
            engine are one process; the request's clock begins with its own.
        in_turn: whether a process of the server takes requests in one after the other, each for as long as it takes;
            those sent at once it reads before it hands on any.
        tokenise_s: seconds that each token of a prompt takes besides `request_s`, before it arrives at the engine.
        processes: of the server, among which requests are dealt: as many as there are engines, as `vllm serve` has it.
    """

    request_s: float = 0.0
    token_s: float = 0.0
    async_scheduling: bool = True
    admission_s: float = 0.0
    in_turn: bool = False
    tokenise_s: float = 0.0
    processes: int = 1

    @classmethod
    def adding(cls, server_s: float, *, async_scheduling: bool, tokenise_s: float = 0.0, processes: int = 1) -> Server:
        """A server whose processes take requests in, one after the other, for most of what it adds to each.

        Args:
            server_s: that server and client add to a request.
            async_scheduling: as of a Server.
            tokenise_s: likewise.
            processes: likewise.
        """
        request_s = _WAY_IN * server_s
        added_s = request_s, server_s - request_s
        return cls(*added_s, async_scheduling, in_turn=True, tokenise_s=tokenise_s, processes=processes)

    def taking_in_s(self, prompt_len: int) -> float:
        """Seconds from a request's sending to its arrival at the engine, where none is before it."""
        return self.request_s + self.tokenise_s * prompt_len


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step as it ran.

    Attributes:
        begin_s: when the device began it.
        latency_s: how long it took.
        num_tokens: of the step.
        num_decodes: requests that got one more token.
        num_running: requests admitted.
        num_waiting: requests that it left waiting.
        used_blocks: KV blocks held.
        preempted: requests thrown out.
        engine: which of the replicas ran it, from 0.
    """

    begin_s: float
    latency_s: float
    num_tokens: int
    num_decodes: int
    num_running: int
    num_waiting: int
    used_blocks: int
    preempted: int
    engine: int = 0


@dataclass(frozen=True)
class Simulated:
    """Every request of a traffic, by its place; times in seconds since the beginning.

    Attributes:
        traffic: what was asked.
        sent_s: when the client sent it, shape (requests,).
        scheduled_s: when the engine first made a step with it.
        first_s: when the client had the first token.
        last_s: when it had the last token.
        cached_tokens: of the prompt, found in the prefix cache.
        preemptions: how often it was thrown out.
        steps: as they ran.
        stage_decodes: of each step, how many of its decodes belong to each stage; empty where there is one stage.
        arrived_s: when each request was at the engine; None where nobody has seen it.
    """

    traffic: Traffic
    sent_s: Array
    scheduled_s: Array
    first_s: Array
    last_s: Array
    cached_tokens: npt.NDArray[np.int64]
    preemptions: npt.NDArray[np.int64]
    steps: Sequence[StepRecord]
    stage_decodes: Sequence[Sequence[int]] = ()
    arrived_s: Array | None = None

    @property
    def ttft_s(self) -> Array:
        """Time to first token of each request."""
        return self.first_s - self.sent_s

    @property
    def latency_s(self) -> Array:
        """End-to-end latency of each request."""
        return self.last_s - self.sent_s

    @property
    def tpot_s(self) -> Array:
        """Time per output token of each request; not a number where it generates one."""
        return tpot_s(self.traffic, self.last_s - self.first_s)

    def columns(self) -> dict[str, Sequence[float] | npt.NDArray[np.generic]]:
        """Every request as a table: columns of shape (requests,) by name, times in seconds."""
        requests = self.traffic.requests
        return {
            "stage": [request.stage for request in requests],
            "sent_s": self.sent_s,
            "scheduled_s": self.scheduled_s,
            "first_token_s": self.first_s,
            "last_token_s": self.last_s,
            "prompt_len": [request.prompt_len for request in requests],
            "output_len": [request.output_len for request in requests],
            "ttft_s": self.ttft_s,
            "tpot_s": self.tpot_s,
            "e2el_s": self.latency_s,
            "cached_tokens": self.cached_tokens,
            "preemptions": self.preemptions,
        }


def run(
    traffic: Traffic,
    scheduler: Scheduler,
    times: StepLatency,
    server: Server | None = None,
    *,
    engine: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> Simulated:
    """Serves all requests.

    Args:
        traffic: that arrives.
        scheduler: idle.
        times: of the steps.
        server: around the engine; nothing is lost there where it is None.
        engine: its number among replicas.
        progress: called now and then with the number of requests that have ended.

    Raises:
        ConfigurationError: the scheduler refuses a request.
    """
    return _Run(traffic, scheduler, times, server or Server(), engine=engine, progress=progress).result()


class _Run:
    """One simulation under way."""

    def __init__(
        self,
        traffic: Traffic,
        scheduler: Scheduler,
        times: StepLatency,
        server: Server,
        *,
        engine: int,
        progress: Callable[[int], None],
    ) -> None:
        self._engine, self._progress, self._ended = engine, progress, 0
        self._num_stages, self._stage_decodes = traffic.num_stages, list[list[int]]()
        self._traffic, self._scheduler, self._times, self._server = traffic, scheduler, times, server
        number = len(traffic.requests)
        self._sent_s, self._scheduled_s, self._first_s, self._last_s = (np.full(number, np.nan) for _ in range(4))
        self._arrived_s = np.full(number, np.nan)
        self._preemptions = np.zeros(number, dtype=np.int64)
        self._steps: list[StepRecord] = []
        self._turns: dict[int, list[int]] = {}
        self._due: list[tuple[float, int]] = []  # at the client, by time
        for place, request in enumerate(traffic.requests):
            if request.follows is None:
                self._due.append((request.arrival_s, place))
            else:
                self._turns.setdefault(request.follows, []).append(place)
        heapq.heapify(self._due)
        self._seats = traffic.concurrency
        self._freed_s: deque[float] = deque()
        self._arriving: deque[tuple[float, int]] = deque()  # on the way to the engine
        self._unscheduled: set[int] = set()  # never in a step
        self._unserved: set[int] = set()  # without a first token
        self._under_way: deque[tuple[Scheduled, float]] = deque()
        self._idle_from_s = 0.0
        # When each process of the server has handed on what it was sent so far, and the next to be dealt one.
        self._taken_in_s, self._first_process = [0.0] * server.processes, 0

    def result(self) -> Simulated:
        now_s, most = 0.0, 2 if self._server.async_scheduling else 1
        while True:
            self._send(now_s)
            self._receive(now_s)
            if len(self._under_way) < most:
                step = self._scheduler.schedule()
                if step is not None:
                    self._begin(step, now_s)
                    continue
            if self._under_way:
                now_s = self._finish()
            elif self._arriving:
                now_s = max(now_s, self._arriving[0][0])
            elif self._due:
                now_s = max(now_s, self._next_s())
            else:
                break
        cached = [self._scheduler.cached_tokens(place) for place in range(len(self._sent_s))]
        return Simulated(
            self._traffic,
            self._sent_s,
            self._scheduled_s,
            self._first_s,
            self._last_s,
            np.array(cached, dtype=np.int64),
            self._preemptions,
            self._steps,
            self._stage_decodes,
            self._arrived_s,
        )

    def _send(self, now_s: float) -> None:
        """Sends what is due at the client, as far as it may have more under way."""
        together: list[int] = []  # sent at one time
        while self._due and self._due[0][0] <= now_s:
            at_s, place = self._due[0]
            if self._seats is not None:
                if self._seats == 0 and not (self._freed_s and self._freed_s[0] <= now_s):
                    break
                if self._seats:
                    self._seats -= 1
                else:
                    at_s = max(at_s, self._freed_s.popleft())
            heapq.heappop(self._due)
            if together and at_s != self._sent_s[together[0]]:
                self._take_in(together)
                together = []
            self._sent_s[place] = at_s
            together.append(place)
        if together:
            self._take_in(together)

    def _take_in(self, places: Sequence[int]) -> None:
        """Puts requests that were sent at once on their way to the engine."""
        sent_s, server = float(self._sent_s[places[0]]), self._server
        taking_s = [server.taking_in_s(self._traffic.requests[place].prompt_len) for place in places]
        if not server.in_turn:
            self._arriving.extend((sent_s + each_s, place) for each_s, place in zip(taking_s, places, strict=True))
            return
        number = len(self._taken_in_s)
        for first in range(min(number, len(places))):
            process = (self._first_process + first) % number
            at_s = max(sent_s, self._taken_in_s[process]) + _READ * sum(taking_s[first::number])
            for each_s, place in zip(taking_s[first::number], places[first::number], strict=True):
                at_s += (1 - _READ) * each_s
                self._arriving.append((at_s, place))
            self._taken_in_s[process] = at_s
        self._first_process = (self._first_process + len(places)) % number
        if number > 1:
            self._arriving = deque(sorted(self._arriving))

    def _next_s(self) -> float:
        """When the client sends again, with nothing under way."""
        at_s = self._due[0][0]
        return at_s if self._seats or self._seats is None else max(at_s, self._freed_s[0])

    def _receive(self, now_s: float) -> None:
        while self._arriving and self._arriving[0][0] <= now_s:
            arrived_s, place = self._arriving.popleft()
            self._arrived_s[place] = arrived_s
            if self._server.admission_s:
                self._admit(place)
            self._scheduler.add(place, self._traffic.requests[place])
            self._unscheduled.add(place)
            self._unserved.add(place)

    def _admit(self, place: int) -> None:
        """Keeps the engine busy; a client that sends in turn with it sends that much later."""
        begin_s = max(self._idle_from_s, self._sent_s[place])
        if self._seats is not None:
            self._sent_s[place] = begin_s
        self._idle_from_s = begin_s + self._server.admission_s

    def _begin(self, step: Scheduled, now_s: float) -> None:
        begin_s = max(now_s, self._idle_from_s)
        latency_s = self._times.step_s(step)
        self._idle_from_s = begin_s + latency_s
        self._under_way.append((step, self._idle_from_s))
        if self._num_stages > 1:
            self._stage_decodes.append(self._decodes_by_stage(step))
        if self._unscheduled:
            for place in self._unscheduled.intersection(step.others):
                # A client that sends in turn with the engine may send after that.
                self._scheduled_s[place] = max(now_s, self._sent_s[place])
                self._unscheduled.discard(place)
        for place in step.preempted:
            self._preemptions[place] += 1
        scheduler = self._scheduler
        self._steps.append(
            StepRecord(
                begin_s,
                latency_s,
                step.num_tokens,
                step.num_decodes,
                scheduler.num_running,
                scheduler.num_waiting,
                scheduler.used_blocks,
                len(step.preempted),
                self._engine,
            )
        )

    def _decodes_by_stage(self, step: Scheduled) -> list[int]:
        counts, requests = [0] * self._num_stages, self._traffic.requests
        for place, query_len, context_len in zip(step.requests, step.query_lens, step.context_lens, strict=True):
            if query_len == 1 and context_len:
                counts[requests[place].stage] += 1
        return counts

    def _finish(self) -> float:
        """Ends the step that began first; returns when that is."""
        step, end_s = self._under_way.popleft()
        at_client_s = end_s + self._server.token_s
        for place in self._unserved.intersection(step.others_sampling):
            self._first_s[place] = at_client_s
            self._unserved.discard(place)
        if not len(self._steps) % _STEPS_BETWEEN:
            self._progress(self._ended)
        for place in self._scheduler.update(step):
            self._ended += 1
            self._last_s[place] = at_client_s
            if self._traffic.concurrency is not None:
                self._freed_s.append(at_client_s)
            for turn in self._turns.get(place, ()):
                heapq.heappush(self._due, (at_client_s + self._traffic.requests[turn].arrival_s, turn))
        return end_s
