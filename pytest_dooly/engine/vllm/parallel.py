"""Parallel groups of vLLM in one process: what a rank of many holds and sends, without the others."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch

__all__ = ["COLLECTIVES", "one_of_many"]

COLLECTIVES: Mapping[str, str] = {
    "vllm::all_reduce": "all_reduce",
    "vllm::all_gather": "all_gather",
    "vllm::reduce_scatter": "reduce_scatter",
}
"""vLLM's own custom operators of its collectives, whose fake kernels give the shapes."""


@contextmanager
def one_of_many(config: Any, plant: Callable[[str, int], int]) -> Iterator[None]:
    """While open, this process is the first rank of the configuration's tensor- and expert-parallel groups.

    Args:
        config: vLLM's configuration; its tensor-parallel size is planted as the symbol `tp`.
        plant: called with name and value of a configuration integer; what it returns takes its place.
    """
    from vllm.distributed import parallel_state

    size = int(config.parallel_config.tensor_parallel_size)
    with _groups_of_one(), ExitStack() as undo:
        if size > 1:
            planted = plant("tp", size)
            undo.callback(object.__setattr__, config.parallel_config, "tensor_parallel_size", size)
            object.__setattr__(config.parallel_config, "tensor_parallel_size", planted)
            groups = [parallel_state.get_tp_group()]
            if config.parallel_config.enable_expert_parallel:
                groups.append(parallel_state.get_ep_group())
            for group in dict.fromkeys(groups):
                undo.enter_context(mock.patch.object(group, "world_size", planted))
                undo.enter_context(mock.patch.object(group, "use_custom_op_call", new=True))
                undo.enter_context(mock.patch.object(group, "gather", _gather_of(group)))
        yield


@contextmanager
def _groups_of_one() -> Iterator[None]:
    """Groups of this process alone, beside those of an engine that may be running in it."""
    from vllm.distributed import init_distributed_environment, initialize_model_parallel, parallel_state
    from vllm.distributed.parallel_state import destroy_distributed_environment, destroy_model_parallel

    running = torch.distributed.is_initialized()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as hidden:
        for name, value in list(vars(parallel_state).items()):
            if isinstance(value, parallel_state.GroupCoordinator):
                hidden.enter_context(mock.patch.object(parallel_state, name, None))
        init_distributed_environment(1, 0, f"file://{folder}/rendezvous", 0, "gloo")
        try:
            initialize_model_parallel(1)
            yield
        finally:
            destroy_model_parallel()
            if not running:
                destroy_distributed_environment()


def _gather_of(group: Any) -> Callable[..., torch.Tensor]:
    def gather(input_: torch.Tensor, dst: int = 0, dim: int = -1) -> torch.Tensor:
        """A gather moves to its one receiver what an all-gather moves to each; the shapes are equal."""
        return group.all_gather(input_, dim)

    return gather
