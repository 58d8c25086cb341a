"""Which experts vLLM's routers choose: evenly at random, or as a sweep point asks, since random weights choose a few.

A router computes as ever, and what it chose is replaced, so that its own work is timed too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch

from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.errors import EngineError

__all__ = ["routed_as", "routed_at_random"]

_TABLE = 4096
"""Choices that are drawn once, so that drawing them takes no time in a step."""


@contextmanager
def routed_at_random(model: torch.nn.Module) -> Iterator[None]:
    """Every token goes to experts drawn uniformly, different ones."""
    with ExitStack() as patches:
        for router, experts, top_k, device in _routers(model):
            table = torch.rand(_TABLE, experts, device=device).topk(top_k, dim=-1).indices
            patches.enter_context(_choosing(router, partial(_some_of, table)))
        yield


@contextmanager
def routed_as(model: torch.nn.Module, point: SweepPoint) -> Iterator[None]:
    """Tokens spread as the sweep point says.

    Raises:
        EngineError: no choice of the model's routers spreads so.
    """
    assert point.num_tokens is not None
    assert point.routing is not None
    with ExitStack() as patches:
        for router, experts, top_k, device in _routers(model):
            chosen = _spread(point.num_tokens, top_k, experts, point.routing.activated, point.routing.busiest)
            patches.enter_context(_choosing(router, partial(_first_of, chosen.to(device))))
        yield


def _spread(num_tokens: int, top_k: int, experts: int, activated: int, busiest: int) -> torch.Tensor:
    """Experts of every token, shape (num_tokens, top_k): the first takes `busiest` tokens, the others take turns."""
    others, rest = activated - 1, num_tokens * top_k - busiest
    fits = top_k <= activated <= experts and busiest <= num_tokens and (rest == 0 if others == 0 else rest >= others)
    if not fits or (top_k > others and busiest < num_tokens) or rest > others * busiest:
        raise EngineError(
            f"{num_tokens} tokens with {top_k} of {experts} experts each cannot activate {activated} "
            f"with {busiest} tokens at the busiest"
        )
    chosen, turn = [], 0
    for token in range(num_tokens):
        mine = [0] if token < busiest else []
        while len(mine) < top_k:
            mine.append(1 + turn % others)
            turn += 1
        chosen.append(mine)
    return torch.tensor(chosen)


def _routers(model: torch.nn.Module) -> Iterator[tuple[Any, int, int, torch.device]]:
    """Router, number of experts, experts a token and device of every mixture of experts."""
    from vllm.model_executor.layers.fused_moe.runner.moe_runner_interface import MoERunnerInterface

    for layer in model.modules():
        if isinstance(layer, MoERunnerInterface):
            config: Any = layer.routed_experts.moe_config
            device = next(layer.parameters()).device
            yield layer.router, int(config.num_experts), int(config.experts_per_token), device


def _choosing(router: Any, choose: Callable[[int], torch.Tensor]) -> AbstractContextManager[Any]:
    compute = router._compute_routing

    def compute_and_replace(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        weights, ids = compute(*args, **kwargs)
        return weights, choose(ids.shape[0]).to(ids.dtype)

    return mock.patch.object(router, "_compute_routing", compute_and_replace)


def _some_of(table: torch.Tensor, count: int) -> torch.Tensor:
    if count > len(table):
        return table.repeat(-(-count // len(table)), 1)[:count]
    first = int(torch.randint(len(table) - count + 1, ()))
    return table[first : first + count]


def _first_of(chosen: torch.Tensor, count: int) -> torch.Tensor:
    """The point's choices; of another step, which a pass may begin with, as many as there are."""
    return chosen[:count] if count <= len(chosen) else chosen.repeat(-(-count // len(chosen)), 1)[:count]
