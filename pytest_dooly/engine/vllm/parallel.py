"""Parallel groups of vLLM in one process: what a rank of many holds and sends, without the others."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch

__all__ = ["COLLECTIVES", "one_engine", "one_of_many"]

COLLECTIVES: Mapping[str, str] = {
    "vllm::all_reduce": "all_reduce",
    "vllm::all_gather": "all_gather",
    "vllm::reduce_scatter": "reduce_scatter",
}
"""vLLM's own custom operators of its collectives, whose fake kernels give the shapes."""


@contextmanager
def one_of_many(config: Any, plant: Callable[[str, int], int]) -> Iterator[None]:
    """While open, this process is the first rank of the configuration's parallel groups.

    Args:
        config: vLLM's configuration; its tensor- and data-parallel sizes are planted as the symbols `tp` and `dp`.
        plant: called with name and value of a configuration integer; what it returns takes its place.
    """
    from vllm.distributed import parallel_state

    parallel = config.parallel_config
    sizes = {"tp": int(parallel.tensor_parallel_size), "dp": int(parallel.data_parallel_size)}
    with ExitStack() as undo:
        undo.enter_context(one_engine(config))
        undo.enter_context(_groups_of_one())
        planted = {name: plant(name, size) if size > 1 else 1 for name, size in sizes.items()}
        groups = {}
        if sizes["tp"] > 1:
            groups[parallel_state.get_tp_group()] = planted["tp"]
        if sizes["dp"] > 1:
            groups[parallel_state.get_dp_group()] = planted["dp"]
        if groups and parallel.enable_expert_parallel:
            groups[parallel_state.get_ep_group()] = planted["tp"] * planted["dp"]
        for group, size in groups.items():
            undo.enter_context(mock.patch.object(group, "world_size", size))
            undo.enter_context(mock.patch.object(group, "use_custom_op_call", new=True))
            undo.enter_context(mock.patch.object(group, "gather", _gather_of(group)))
        undo.enter_context(_fields(parallel, tensor_parallel_size=planted["tp"], data_parallel_size=planted["dp"]))
        yield


@contextmanager
def _fields(config: Any, **values: int) -> Iterator[None]:
    """While open, some fields of a configuration have other values, unchecked."""
    before = {name: getattr(config, name) for name in values}
    for name, value in values.items():
        object.__setattr__(config, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            object.__setattr__(config, name, value)


@contextmanager
def one_engine(config: Any) -> Iterator[None]:
    """While open, vLLM looks for no other engines, which it would wait for.

    Args:
        config: vLLM's configuration.
    """
    with _fields(config.parallel_config, data_parallel_size=1):
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
