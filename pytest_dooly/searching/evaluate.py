"""One candidate after the other: excluded cheaply, or simulated until its goodput is known."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from pytest_dooly.core.device import Device
from pytest_dooly.core.routing import TRAINED, RoutingDistribution
from pytest_dooly.core.traffic import Traffic
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.prediction.interval import Figure, is_mixture, log_width
from pytest_dooly.prediction.shares import Shares, shares_at
from pytest_dooly.prediction.step_times import StepTimes
from pytest_dooly.published.basis import Foundation
from pytest_dooly.published.grounds import Grounds
from pytest_dooly.scheduling.clock import Server, Simulated, StepLatency
from pytest_dooly.scheduling.scheduler import SchedulerOptions
from pytest_dooly.searching.bounds import most_rate, unloaded
from pytest_dooly.searching.candidate import Place, Trial
from pytest_dooly.searching.goodput import Curve, Load, Range
from pytest_dooly.searching.limit import Limit, Watched, causes_of_step, limit_of
from pytest_dooly.searching.objective import Objective
from pytest_dooly.searching.outcome import Outcome
from pytest_dooly.simulation.deployment import Deployment
from pytest_dooly.simulation.simulate import Engine, means_s, steps_of

__all__ = ["Evaluator", "Question"]

_BEGIN = 0.7
"""Share of the bound on the rate that a search begins at."""

_FEWEST = 20
"""Requests from which on a queue is looked at (`overloaded`)."""

_BEYOND = 1.1
"""Multiple of the bound without an SLO beyond which no rate is tried: what the bound may be too low by."""

_ENDS_TOLERANCE = 3.0
"""How much wider the tolerance is for the ends of an interval, which say less than they seem to."""

_PLACES = 16
"""Of which step times are kept at once, about a megabyte each."""

_FEW = 4
"""Requests of the traffic for each that is under way, below which a run consists mostly of its beginning and end."""


@dataclass(frozen=True)
class Question:
    """What is asked of every candidate.

    Attributes:
        traffic: requests, whose times are stretched to any rate.
        objective: that a rate must meet.
        engine: how each engine schedules; prefix caching is the candidate's.
        server_s: that server and client add to a request.
        tokenise_s: that each token of a prompt takes the server.
        tolerance: by which a rate that meets the objective and one that does not may differ, 0.03 for 3 %.
        routing: how a mixture's router spreads tokens over experts.
    """

    traffic: Traffic
    objective: Objective
    engine: Engine = dataclasses.field(default_factory=Engine)
    server_s: float = 0.0
    tokenise_s: float = 0.0
    tolerance: float = 0.03
    routing: RoutingDistribution = TRAINED

    def __post_init__(self) -> None:
        if self.traffic.concurrency is not None or math.isinf(self.traffic.offered_rate):
            raise ConfigurationError(
                "a search asks for the highest rate: name traffic with times of arrival, no closed loop"
            )
        if len(self.traffic.requests) < _FEWEST:
            raise ConfigurationError(
                f"a queue that grows shows in {_FEWEST} requests at least, and in hundreds well: got "
                f"{len(self.traffic.requests)}, name more --requests"
            )
        if not 0.001 <= self.tolerance <= 0.5:
            raise ConfigurationError(f"tolerance must be a share from 0.001 to 0.5, got {self.tolerance:g}")


@dataclass(frozen=True)
class _Ready:
    """Step times of a place, and what they rest on."""

    times: StepTimes
    founded: Mapping[str, Foundation]


class Evaluator:
    """Evaluates candidates, one after the other; keeps what the next one may need too.

    What is kept: the latency DB open, what is known of each device, and the step times of the last places. A context
    manager that closes the file.
    """

    def __init__(self, db: Path, question: Question) -> None:
        """Opens nothing yet.

        Args:
            db: path of the latency DB.
            question: what is asked of every candidate.
        """
        self._path, self._question = db, question
        self._db: LatencyDB | None = None
        self._grounds: dict[str, Grounds] = {}
        self._places: dict[Place, _Ready] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the latency DB; the next candidate opens it again."""
        if self._db is not None:
            self._db.close()
        self._db, self._grounds = None, {}

    def evaluate(self, trial: Trial) -> Outcome:
        """What a candidate comes to.

        Args:
            trial: the candidate; those of one place are best asked for one after the other.

        Raises:
            DatabaseError: the latency DB cannot be read.
        """
        try:
            options = _options(self._question, trial)
            ready = self._ready(trial.place)
        except ConfigurationError as error:
            return Outcome(trial.candidate, excluded=str(error))
        begin_s = time.perf_counter()
        found = _Evaluation(self._question, trial, options, ready).outcome()
        return dataclasses.replace(found, spent_s=time.perf_counter() - begin_s)

    def _ready(self, place: Place) -> _Ready:
        if place not in self._places:
            founded = self._grounds_of(place.device).of(place.model)
            models = {key: each.model for key, each in founded.items()}
            times = StepTimes(
                place.model, models, routing=self._question.routing, overlapped=self._question.engine.async_scheduling
            )
            self._places[place] = _Ready(times, founded)
            for oldest in list(self._places)[:-_PLACES]:
                del self._places[oldest]
        return self._places[place]

    def _grounds_of(self, device: Device) -> Grounds:
        if device.name not in self._grounds:
            if self._db is None:
                self._db = LatencyDB.open(self._path, create=False)
            self._grounds[device.name] = Grounds(self._db, device)
        return self._grounds[device.name]


def _options(question: Question, trial: Trial) -> SchedulerOptions:
    candidate = trial.candidate
    if candidate.max_num_seqs > candidate.max_num_tokens:
        raise ConfigurationError(
            f"max_num_seqs {candidate.max_num_seqs} is above max_num_tokens {candidate.max_num_tokens}: vLLM refuses"
        )
    engine = dataclasses.replace(question.engine, prefix_caching=candidate.prefix_caching)
    longest = question.traffic.longest()
    if longest > trial.place.max_model_len:
        raise ConfigurationError(f"requests of {longest} tokens exceed max_model_len {trial.place.max_model_len}")
    return engine.options(trial.served, trial.place.device.name)


class _Evaluation:
    """One candidate on its way."""

    def __init__(self, question: Question, trial: Trial, options: SchedulerOptions, ready: _Ready) -> None:
        self._question, self._trial, self._options, self._ready = question, trial, options, ready
        self._objective = question.objective
        self._server = Server.adding(
            question.server_s, async_scheduling=options.async_scheduling, tokenise_s=question.tokenise_s
        )
        self._even = self._alone = (1.0,) * len(self._objective.bounds)

    def outcome(self) -> Outcome:
        traffic, times = self._question.traffic, self._ready.times
        base = Outcome(
            self._trial.candidate,
            tokens=float(np.mean([request.prompt_len + request.output_len for request in traffic.requests])),
            output_tokens=float(np.mean([request.output_len for request in traffic.requests])),
        )
        alone = self._objective.ratios_of(unloaded(traffic, times, self._options, self._server))
        if max(alone) > 1:
            names = [
                f"{bound.name} {ratio * bound.bound_s * 1e3:.3g} ms"
                for bound, ratio in zip(self._objective.bounds, alone, strict=True)
                if ratio > 1
            ]
            reason = f"a request that meets no other misses the SLO already: {', '.join(names)}"
            return dataclasses.replace(base, excluded=reason, ratios=alone)
        self._alone = alone
        tpot_s = min((b.bound_s for b in self._objective.bounds if b.latency == "tpot"), default=math.inf)
        bound = most_rate(traffic, times, self._options, tpot_s)
        most = _BEYOND * most_rate(traffic, times, self._options)
        curve = Curve(lambda rate: self._simulated(rate, times), self._objective, most=most)
        found = curve.highest(_BEGIN * bound, self._even, self._question.tolerance)
        base = dataclasses.replace(base, bound=bound)
        return self._told(base, found, curve)

    def _told(self, base: Outcome, found: Range, curve: Curve) -> Outcome:
        """What a search has found, with the interval around it and what limits it."""
        model, founded = self._ready.times.model, self._ready.founded
        shown = found.met or found.missed
        assert shown is not None
        steps = steps_of(shown.simulated, self._options.limits)
        shares = {
            figure: shares_at(
                model, founded, batch, routing=self._question.routing, overlapped=self._question.engine.async_scheduling
            )
            for figure, batch in steps.items()
        }
        low, high = self._ends(curve, shown.rate, shares) if found.met else (0.0, 0.0)
        limit = None if found.missed is None else self._limit(found.missed)
        means = means_s(shown.simulated)
        rate = found.met.served if found.met else 0.0
        if found.missed is None:  # a short run does not show what the engine cannot keep up with
            rate = min(rate, base.bound)
        return dataclasses.replace(
            base,
            rate=rate,
            offered=shown.rate,
            low=min(low, rate),
            high=max(high, rate),
            ratios=shown.ratios,
            ttft_s=means["ttft"],
            tpot_s=means.get("tpot", 0.0),
            estimated=shares["tpot"].by_kind["estimate"],
            limit=limit,
            remark=_remark(found, shown.simulated),
            simulations=curve.simulations + (limit is not None),
        )

    def _ends(self, curve: Curve, rate: float, shares: Mapping[Figure, Shares]) -> tuple[float, float]:
        """Goodput where every step takes as long, and as short, as the interval allows.

        Where all times of an engine are f times as long, what arrives f times as slowly has f times its latencies: the
        same simulations do, with bounds and rates divided by f. The factor is that of TPOT; a bound of TTFT is divided
        by its own, which is that of its interval.
        """
        mixture = is_mixture(self._ready.times.model)
        factors = {figure: math.exp(log_width(figure, of, mixture=mixture)) for figure, of in shares.items()}
        slow = tuple(factors["ttft" if b.latency == "ttft" else "tpot"] for b in self._objective.bounds)
        tolerance = _ENDS_TOLERANCE * self._question.tolerance
        possible = all(ratio * factor <= 1 for ratio, factor in zip(self._alone, slow, strict=True))
        slower = curve.highest(rate / 2, tuple(1 / factor for factor in slow), tolerance).met if possible else None
        faster = curve.highest(rate, slow, tolerance).met
        low = slower.served / factors["tpot"] if slower else 0.0
        return low, faster.served * factors["tpot"] if faster else 0.0

    def _limit(self, missed: Load) -> Limit:
        """What the load shows that misses the objective."""
        watched = Watched(self._ready.times)
        simulated = self._simulated(missed.rate, watched)
        bounds = self._objective.bounds
        worst = max(range(len(bounds)), key=lambda place: missed.ratios[place])
        times, trial = self._ready.times, self._trial
        batch = steps_of(simulated, self._options.limits)["tpot"]
        return limit_of(
            simulated,
            watched,
            self._options,
            bounds[worst].name if missed.ratios[worst] > 1 else "queue",
            rate=missed.rate,
            ratio=missed.ratios[worst],
            server=self._server,
            of_step=causes_of_step(times.model, times.models, trial.place.device, batch, self._question.routing),
        )

    def _simulated(self, rate: float, times: StepLatency) -> Simulated:
        traffic = self._question.traffic
        deployment = Deployment(times, self._options, self._server)
        (simulated,) = deployment.simulate(traffic.stretched(traffic.offered_rate / rate))
        return simulated


def _remark(found: Range, simulated: Simulated) -> str:
    """What is to be known of the figures."""
    under_way = float(simulated.latency_s.sum() / (simulated.last_s.max() - simulated.sent_s.min()))
    if found.met and _FEW * under_way > len(simulated.sent_s):
        return "so many requests are under way that a run is mostly its beginning and end: name more --requests"
    return (
        "" if found.missed else "no rate that was tried misses the SLO: req/s is what the engine keeps up with at most"
    )
