"""What vLLM would run on a GPU that is not here."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from types import ModuleType

import pytest
import torch

from pytest_dooly.core.configuration import ModelConfiguration, ServingOptions, resolve
from pytest_dooly.core.device import device_named
from pytest_dooly.core.operation import OperationKind
from pytest_dooly.core.signature import ModelOperation, model_operations
from pytest_dooly.engine.base import Engine
from pytest_dooly.engine.vllm import absent_gpu
from pytest_dooly.errors import EngineError
from pytest_dooly.published.aiconfigurator.mapping import latent_signature
from pytest_dooly.published.family import parts_of
from pytest_dooly.tracing.apart import in_own_process
from pytest_dooly.tracing.trace import _traced_by
from tests.models import DEEPSEEK_V32, LLAMA, write

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here"),
]

Operations = dict[str, ModelOperation]


def traced_on(configuration: ModelConfiguration) -> tuple[ModelOperation, ...]:
    return model_operations(_traced_by("vllm", configuration, 37, 5)[0])


def traced_here(*configurations: ModelConfiguration) -> list[Operations]:
    """Traces of one process, for the same GPU."""
    return [{o.signature.label: o for o in traced_on(each)} for each in configurations]


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> list[Operations]:
    folder = tmp_path_factory.mktemp("models")
    options = ServingOptions(device="h200_sxm", max_model_len=512)
    sparse = write(folder / "sparse", DEEPSEEK_V32, num_hidden_layers=2, first_k_dense_replace=1)
    # Another checkpoint of it runs as a rank of eight.
    return in_own_process(
        traced_here,
        resolve(str(write(folder / "llama", LLAMA)), options),
        resolve(str(sparse), dataclasses.replace(options, tensor_parallel_size=8)),
    )


def test_layers_have_the_kernels_that_the_gpu_has_for_them(traced: list[Operations]) -> None:
    llama, sparse = traced
    attention = llama["attention-4h2kv64-bf16"]
    assert dict(attention.signature.attributes)["backend"] == "FLASH_ATTN"
    assert dict(llama["fused_add_rms_norm-256-bf16"].signature.attributes)["dispatch"] == "forward_cuda"
    assert ("weight", "bf16", ("2*intermediate_size", "hidden_size")) in llama["linear-256x1408-bf16"].origins
    assert {o.signature.name for o in llama.values() if o.signature.kind is OperationKind.OVERHEAD} == {
        "layer_launch",
        "step",
        "admission",
    }
    experts = dict(sparse["fused_moe-256e8-7168x512-bf16-fp8_block"].signature.attributes)
    assert experts["backend"] in ("DEEPGEMM", "FLASHINFER_CUTLASS", "TRITON", "VLLM_CUTLASS")
    assert sparse["all_reduce-7168-bf16-x8"].multiplicity == 5


def test_sparse_attention_is_a_layer_with_its_indexer(traced: list[Operations]) -> None:
    layer = traced[1]["mla_layer-16h1kv576-bf16-fp8_block"]
    assert layer.multiplicity == 2
    origins = {role: shape for role, _, shape in layer.origins}
    assert origins["latents"] == ("context_len + query_len", "kv_lora_rank + qk_rope_head_dim")
    assert origins["index_keys"] == ("context_len + query_len", "index_head_dim + 4*(index_head_dim // 128)")
    assert origins["indexer.wq_b.weight"] == ("index_head_dim*index_n_heads", "q_lora_rank")
    heads = "((num_attention_heads*(qk_nope_head_dim + qk_rope_head_dim)) // tp)"
    assert origins["q_b_proj.weight"] == (heads, "q_lora_rank")


def test_its_sizes_are_those_of_the_published_rows(traced: list[Operations]) -> None:
    names = ("hidden_size", "kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    index = {"index_heads": "index_n_heads", "index_head_size": "index_head_dim", "index_top_k": "index_topk"}
    sizes = {name: DEEPSEEK_V32[name] for name in names} | {ours: DEEPSEEK_V32[name] for ours, name in index.items()}
    published = latent_signature("FLASHMLA_SPARSE", 16, "fp8_block", "auto", tuple(sizes.items()))
    assert parts_of(traced[1]["mla_layer-16h1kv576-bf16-fp8_block"].signature) == parts_of(published)
    assert [part.family.kernel for part in parts_of(published)] == ["sparse latent prefill", "sparse latent decode"]


@pytest.mark.parametrize(
    ("device", "product"),
    [("cpu", None), (None, None), ("cuda", "NVIDIA H100 80GB HBM3"), ("b200_sxm", "NVIDIA B200")],
)
def test_a_gpu_that_is_asked_for_is_absent(engine: Engine, device: str | None, product: str | None) -> None:
    configuration = resolve("llama3", ServingOptions(device=device))
    assert engine.absent_device(configuration) == product
    if product is not None:
        environment = engine.environment(configuration)
        assert (environment.device, environment.driver, environment.clock) == (product, "none", "cuda_event")


def test_what_is_not_here_is_not_run(engine: Engine) -> None:
    configuration = resolve("llama3", ServingOptions(device="h200_sxm"))
    expected = "there is no NVIDIA H200 here: what would run on it can be traced and predicted, not run"
    with pytest.raises(EngineError, match=expected):
        engine.open(configuration)
    with pytest.raises(EngineError, match=expected):
        engine.server(configuration)
    with pytest.raises(EngineError, match=expected), engine.small(configuration):
        pass


def test_a_process_that_has_served_another_device_is_told_of_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm.anything", ModuleType("vllm.anything"))
    with pytest.raises(EngineError, match="cannot be told of an NVIDIA H200 here: this process has served another"):
        absent_gpu.describe(device_named("h200_sxm"))
    assert absent_gpu.described() is None
