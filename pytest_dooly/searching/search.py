"""The best way to serve a traffic under an SLO, from a latency DB alone; what `pytest_dooly.search` is."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pytest_dooly.core.configuration import ServingOptions
from pytest_dooly.core.routing import TRAINED, RoutingDistribution
from pytest_dooly.core.traffic import Traffic
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.prediction.forecast import traced_for
from pytest_dooly.published.estimate import SERVER_S, TOKENISE_S
from pytest_dooly.searching.candidate import Grid
from pytest_dooly.searching.chooser import chooser_for
from pytest_dooly.searching.cost import bill_of, check_prices
from pytest_dooly.searching.evaluate import Question
from pytest_dooly.searching.objective import Objective
from pytest_dooly.searching.ranking import Search, rank
from pytest_dooly.searching.ray_workers import RayWorkers
from pytest_dooly.searching.study import Finished, Traced, known_outcomes, run, trials_of
from pytest_dooly.searching.workers import Workers, local_workers
from pytest_dooly.simulation.simulate import Engine

__all__ = ["TRIALS", "search", "searched"]

TRIALS = 400
"""Candidates that are tried at most, unless told otherwise."""


def search(
    models: str | Sequence[str],
    traffic: Traffic,
    slo: str | Objective,
    *,
    devices: str | Sequence[str],
    tensor_parallel_sizes: Sequence[int] = (1,),
    expert_parallel_sizes: Sequence[int] = (1,),
    kv_cache_dtypes: Sequence[str | None] = (None,),
    max_num_seqs: Sequence[int | None] = (None,),
    max_num_tokens: Sequence[int | None] = (None,),
    prefix_caching: Sequence[bool] = (True,),
    data_parallel_sizes: Sequence[int] = (1,),
    prices: Mapping[str, float] | None = None,
    rate: float | None = None,
    trials: int = TRIALS,
    tolerance: float = 0.03,
    jobs: int | None = None,
    ray: str | None = None,
    db: str | Path = ".dooly/latency.db",
    options: ServingOptions | None = None,
    engine: Engine | None = None,
    server_s: float = SERVER_S,
    tokenise_s: float = TOKENISE_S,
    routing: str | RoutingDistribution = TRAINED,
    progress: Callable[[Finished], None] = lambda _: None,
) -> Search:
    """The highest request rate that meets an SLO for every way to serve, in the order of cost.

    Args:
        models: names that they were profiled or planned by, with every size asked for.
        traffic: with times of arrival, which are stretched to any rate; a few hundred requests or more.
        slo: as in `ttft_p99:500ms,tpot_p90:40ms`.
        devices: names of GPUs, as in `h100_sxm`, or one.
        tensor_parallel_sizes: GPUs of an engine.
        expert_parallel_sizes: 1, or as many as GPUs of a replica.
        kv_cache_dtypes: None for the model's own.
        max_num_seqs: most requests of a step; None for what `vllm serve` takes.
        max_num_tokens: most tokens of a step, likewise.
        prefix_caching: whether prompts that begin alike share KV blocks.
        data_parallel_sizes: engines of a replica, which share a mixture's experts.
        prices: of one GPU for an hour, by device, in any currency.
        rate: requests per second that are to be served; None for what one replica serves.
        trials: candidates that are tried at most; of a larger grid Optuna chooses them.
        tolerance: by which a rate that meets the SLO and one that does not may differ.
        jobs: processes; None for one a core. With 1 all is done in this one.
        ray: address of a Ray cluster in place of processes here.
        db: path of the latency DB, where outcomes are kept too.
        options: of serving, that are the same for all.
        engine: how each engine schedules.
        server_s: seconds that server and client add to a request.
        tokenise_s: seconds that each token of a prompt takes the server's tokeniser.
        routing: how a mixture's router spreads tokens over experts.
        progress: called after each candidate.

    Raises:
        ConfigurationError: something named is unknown, cannot be read or does not go together.
        DatabaseError: there is no latency DB, or it cannot be used.
        MissingMeasurements: the latency DB lacks a model with some of the options.
        MissingExtraError: Optuna or Ray is needed and not installed.
        WorkerError: processes or the cluster went away; what is finished is kept.
    """
    names = [models] if isinstance(models, str) else list(models)
    grid = Grid(
        names,
        [devices] if isinstance(devices, str) else devices,
        tensor_parallel_sizes,
        expert_parallel_sizes,
        kv_cache_dtypes,
        max_num_seqs,
        max_num_tokens,
        prefix_caching,
        data_parallel_sizes,
    )
    question = Question(
        traffic,
        Objective.parse(slo) if isinstance(slo, str) else slo,
        engine or Engine(),
        server_s,
        tokenise_s,
        tolerance,
        RoutingDistribution.parse(routing) if isinstance(routing, str) else routing,
    )
    path = Path(db)
    with LatencyDB.open(path, create=False) as opened:
        traced = [
            Traced(name, each, traced_for(opened, name, each))
            for name, each in grid.options(options or ServingOptions())
        ]
        return searched(
            grid,
            traced,
            question,
            opened,
            path,
            prices=prices or {},
            rate=rate,
            trials=trials,
            jobs=jobs,
            ray=ray,
            progress=progress,
        )


def searched(
    grid: Grid,
    traced: Sequence[Traced],
    question: Question,
    db: LatencyDB,
    path: Path,
    *,
    prices: Mapping[str, float],
    rate: float | None = None,
    trials: int = TRIALS,
    jobs: int | None = None,
    ray: str | None = None,
    progress: Callable[[Finished], None] = lambda _: None,
) -> Search:
    """The search over models that are traced.

    Args:
        grid: that is asked for.
        traced: models with the options of each trace.
        question: what is asked of every candidate.
        db: where outcomes are kept.
        path: of it.
        prices: as in `search`.
        rate: as in `search`.
        trials: as in `search`.
        jobs: as in `search`.
        ray: as in `search`.
        progress: as in `search`.

    Raises:
        ConfigurationError: a price is missing, or there is no candidate.
        DoolyError: as of `search`.
    """
    check_prices(prices, grid.devices)
    if rate is not None and not 0 < rate < float("inf"):
        raise ConfigurationError(f"the required rate must be a number above 0, got {rate:g}")
    begin_s = time.perf_counter()
    whole = trials_of(grid, traced, question, db)
    if not whole:
        raise ConfigurationError(f"there is no candidate: {' '.join(grid.unused()) or 'nothing was traced'}")
    known = known_outcomes(whole, db)
    resumed = len(known)

    chooser = chooser_for(whole, known, trials, lambda outcome: bill_of(outcome, prices, rate).price)
    total = min(len(whole), max(trials, resumed))
    outcomes = dict(known)
    if resumed < total:
        workers = _workers(path, question, total - resumed, jobs, ray)
        try:
            outcomes = run(chooser, workers, db, known=known, total=total, progress=progress)
        finally:
            workers.close()
    in_order = [outcomes[trial.key] for trial in whole if trial.key in outcomes]
    found = rank(
        in_order,
        objective=question.objective,
        prices=prices,
        tolerance=question.tolerance,
        required=rate,
        grid=len(whole),
        resumed=resumed,
        seconds=time.perf_counter() - begin_s,
    )
    # The axes of the grid stand in each candidate.
    common = dataclasses.replace(
        traced[0].options,
        tensor_parallel_size=1,
        expert_parallel_size=1,
        data_parallel_size=1,
        kv_cache_dtype=None,
    )
    return dataclasses.replace(found, options=common, engine=question.engine)


def _workers(path: Path, question: Question, number: int, jobs: int | None, ray: str | None) -> Workers:
    if ray is not None:
        return RayWorkers(path, question, ray)
    if jobs is not None and jobs < 1:
        raise ConfigurationError(f"jobs must be at least 1, got {jobs}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return local_workers(path, question, min(jobs or cores, number))
