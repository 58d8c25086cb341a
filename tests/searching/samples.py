"""A small model on estimates alone: a search over it takes tenths of seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pytest_dooly.core.batch import Limits
from pytest_dooly.core.configuration import ServingOptions
from pytest_dooly.core.signature import ServedModel
from pytest_dooly.core.traffic import Traffic, TrafficRequest
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.scheduling.clock import Simulated
from pytest_dooly.searching.candidate import Candidate, Grid, Trial
from pytest_dooly.searching.evaluate import Question
from pytest_dooly.searching.objective import Objective
from pytest_dooly.searching.outcome import Outcome
from pytest_dooly.searching.study import Traced, trials_of
from tests.samples import served, uses
from tests.traced import LOGITS, attention, linear

MODEL = served(
    uses(linear(6144, 4096), 32),
    uses(attention(32, 8, 128), 32),
    uses(linear(28672, 4096), 32),
    uses(linear(4096, 14336), 32),
    uses(LOGITS),
    limits=Limits(max_num_tokens=2048, max_num_seqs=64, max_model_len=2048),
)
"""About Llama-3-8B: 7.5e9 parameters in bf16."""

LARGE = served(*(uses(o.signature, 12 * o.multiplicity) for o in MODEL.operations), name="large", limits=MODEL.limits)

SLO = Objective.parse("ttft_p95:100ms,tpot_p90:15ms")


def traffic(number: int = 150, prompt_len: int = 512, output_len: int = 16, *, seed: int = 0) -> Traffic:
    """Poisson arrivals at one request a second."""
    gaps = np.random.default_rng(seed).exponential(size=number).cumsum()
    return Traffic([TrafficRequest(float(at), prompt_len, output_len) for at in gaps])


def question(objective: Objective = SLO, **changes: object) -> Question:
    return Question(changes.pop("traffic", None) or traffic(), objective, **changes)  # type: ignore[arg-type]


def grid(devices: Sequence[str] = ("h200_sxm",), **axes: Sequence[object]) -> Grid:
    return Grid(["small"], devices, **axes)  # type: ignore[arg-type]


def trials(
    db: Path, asked: Question, of: Grid, model: ServedModel = MODEL, options: ServingOptions | None = None
) -> list[Trial]:
    with LatencyDB.open(db) as opened:
        return trials_of(of, [Traced("small", options or ServingOptions(), model)], asked, opened)


def candidate(device: str = "h200_sxm", ranks: int = 1, seqs: int = 64, tokens: int = 2048) -> Candidate:
    return Candidate("small", device, ranks, 1, None, seqs, tokens, prefix_caching=True)


def outcome(rate: float = 4.0, tpot_s: float = 0.02, *, of: Candidate | None = None, **changes: object) -> Outcome:
    figures: dict[str, object] = {"low": rate / 1.2, "high": rate * 1.2, "ratios": (0.9, 0.8), "ttft_s": 0.1}
    figures |= {"tokens": 250.0, "output_tokens": 50.0} | changes
    return Outcome(of or candidate(), rate=rate, tpot_s=tpot_s, **figures)  # type: ignore[arg-type]


def simulated(ttft_s: Sequence[float], tpot_s: Sequence[float], output_len: int = 11, gap_s: float = 1.0) -> Simulated:
    """Requests with these latencies, one after the other."""
    number = len(ttft_s)
    sent_s = gap_s * np.arange(1, number + 1, dtype=np.float64)
    first_s = sent_s + np.array(ttft_s)
    last_s = first_s + np.array(tpot_s) * (output_len - 1)
    requests = [TrafficRequest(float(at), 8, output_len) for at in sent_s]
    nothing = np.zeros(number, dtype=np.int64)
    return Simulated(Traffic(requests), sent_s, sent_s.copy(), first_s, last_s, nothing, nothing, [])
