"""The server as it is started: by vLLM's own options, and what is said where it does not come up."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pytest_dooly.core.batch import Limits
from pytest_dooly.core.configuration import ServingOptions, resolve
from pytest_dooly.engine import load_engine
from pytest_dooly.engine.vllm import server
from pytest_dooly.engine.vllm.server import VllmServer, flags
from pytest_dooly.errors import EngineError
from tests.models import LLAMA, write

OPTIONS = ServingOptions(device="cpu", max_num_tokens=64, max_num_seqs=4, max_model_len=256)


@pytest.fixture
def stopped(tmp_path: Path) -> VllmServer:
    engine = load_engine("vllm")
    made = engine.server(resolve(str(write(tmp_path / "model", LLAMA)), OPTIONS))
    assert isinstance(made, VllmServer)
    return made


def test_it_schedules_as_it_was_profiled_and_with_prefix_caching(stopped: VllmServer) -> None:
    options = stopped.options
    assert options.limits == Limits(64, 4, 256)
    assert (options.block_size, options.num_blocks) == (128, 1 + 4 * 2)
    assert options.prefix_caching
    assert not options.async_scheduling


def test_vllm_takes_the_options(stopped: VllmServer, tmp_path: Path) -> None:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    stopped._folder = tmp_path
    model, *given = stopped._arguments()
    parsed = make_arg_parser(FlexibleArgumentParser()).parse_args(given)
    assert Path(model).name == "model"
    assert (parsed.load_format, parsed.max_num_batched_tokens, parsed.max_num_seqs) == ("dummy", 64, 4)
    assert (parsed.enable_prefix_caching, parsed.async_scheduling, parsed.enforce_eager) == (True, False, True)
    assert (parsed.num_gpu_blocks_override, parsed.block_size, parsed.host) == (9, 128, "127.0.0.1")


def test_flags_are_written_as_the_command_line_takes_them() -> None:
    assert flags({"enforce_eager": True, "async_scheduling": False}) == ["--enforce-eager", "--no-async-scheduling"]
    assert flags({"max_num_seqs": 4, "compilation_config": {"mode": 0}}) == [
        *("--max-num-seqs", "4"),
        *("--compilation-config", '{"mode": 0}'),
    ]


def test_one_that_dies_at_start_shows_the_end_of_its_log(stopped: VllmServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        server, "_COMMAND", (sys.executable, "-c", "import sys; sys.exit('ValueError: no memory left')")
    )
    with (
        pytest.raises(EngineError, match=r"has ended before it was up; its log ends:\nValueError: no memory left"),
        stopped,
    ):
        pytest.fail("it is not up")
