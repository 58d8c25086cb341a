"""What the client of a published run sent, drawn as it drew it, and what lay between it and the engine."""

from __future__ import annotations

import numpy as np

from benchmarks.arena.runs import PublishedRun
from pytest_dooly.core.traffic import Traffic
from pytest_dooly.published.estimate import SERVER_S, TOKENISE_S
from pytest_dooly.scheduling.clock import Server
from pytest_dooly.simulation.arrivals import AT_ONCE, Arrivals
from pytest_dooly.simulation.lengths import LengthPairs, Lengths, LengthTable, PromptAndOutput
from pytest_dooly.simulation.synthetic import SyntheticTraffic

SHORTEST, LONGEST = 4, 1024
"""Of prompts and of outputs that vLLM's client takes of ShareGPT: `is_valid_sequence` in
`vllm/benchmarks/datasets/datasets.py` of vLLM 0.32.0, whose bound of 2,048 tokens for both leaves an output half."""


_DRAWN = 10_000
"""Conversations of the table that requests are drawn from."""


def traffic_of(run: PublishedRun) -> Traffic:
    """Requests as they were sent."""
    lengths: LengthPairs = PromptAndOutput(_lengths(run, run.prompt_len), _lengths(run, run.output_len))
    if run.sharegpt:
        lengths = _conversations(run)
    kind = "constant" if run.evenly else "poisson"
    arrivals = AT_ONCE if run.rate is None else Arrivals.parse(str(run.rate), kind)
    synthetic = SyntheticTraffic(arrivals, lengths, concurrency=run.concurrency)
    return synthetic.draw(num_requests=run.num_requests)


def _conversations(run: PublishedRun) -> LengthTable:
    """Lengths of conversations by exponential laws of the known means: many are short, and few long.

    Source of the law: figure 11 of the paper of vLLM (Kwon et al. 2023), whose densities fall from the shortest lengths
    on, for prompts and for outputs.
    """
    rng = np.random.default_rng(0)
    drawn = [rng.exponential(mean, _DRAWN).clip(SHORTEST, LONGEST) for mean in (run.prompt_len, run.output_len)]
    prompts, outputs = (tuple(np.rint(each).astype(int).tolist()) for each in drawn)
    return LengthTable(prompts, outputs)


def longest_of(run: PublishedRun) -> int:
    """Tokens of the longest request that may be drawn."""
    if run.sharegpt:
        return 2 * LONGEST
    return (run.prompt_len + run.output_len) * (3 if run.roughly else 2) // 2


def server_of(run: PublishedRun) -> Server:
    """What lay between the client and the engine."""
    if run.in_process:
        return Server(async_scheduling=run.async_scheduling, tokenise_s=TOKENISE_S)
    ahead = run.async_scheduling
    return Server.adding(SERVER_S, async_scheduling=ahead, tokenise_s=TOKENISE_S, processes=run.server_processes)


def _lengths(run: PublishedRun, tokens: int) -> Lengths:
    """As the client drew them; of a mean or median alone, uniform from a half to three halves of it.

    Equal ones would keep in step.
    """
    if run.roughly:
        return Lengths(low=max(1, tokens // 2), high=tokens + tokens // 2)
    return Lengths.fixed(tokens) if run.shortest == 1 else Lengths.below(tokens, run.shortest)
