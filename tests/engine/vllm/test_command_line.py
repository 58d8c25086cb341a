"""The command line that a search prints is one that vLLM takes, and means what the search meant."""

from __future__ import annotations

import shlex

from tests.searching.test_command_line import COMMAND


def test_vllm_reads_every_option() -> None:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    read = parser.parse_args(shlex.split(COMMAND)[3:])
    assert (read.tensor_parallel_size, read.enable_expert_parallel) == (4, True)
    assert (read.max_num_seqs, read.max_num_batched_tokens, read.max_model_len) == (64, 2048, 4096)
    assert (read.kv_cache_dtype, read.enable_prefix_caching, read.async_scheduling) == ("fp8", False, False)
    assert (read.gpu_memory_utilization, read.quantization, read.dtype, read.block_size) == (0.8, "fp8", "bfloat16", 32)
