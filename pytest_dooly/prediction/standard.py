"""Steps and workloads that every model is predicted for."""

from __future__ import annotations

from pytest_dooly.core.batch import Batch, Limits
from pytest_dooly.core.workload import Workload

__all__ = ["standard_batches", "standard_workloads"]


def standard_workloads(limits: Limits) -> tuple[Workload, ...]:
    """One request and eight at once, of 512 prompt and 64 output tokens as far as the limits allow."""
    output_len = max(2, min(64, limits.max_model_len // 4))
    prompt_len = min(512, limits.max_model_len - output_len)
    return tuple(Workload(prompt_len, output_len, num) for num in sorted({1, min(8, limits.max_num_seqs)}))


def standard_batches(limits: Limits) -> tuple[Batch, ...]:
    """A prefill, a decode and a mixed step."""
    prompt_len = min(512, limits.max_num_tokens // 2, limits.max_model_len // 2)
    num = min(8, limits.max_num_seqs - 1)
    decodes = [(1, prompt_len)] * max(1, num)
    return Batch.uniform(1, prompt_len), Batch.of(decodes), Batch.of([*decodes, (prompt_len // 2, 0)])
