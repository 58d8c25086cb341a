"""The smallest workload that breaks an SLO, in prediction."""

from __future__ import annotations

import bisect
import itertools
from dataclasses import dataclass

from hypothesis import Phase, find, settings, target
from hypothesis.errors import NoSuchExample

from pytest_dooly.core.workload import Workload
from pytest_dooly.report.text import format_latency
from pytest_dooly.searching.objective import Bound, Objective
from pytest_dooly.simulation.predicted_model import PredictedModel
from pytest_dooly.strategies import workloads

__all__ = ["Broken", "smallest_that_breaks"]

_OUTPUT_LEN = 128
"""Most tokens that a request generates: later ones take what those of a longer prompt take."""

_EXAMPLES = 100
"""Workloads that are drawn before none is taken to break the SLO."""


@dataclass(frozen=True)
class Broken:
    """A workload that breaks an SLO.

    Attributes:
        workload: the smallest that does.
        bounds: that it breaks, each with the statistic in seconds.
    """

    workload: Workload
    bounds: tuple[tuple[Bound, float], ...]

    def __str__(self) -> str:
        sizes = self.workload
        flags = f"--prompt {sizes.prompt_len} --output {sizes.output_len} --concurrency {sizes.concurrency}"
        over = ", ".join(
            f"{bound.name} {format_latency(value_s)} of {format_latency(bound.bound_s)}"
            for bound, value_s in self.bounds
        )
        return f"the smallest workload that breaks the SLO is {flags}: {over}"


def smallest_that_breaks(
    model: PredictedModel,
    slo: Objective,
    *,
    max_prompt_len: int | None = None,
    max_output_len: int = _OUTPUT_LEN,
    max_concurrency: int | None = None,
    examples: int = _EXAMPLES,
) -> Broken | None:
    """The workload of fewest requests, then the shortest prompt, then the shortest output that breaks an SLO.

    Requests arrive together at an idle engine. How many it takes is found by bisection over the longest and shortest
    prompts and outputs; then hypothesis draws workloads of so many and fewer, steered towards the bounds, and shrinks
    the first that breaks one. Nothing is kept in its example database: with other latencies another one is smallest.

    Args:
        model: that serves.
        slo: whose statistics are taken over the workload's requests.
        max_prompt_len: most tokens of a prompt; None for what the model takes.
        max_output_len: most tokens of an output.
        max_concurrency: most requests at once; None for what a step takes.
        examples: workloads that are drawn.

    Returns:
        None where no workload breaks it.
    """
    longest = max(1, model.limits.max_model_len - 1)
    prompt_len, output_len = min(max_prompt_len or longest, longest), min(max_output_len, longest)

    def ratio(workload: Workload) -> float:
        return max(slo.ratios(model.requests(workload)))

    def extreme(concurrency: int) -> Workload | None:
        """The first of the extremes that breaks it."""
        outputs = sorted({1, min(2, longest), output_len})  # two tokens: others' prompts delay the second most
        pairs = itertools.product((1, prompt_len), outputs)
        fitting = ((max(1, min(prompt, longest + 1 - output)), output) for prompt, output in pairs)
        drawn = (Workload(*lengths, concurrency) for lengths in fitting)
        return next((workload for workload in drawn if ratio(workload) > 1), None)

    def breaks(workload: Workload) -> bool:
        worst = ratio(workload)
        target(worst)
        return worst > 1

    numbers = range(1, (max_concurrency or model.limits.max_num_seqs) + 1)
    fewest = min(bisect.bisect_left(numbers, True, key=lambda number: extreme(number) is not None) + 1, numbers[-1])
    drawn = workloads(model, max_prompt_len=prompt_len, max_output_len=output_len, max_concurrency=fewest)
    asked = settings(max_examples=examples, database=None, derandomize=True, deadline=None, phases=list(Phase))
    try:
        return _broken(model, slo, find(drawn, breaks, settings=asked))
    except NoSuchExample:
        overlooked = extreme(fewest)
        return None if overlooked is None else _broken(model, slo, overlooked)


def _broken(model: PredictedModel, slo: Objective, workload: Workload) -> Broken:
    ratios = slo.ratios(model.requests(workload))
    pairs = zip(slo.bounds, ratios, strict=True)
    return Broken(workload, tuple((bound, ratio * bound.bound_s) for bound, ratio in pairs if ratio > 1))
