"""What no rate can undercut, and no rate exceed, from step times alone: cheaper than any simulation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from pytest_dooly.core.traffic import Traffic
from pytest_dooly.scheduling.clock import Server, StepLatency
from pytest_dooly.scheduling.scheduler import Decodes, Scheduled, SchedulerOptions, Together
from pytest_dooly.searching.objective import Latency

__all__ = ["decodes_alone", "decodes_of", "most_rate", "unloaded"]

Array = npt.NDArray[np.float64]

_SLACK = 1.25
"""How much longer than a bound of TPOT the mean step may be: a percentile is not the mean."""


def unloaded(
    traffic: Traffic, times: StepLatency, options: SchedulerOptions, server: Server
) -> Mapping[Latency, Array]:
    """TTFT, TPOT and latency of each request that meets no other, in seconds, each of shape (requests,).

    What others have asked before is taken for cached, so that no rate is faster.

    Args:
        traffic: whose requests they are.
        times: of the steps.
        options: how the engine schedules.
        server: between client and engine.
    """
    known: dict[tuple[int, int, int], tuple[float, float]] = {}
    rows = []
    for (new, prompt_len), request in zip(_new_tokens(traffic, options), traffic.requests, strict=True):
        asked = new, prompt_len, request.output_len
        if asked not in known:
            context_len = prompt_len + request.output_len // 2
            step_s = _lone_s(times, options, 1, context_len) if request.output_len > 1 else math.nan
            added_s = server.taking_in_s(prompt_len) + server.token_s
            known[asked] = added_s + _prefill_s(times, options, new, prompt_len), step_s
        rows.append(known[asked])
    ttft_s, tpot_s = np.array(rows, dtype=np.float64).T
    further = np.array([request.output_len - 1 for request in traffic.requests])
    return {"ttft": ttft_s, "tpot": tpot_s, "e2el": ttft_s + np.nan_to_num(tpot_s) * further}


def most_rate(traffic: Traffic, times: StepLatency, options: SchedulerOptions, tpot_s: float = math.inf) -> float:
    """Requests per second that a replica keeps up with at most, about: what the best batch comes to that never waits.

    With b requests under way, each costs its prompt once, beside the decodes of the others, and a b-th of the steps of
    its output: rate(b) = 1 / (prefill_s(b) + output_len / b * decode_s(b)), and TPOT is b / (rate(b) * output_len). Of
    engines that step together each has so many under way, and keeps up with as much.

    Args:
        traffic: whose mean request is meant.
        times: of the steps.
        options: how the engine schedules.
        tpot_s: bound of TPOT, which bounds b; infinite for none.
    """
    pairs = list(_new_tokens(traffic, options))
    new, prompt_len = (max(round(float(np.mean(each))), 1) for each in zip(*pairs, strict=True))
    output_len = float(np.mean([request.output_len for request in traffic.requests]))
    context_len = prompt_len + round(output_len) // 2
    found = 0.0
    for batch in _batches(options, prompt_len + round(output_len)):
        others = Decodes([(place, 0) for place in range(batch - 1)], 0, (batch - 1) * context_len)
        others_s = times.step_s(Scheduled([], [], [], [], decodes=others)) if batch > 1 else 0.0
        chunk = max(min(new, options.limits.max_num_tokens - batch), 1)
        beside = Scheduled([batch], [chunk], [prompt_len - new], [], decodes=others)
        prefill_s = max(times.step_s(beside) - others_s, 0.0) * new / chunk
        request_s = prefill_s + output_len / batch * times.step_s(decodes_alone(batch, batch * context_len))
        if found and batch * request_s / output_len > _SLACK * tpot_s:
            break
        found = max(found, 1 / request_s)
    return options.engines * found


def decodes_alone(number: int, tokens: int) -> Scheduled:
    """A step of so many decodes, with so many tokens in their KV caches all together."""
    return Scheduled([], [], [], [], decodes=Decodes([(place, 0) for place in range(number)], 0, tokens))


def decodes_of(step: Scheduled) -> Scheduled:
    """A step with its decodes alone, of which it has some."""
    if not isinstance(step, Together):
        return decodes_alone(step.num_decodes, step.decode_tokens)
    return Together([decodes_of(each) if each is not None and each.num_decodes else None for each in step.engines])


def _batches(options: SchedulerOptions, tokens: int) -> Iterator[int]:
    """Numbers of requests under way, ascending, up to what seats and KV blocks hold of requests so long."""
    held = int(options.held(max(tokens, 1)))
    most = max(min(options.limits.max_num_seqs, held, options.limits.max_num_tokens - 1), 1)
    yield from (round(2 ** (power / 2)) for power in range(2 * math.floor(math.log2(most)) + 1))
    yield most


def _prefill_s(times: StepLatency, options: SchedulerOptions, new: int, prompt_len: int) -> float:
    """Seconds of the steps with one prompt alone, of which so many tokens are new."""
    total_s = 0.0
    while new > 0:
        chunk = min(new, options.limits.max_num_tokens)
        total_s += _lone_s(times, options, chunk, prompt_len - new)
        new -= chunk
    return total_s


def _lone_s(times: StepLatency, options: SchedulerOptions, query_len: int, context_len: int) -> float:
    """Seconds of a step of one request, which no other engine has one beside."""
    lone = Scheduled([0], [query_len], [context_len], [])
    return times.step_s(lone if options.engines == 1 else Together([lone, *[None] * (options.engines - 1)]))


def _new_tokens(traffic: Traffic, options: SchedulerOptions) -> Iterator[tuple[int, int]]:
    """Tokens of each prompt that nobody has asked before, at least one, and all of them."""
    seen: set[int] = set()
    for request in traffic.requests:
        cached = 0
        if options.prefix_caching:
            for identity, tokens in request.segments:
                if identity not in seen:
                    break
                cached += tokens
            seen.update(identity for identity, _ in request.segments)
            if request.output is not None:
                seen.add(request.output)
        yield max(request.prompt_len - cached, 1), request.prompt_len
