"""A batch as vLLM's runner would hand it to the model: which one, in which order, with which attention metadata."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from pytest_dooly.core.batch import Batch, SweepPoint

__all__ = ["attention_metadata", "batch_at", "ordered", "position_axes", "positions_of"]

# A step's context where only the number of requests matters.
_SOME_CONTEXT = 16


def batch_at(point: SweepPoint, max_model_len: int, longest_decode: int | None) -> Batch:
    """The batch of a sweep point: its own, `ordered`, or one of as many requests or tokens as it says.

    Args:
        point: of an operation's sweep.
        max_model_len: longest sequence, in tokens.
        longest_decode: see `ordered`.
    """
    if point.batch is not None:
        return ordered(point.batch, longest_decode)
    if point.num_reqs is not None:
        return Batch.uniform(point.num_reqs, 1, _SOME_CONTEXT)
    assert point.num_tokens is not None
    whole, rest = divmod(point.num_tokens, max_model_len)
    return Batch.of([(max_model_len, 0)] * whole + [(rest, 0)] * bool(rest))


def ordered(batch: Batch, longest_decode: int | None) -> Batch:
    """The batch as the engine's runner orders it where the attention backend treats decodes apart.

    Decodes come first, then chunks of prompts, then their beginnings: one that finds them in another order takes
    all for prefills. Source: `reorder_batch_to_split_decodes_and_prefills` of vLLM.

    Args:
        batch: in any order.
        longest_decode: query length up to which the backend takes a request for a decode, the runner's
            `reorder_batch_threshold`; None where it does not care.
    """
    if longest_decode is None:
        return batch
    requests = sorted(batch.requests, key=lambda r: (r.context_len == 0, r.query_len > longest_decode))
    return Batch(tuple(requests))


def positions_of(batch: Batch) -> torch.Tensor:
    """Place of every new token in its sequence, shape (num_tokens,)."""
    return torch.cat([torch.arange(request.context_len, request.seq_len) for request in batch.requests])


def position_axes(model_config: Any) -> tuple[int, ...]:
    """What comes before num_tokens in the shape of positions: the axes of a rotation that knows images, else nothing.

    Args:
        model_config: vLLM's own.
    """
    return (int(getattr(model_config, "mrope_num_dims", 3)),) if model_config.uses_mrope else ()


def attention_metadata(group: Any, batch: Batch, device: torch.device) -> tuple[Any, torch.Tensor]:
    """The backend's own metadata of a batch, whose requests lie in consecutive KV blocks.

    Returns:
        metadata as the backend's builder makes it, and slot_mapping of shape (num_tokens,).
    """
    from vllm.v1.attention.backend import CommonAttentionMetadata

    query_lens = torch.tensor([request.query_len for request in batch.requests])
    seq_lens = torch.tensor([request.seq_len for request in batch.requests], dtype=torch.int32)
    starts = torch.zeros(batch.num_reqs + 1, dtype=torch.int32)
    starts[1:] = query_lens.cumsum(0)
    table, slots = _consecutive_blocks(batch, group.kv_cache_spec.block_size)
    slot_mapping = slots.to(device)
    common = CommonAttentionMetadata(
        query_start_loc=starts.to(device),
        query_start_loc_cpu=starts,
        seq_lens=seq_lens.to(device),
        num_reqs=batch.num_reqs,
        num_actual_tokens=batch.num_tokens,
        max_query_len=int(query_lens.max()),
        max_seq_len=int(seq_lens.max()),
        block_table_tensor=table.to(device),
        slot_mapping=slot_mapping,
        seq_lens_cpu_upper_bound=seq_lens,
        is_prefilling=torch.tensor([r.query_len > 1 or r.context_len == 0 for r in batch.requests]),
        positions=positions_of(batch).to(device),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of fields that FlashInfer's builder still reads
        return group.get_metadata_builder().build(common_prefix_len=0, common_attn_metadata=common), slot_mapping


def _consecutive_blocks(batch: Batch, block_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A block table of shape (num_reqs, most blocks of a request) from block 1 on, and the slots of all new tokens."""
    num_blocks = [-(-request.seq_len // block_size) for request in batch.requests]
    table = torch.zeros(batch.num_reqs, max(num_blocks), dtype=torch.int32)
    first, slots = 1, []
    for row, (request, count) in enumerate(zip(batch.requests, num_blocks, strict=True)):
        table[row, :count] = torch.arange(first, first + count)
        first += count
        position = torch.arange(request.context_len, request.seq_len)
        slots.append(table[row][position // block_size].long() * block_size + position % block_size)
    return table, torch.cat(slots)
