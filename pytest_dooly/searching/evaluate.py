"""One candidate after the other: excluded cheaply, or simulated until its goodput is known."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
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
from pytest_dooly.simulation.sustained import full_rate

__all__ = ["Evaluator", "Question", "check_tolerance"]

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

_FEW, _LONGEST = 4, 4
"""Requests of the traffic for each that is under way, below which a run consists mostly of its beginning and end; how
often it is repeated at most, so that a search takes twice as long and not ten times."""

_NEARBY = 0.9
"""Share of a rate that few requests meet at which more of them are looked at next."""

_MANY, _NEAR = 20, 0.5
"""Requests for each that is under way, from which on a queue shows that grows by a twentieth of the rate, and up to
which the traffic is repeated; the share of the most rate above which a queue is to be feared."""


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
        check_tolerance(self.tolerance)


def check_tolerance(tolerance: float) -> None:
    """Checks that rates can be told apart by a tolerance, and still be called the highest.

    Raises:
        ConfigurationError: it is too small or too large.
    """
    if not 0.001 <= tolerance <= 0.5:
        raise ConfigurationError(f"tolerance must be a share from 0.001 to 0.5, got {tolerance:g}")


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
    return engine.options(trial.served, trial.place.device.name, seq_len=question.traffic.mean_len)


class _Evaluation:
    """One candidate on its way."""

    def __init__(self, question: Question, trial: Trial, options: SchedulerOptions, ready: _Ready) -> None:
        self._question, self._trial, self._options, self._ready = question, trial, options, ready
        self._objective, self._traffic = question.objective, question.traffic
        self._server = Server.adding(
            question.server_s,
            async_scheduling=options.async_scheduling,
            tokenise_s=question.tokenise_s,
            processes=options.engines,
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
        best = most_rate(traffic, times, self._options)
        begin = _BEGIN * most_rate(traffic, times, self._options, tpot_s)
        curve = self._curve(traffic, _BEYOND * best)
        short = curve.highest(begin, self._even, self._question.tolerance)
        if short.met is None or not (_few(short.met, traffic) or _unsure(short.met, traffic, best)):
            return self._told(dataclasses.replace(base, bound=best), short, curve)
        full = full_rate(Deployment(times, self._options, self._server), traffic)
        base = dataclasses.replace(base, bound=full)
        # What few requests miss more of them miss too: what is met is what they do not show.
        self._traffic = traffic.repeated(min(math.ceil(_MANY * short.met.at_once / len(traffic.requests)), _LONGEST))
        missed = [] if short.missed is None or short.missed.rate > full else [short.missed]
        longer = self._curve(self._traffic, full, missed)
        begin = min(short.met.rate, full)
        if longer.at(begin).worst(self._even) > 1:
            longer.at(_NEARBY * begin)
        found = longer.highest(begin, self._even, self._question.tolerance)
        beyond = found.missed or longer.at(_BEYOND * full)
        return self._told(base, found, longer, shorter=curve, missed=beyond)

    def _curve(self, traffic: Traffic, most: float, known: Sequence[Load] = ()) -> Curve:
        times = self._ready.times
        return Curve(lambda rate: self._simulated(traffic, rate, times), self._objective, most=most, known=known)

    def _told(
        self, base: Outcome, found: Range, curve: Curve, *, shorter: Curve | None = None, missed: Load | None = None
    ) -> Outcome:
        """What a search has found, with the interval around it and what limits it.

        Args:
            base: of the candidate.
            found: the highest rate that meets the objective.
            curve: that it was found on.
            shorter: the curve of fewer requests that says how wide the interval is; None where there is none.
            missed: load that says what limits the candidate; None for the one that was found.
        """
        model, founded = self._ready.times.model, self._ready.founded
        shown = found.met or found.missed
        assert shown is not None
        steps = steps_of(shown.simulated, self._options.limits, self._options.engines)
        shares = {
            figure: shares_at(
                model, founded, batch, routing=self._question.routing, overlapped=self._question.engine.async_scheduling
            )
            for figure, batch in steps.items()
        }
        low, high = self._ends(shorter or curve, found.met, base.bound, shares) if found.met else (0.0, 0.0)
        missed = missed or found.missed
        limit = None if missed is None or missed.worst(self._even) <= 1 else self._limit(missed)
        means = means_s(shown.simulated)
        rate = found.met.served if found.met else 0.0
        if found.missed is None:  # a short run does not show what the engine cannot keep up with
            rate = min(rate, base.bound)
        few = found.met is not None and _few(found.met, self._traffic)
        return dataclasses.replace(
            base,
            rate=rate,
            offered=shown.rate,
            low=min(low, rate),
            high=max(high, rate),
            bound=max(base.bound, rate),
            ratios=shown.ratios,
            ttft_s=means["ttft"],
            tpot_s=means.get("tpot", 0.0),
            estimated=shares["tpot"].by_kind["estimate"],
            by_another=shares["tpot"].by_kind["another GPU"],
            limit=limit,
            remark=_remark(found, few=few),
            at_most=few or found.missed is None,
            simulations=curve.simulations + (shorter.simulations if shorter else 0) + (limit is not None),
        )

    def _ends(self, curve: Curve, met: Load, bound: float, shares: Mapping[Figure, Shares]) -> tuple[float, float]:
        """Goodput where every step takes as long, and as short, as the interval allows.

        Where all times of an engine are f times as long, what arrives f times as slowly has f times its latencies: the
        same simulations do, with bounds and rates divided by f. The factor is that of TPOT; a bound of TTFT is divided
        by its own, which is that of its interval. Where the rate was found with more requests than the curve's, both
        ends are as far from it as from the curve's own, and what is kept up with at most bounds the upper one.
        """
        mixture = is_mixture(self._ready.times.model)
        factors = {figure: math.exp(log_width(figure, of, mixture=mixture)) for figure, of in shares.items()}
        slow = tuple(factors["ttft" if b.latency == "ttft" else "tpot"] for b in self._objective.bounds)
        tolerance = _ENDS_TOLERANCE * self._question.tolerance
        own = curve.highest(met.rate, self._even, self._question.tolerance).met or met
        possible = all(ratio * factor <= 1 for ratio, factor in zip(self._alone, slow, strict=True))
        slower = curve.highest(own.rate / 2, tuple(1 / factor for factor in slow), tolerance).met if possible else None
        faster = curve.highest(own.rate, slow, tolerance).met
        share = met.served / own.served
        low = share * slower.served / factors["tpot"] if slower else 0.0
        high = min(share * faster.served, max(bound, met.served)) * factors["tpot"] if faster else 0.0
        return low, high

    def _limit(self, missed: Load) -> Limit:
        """What the load shows that misses the objective."""
        watched = Watched(self._ready.times)
        simulated = self._simulated(self._traffic, missed.rate, watched)
        bounds = self._objective.bounds
        worst = max(range(len(bounds)), key=lambda place: missed.ratios[place])
        times, trial = self._ready.times, self._trial
        batch = steps_of(simulated, self._options.limits, self._options.engines)["tpot"]
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

    def _simulated(self, traffic: Traffic, rate: float, times: StepLatency) -> Simulated:
        deployment = Deployment(times, self._options, self._server)
        (simulated,) = deployment.simulate(traffic.stretched(traffic.offered_rate / rate))
        return simulated


def _few(load: Load, traffic: Traffic) -> bool:
    """Whether a run of the traffic is mostly its beginning and end."""
    return _FEW * load.at_once > len(traffic.requests)


def _unsure(load: Load, traffic: Traffic, most: float) -> bool:
    """Whether a queue may grow so slowly that the traffic does not show it."""
    return _MANY * load.at_once > len(traffic.requests) and load.rate > _NEAR * most


def _remark(found: Range, *, few: bool) -> str:
    """What is to be known of the figures."""
    if few:
        return "so many requests are under way that a run is mostly its beginning and end: name more --requests"
    return (
        ""
        if found.missed
        else "no rate that the engine keeps up with misses the SLO: req/s is about the most that it does"
    )
