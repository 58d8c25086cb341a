"""Batches as vLLM's attention backends want them: their order, and all that a builder reads."""

from __future__ import annotations

import importlib.util
import re
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pytest_dooly.core.batch import Batch
from pytest_dooly.engine.base import Engine
from pytest_dooly.engine.vllm import batches


@pytest.mark.parametrize(
    ("longest_decode", "ordered"),
    [(None, "64,1+9,32+16,2x1+30"), (1, "1+9,2x1+30,32+16,64"), (32, "1+9,32+16,2x1+30,64")],
)
def test_batches_are_ordered_as_the_attention_backend_wants_them(longest_decode: int | None, ordered: str) -> None:
    assert batches.ordered(Batch.parse("64,1+9,32+16,2x1+30"), longest_decode) == Batch.parse(ordered)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
@pytest.mark.parametrize("backend", ["flash_attn", "triton_attn", "flashinfer"])
def test_builders_of_attention_metadata_find_what_they_read(engine: Engine, backend: str) -> None:
    """They run on a GPU only, so what they read is read off their source."""
    built: list[Any] = []
    builder = SimpleNamespace(build=lambda common_prefix_len, common_attn_metadata: built.append(common_attn_metadata))
    group = SimpleNamespace(kv_cache_spec=SimpleNamespace(block_size=16), get_metadata_builder=lambda: builder)
    batches.attention_metadata(group, Batch.parse("2x1+30,40"), torch.device("cpu"))
    package = importlib.util.find_spec("vllm.v1.attention.backends")
    assert package is not None
    assert package.submodule_search_locations
    source = Path(package.submodule_search_locations[0], f"{backend}.py").read_text(encoding="utf-8")
    read = set(re.findall(r"\bcommon_attn_metadata\.(\w+)", source))
    # Of multimodal prompts, of reference windows and of contexts that ranks share: a builder copes without.
    optional = {"mm_req_doc_ranges", "rswa_prefix_lens", "dcp_local_seq_lens"}
    assert {"query_start_loc", "block_table_tensor", "slot_mapping"} <= read
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert [name for name in sorted(read - optional) if getattr(built[0], name) is None] == []
