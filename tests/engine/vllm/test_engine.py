"""The adapter of vLLM on every architecture that is shipped: the oracles, parallel sizes, formats, versions."""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_dooly.core.batch import Batch
from pytest_dooly.core.configuration import ModelConfiguration, ServingOptions, aliases, resolve
from pytest_dooly.core.operation import REQUEST_SYMBOLS, Operation, OperationKind, TensorSpec, Trace, evaluate
from pytest_dooly.core.signature import ServedModel, data_parallel_size, model_operations
from pytest_dooly.engine.base import Engine
from pytest_dooly.errors import ConfigurationError, TraceError, UntestedEngineWarning
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.serving import serve
from pytest_dooly.tracing.trace import cover, observe, trace
from tests.models import LLAMA
from tests.samples import LIMITS

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")

OPTIONS = ServingOptions(device="cpu", max_model_len=256, max_num_tokens=256, max_num_seqs=8)
MODELS = (
    *("llama3", "mistral-7b", "qwen2.5-7b", "qwen3-8b", "qwen3-30b-a3b", "mixtral-8x7b", "deepseek-v2-lite"),
    *("gemma2-9b", "phi4", "command-r7b", "gpt-oss-20b", "falcon-h1-7b"),
)
"""One alias of every architecture that is shipped."""

NO_TRACE, REAL = frozenset({"deepseek-v2-lite"}), frozenset({"deepseek-v2-lite", "falcon-h1-7b"})
"""What vLLM 0.26 cannot build on a CPU, and what it cannot run there: latent attention, state-space kernels."""


BASES: dict[str, Trace] = {}
"""Small models as traced, by alias, which every other value is compared with."""


def skip_what_0_26_lacks(engine: Engine, alias: str, lacking: frozenset[str] = NO_TRACE) -> None:
    if engine.version.startswith("0.26") and alias in lacking:
        pytest.skip(f"vLLM 0.26 does not support {alias} on a CPU")


def in_small(alias: str) -> dict[str, Any]:
    from pytest_dooly.engine.vllm.small import in_small

    return in_small(resolve(alias).document, {})


def configured(folder: Path, document: Mapping[str, Any], **options: Any) -> ModelConfiguration:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(document), encoding="utf-8")
    return resolve(str(folder), ServingOptions(**{**vars(OPTIONS), **options}))


def sizes(operations: tuple[Operation, ...], values: Mapping[str, int]) -> list[tuple[str, str, list[int]]]:
    return [
        (operation.layer, tensor.name, [int(evaluate(dim, values)) for dim in tensor.shape])
        for operation in operations
        for tensor in tensors(operation)
    ]


def test_every_architecture_is_tested() -> None:
    shipped = {resolve(alias).document["architectures"][0] for alias in aliases()}
    assert {resolve(alias).document["architectures"][0] for alias in MODELS} == shipped


def variations(document: Mapping[str, Any]) -> st.SearchStrategy[dict[str, int]]:
    """Other configuration values that the architecture allows."""
    widths = st.integers(1, 6).map(lambda n: 128 * n)
    drawn: dict[str, st.SearchStrategy[Any]] = {"vocab_size": st.integers(200, 3000), "intermediate_size": widths}
    for name in ("moe_intermediate_size",):
        if document.get(name):
            drawn[name] = widths
    for name in ("num_experts", "num_local_experts", "n_routed_experts"):
        if document.get(name):
            drawn[name] = st.integers(2, 6).map(lambda n: 4 * n)
    if document.get("head_dim"):
        drawn["hidden_size"] = widths
    return st.fixed_dictionaries(drawn)


@pytest.mark.parametrize("alias", MODELS)
@settings(max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data(), num_tokens=st.integers(2, 250), num_reqs=st.integers(2, 8), kv_heads=st.sampled_from([1, 2, 4]))
def test_oracle_of_other_values(
    engine: Engine,
    alias: str,
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    num_tokens: int,
    num_reqs: int,
    kv_heads: int,
) -> None:
    """At other values exactly the dimensions change that are labelled dependent, and by their formula."""
    skip_what_0_26_lacks(engine, alias)
    document = in_small(alias)
    changes = data.draw(variations(document))
    per_kv_head = document["num_attention_heads"] // document["num_key_value_heads"]
    changes |= {"num_key_value_heads": kv_heads, "num_attention_heads": kv_heads * per_kv_head}
    if not document.get("head_dim") and not document.get("kv_lora_rank"):
        changes["hidden_size"] = 64 * changes["num_attention_heads"]
    folder = tmp_path_factory.mktemp("oracle")
    if alias not in BASES:
        BASES[alias], _ = trace(engine, configured(folder / "base", document))
    base = BASES[alias]
    other, _ = trace(
        engine, configured(folder / "other", {**document, **changes}), num_tokens=num_tokens, num_reqs=num_reqs
    )
    values = {**other.symbols, **dict.fromkeys(REQUEST_SYMBOLS, 19), "num_tokens": num_tokens, "num_reqs": num_reqs}
    assert sizes(base.operations, values) == sizes(other.operations, values)


@pytest.mark.parametrize("alias", MODELS)
def test_oracle_of_a_real_forward_pass(engine: Engine, alias: str) -> None:
    """The engine's own forward pass calls the same operations with the sizes that the expressions say."""
    skip_what_0_26_lacks(engine, alias, REAL)
    with engine.small(resolve(alias, OPTIONS)) as small:
        traced, _ = trace(engine, small)
        session = engine.open(small, kv_tokens=1024)
        try:
            for text in ("48", "4x1+16", "2x1+30,20+10,5"):
                assert_same(traced, observe(session, Batch.parse(text)), Batch.parse(text))
        finally:
            session.close()


def assert_same(traced: Trace, observed: Trace, batch: Batch) -> None:
    values = {**traced.symbols, "num_tokens": batch.num_tokens, "num_reqs": batch.num_reqs}
    expected = [each for each in traced.operations if each.kind is not OperationKind.OVERHEAD]
    assert [each.name for each in observed.operations] == [each.name for each in expected]
    for real, symbolic in zip(observed.operations, expected, strict=True):
        known = {tensor.name: [evaluate(dim, values) for dim in tensor.shape] for tensor in tensors(symbolic)}
        for tensor in real.inputs:
            # What no argument shows, as a request's share of the KV cache, stays symbolic on both sides.
            if not any(dim.free_symbols for dim in tensor.shape):
                assert list(tensor.shape) == known[tensor.name], f"{real.layer} {tensor.name} of {batch}"
        for tensor in real.parameters:
            # The CPU's kernels pack some weights after loading and leave nothing of the original.
            if product(tensor.shape) and tensor.name in known and len(tensor.shape) == len(known[tensor.name]):
                assert product(tensor.shape) >= product(known[tensor.name]), f"{real.layer} {tensor.name}"


def tensors(operation: Operation) -> tuple[TensorSpec, ...]:
    return operation.inputs + operation.parameters


def product(dims: Any) -> int:
    result = 1
    for dim in dims:
        result *= int(dim)
    return result


@pytest.mark.parametrize("alias", ["llama3", "mixtral-8x7b", "deepseek-v2-lite", "falcon-h1-7b"])
def test_the_trace_covers_the_real_forward_pass(engine: Engine, alias: str) -> None:
    skip_what_0_26_lacks(engine, alias, REAL)
    coverage = cover(engine, resolve(alias, OPTIONS))
    assert coverage.outside == ()
    assert coverage.share == 1
    assert coverage.ops > 100


def test_a_model_of_the_transformers_backend_is_traced_too(engine: Engine, tmp_path: Path) -> None:
    """VLLM has no layers of its own for it: attention is called past its hooks, and rotary is no layer."""
    if engine.version.startswith("0.26"):
        pytest.skip("the Transformers backend of vLLM 0.26 makes parameters anew, which fake tensors do not survive")
    document = {**in_small("llama3"), "architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3"}
    document |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "hidden_size": 256, "head_dim": 64}
    recorded, _ = trace(engine, configured(tmp_path, document))
    attention = [each for each in recorded.operations if each.kind is OperationKind.ATTENTION]
    assert len(attention) == document["num_hidden_layers"]
    assert str(attention[0].inputs[0].shape[0]) == "num_tokens"
    assert "linear" in {each.kind.value for each in recorded.operations}


MINIMAX = {
    "architectures": ["MiniMaxM2ForCausalLM"],
    "model_type": "minimax_m2",
    "num_hidden_layers": 2,
    "hidden_size": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "rotary_dim": 32,
    "intermediate_size": 128,
    "vocab_size": 1024,
    "num_experts_per_tok": 2,
    "num_local_experts": 8,
    "max_position_embeddings": 512,
    "rope_theta": 10000,
    "rms_norm_eps": 1e-6,
    "use_qk_norm": True,
    "scoring_func": "sigmoid",
    "torch_dtype": "bfloat16",
}
"""As in the configuration of MiniMaxAI/MiniMax-M2.5, with smaller sizes."""


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_sum_over_ranks_within_a_norm_is_a_collective(engine: Engine, tmp_path: Path, ranks: int) -> None:
    """Variances of queries and keys, two numbers of four bytes a token: MiniMax-M2 norms over all heads."""
    if engine.version.startswith("0.26"):
        pytest.skip("vLLM 0.26 has that norm elsewhere")
    recorded, _ = trace(engine, configured(tmp_path, MINIMAX, tensor_parallel_size=ranks))
    collectives = [op for op in model_operations(recorded) if op.signature.kind is OperationKind.COLLECTIVE]
    sums = [op for op in collectives if op.signature.tensors[0][1:] == ("fp32", ("num_tokens", 2))]
    assert [(op.signature.name, op.multiplicity) for op in sums] == ([("all_reduce", 2)] if ranks > 1 else [])


def traced(engine: Engine, alias: str, **options: Any) -> Trace:
    return trace(engine, resolve(alias, ServingOptions(device="cpu", **options)))[0]


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_a_rank_of_many_holds_its_share_and_sends_messages(engine: Engine, ranks: int) -> None:
    recorded = traced(engine, "llama3-70b", tensor_parallel_size=ranks)
    by_layer = {operation.layer: operation for operation in recorded.operations}
    down = by_layer["model.layers.3.mlp.down_proj"]
    assert [str(dim) for dim in down.parameters[0].shape] == ["hidden_size", "(intermediate_size // tp)"]
    qkv = [str(dim) for dim in by_layer["model.layers.3.self_attn.qkv_proj"].parameters[0].shape]
    kv_heads = "2*head_dim" if ranks == 8 else "2*head_dim*(num_key_value_heads // tp)"
    assert qkv == [f"head_dim*(num_attention_heads // tp) + {kv_heads}", "hidden_size"]
    sent = [op for op in model_operations(recorded) if op.signature.kind is OperationKind.COLLECTIVE]
    assert [(op.signature.name, op.multiplicity) for op in sent] == [("all_reduce", 161), ("all_gather", 1)]
    assert sent[0].origins[0][2] == ("num_tokens", "hidden_size")
    assert sent[1].origins[0][2] == ("num_reqs", "((64*((vocab_size + 63) // 64)) // tp)")
    assert dict(sent[0].signature.attributes)["ranks"] == ranks


@pytest.mark.parametrize(
    ("alias", "billions"),
    [("qwen3-30b-a3b", 30.53), ("mixtral-8x7b", 46.70), ("deepseek-v2-lite", 15.71), ("falcon-h1-7b", 7.59)],
)
def test_operations_read_as_many_parameters_as_were_published(engine: Engine, alias: str, billions: float) -> None:
    skip_what_0_26_lacks(engine, alias)
    recorded = traced(engine, alias)
    weights = {
        (each.layer, tensor.name): product(evaluate(dim, recorded.symbols) for dim in tensor.shape)
        for each in recorded.operations
        for tensor in each.parameters
    }
    assert sum(weights.values()) / 1e9 == pytest.approx(billions, rel=0.01)


@pytest.mark.parametrize("alias", MODELS)
def test_every_architecture_can_be_sharded(engine: Engine, alias: str) -> None:
    skip_what_0_26_lacks(engine, alias)
    recorded = traced(engine, alias, tensor_parallel_size=2)
    assert any("tp" in str(dim) for each in recorded.operations for tensor in each.parameters for dim in tensor.shape)
    assert any(each.kind is OperationKind.COLLECTIVE for each in recorded.operations)


def test_experts_are_spread_over_ranks(engine: Engine) -> None:
    recorded = traced(engine, "qwen3-30b-a3b", tensor_parallel_size=4, expert_parallel_size=4)
    experts = next(each for each in recorded.operations if each.kind is OperationKind.MOE)
    shapes = {tensor.name: [str(dim) for dim in tensor.shape] for tensor in experts.inputs + experts.parameters}
    assert shapes["routed_experts.w2_weight"] == ["(num_local_experts // tp)", "hidden_size", "moe_intermediate_size"]
    assert shapes["expert_input"] == ["tokens_per_expert", "hidden_size"]
    assert dict(experts.attributes)["num_local_experts"] == 32


def test_engines_that_share_experts_have_attention_of_their_own(engine: Engine) -> None:
    recorded = traced(engine, "qwen3-30b-a3b", data_parallel_size=8, expert_parallel_size=8)
    alone = {op.signature for op in model_operations(traced(engine, "qwen3-30b-a3b"))}
    others = [op.signature for op in model_operations(recorded) if op.signature not in alone]
    assert [each.kind for each in others] == [OperationKind.MOE]
    assert {"data_parallel": 8, "num_local_experts": 16}.items() <= dict(others[0].attributes).items()
    assert data_parallel_size(ServedModel("", "", "", LIMITS, model_operations(recorded))) == 8
    experts = next(each for each in recorded.operations if each.kind is OperationKind.MOE)
    shapes = {tensor.name: [str(dim) for dim in tensor.shape] for tensor in experts.inputs + experts.parameters}
    assert shapes["routed_experts.w2_weight"] == ["(num_local_experts // dp)", "hidden_size", "moe_intermediate_size"]


@pytest.mark.parametrize(
    ("model", "engines", "spread", "message"),
    [
        ("mixtral-8x7b", 16, 16, "ep 16 spreads the 8 experts"),
        ("llama3.2-1b", 2, 1, "dp 2 is for the experts of a mixture, which llama3.2-1b has none"),
    ],
)
def test_experts_that_are_not_there_are_not_shared(
    engine: Engine, tmp_path: Path, model: str, engines: int, spread: int, message: str
) -> None:
    options = ServingOptions(device="cpu", data_parallel_size=engines, expert_parallel_size=spread)
    configuration = resolve(model, options)
    with LatencyDB.open(tmp_path / "latency.db") as db:
        with pytest.raises(ConfigurationError, match=message):
            serve(engine, configuration, db, engine.environment(configuration))
        assert not db.models()


def test_without_expert_parallelism_engines_share_each_expert(engine: Engine) -> None:
    recorded = traced(engine, "qwen3-30b-a3b", data_parallel_size=2)
    experts = next(each for each in recorded.operations if each.kind is OperationKind.MOE)
    shapes = {tensor.name: [str(dim) for dim in tensor.shape] for tensor in experts.inputs + experts.parameters}
    assert shapes["routed_experts.w2_weight"][1:] == ["hidden_size", "(moe_intermediate_size // dp)"]


@pytest.mark.parametrize(("alias", "local"), [("qwen3-30b-a3b", 32), ("deepseek-v2-lite", 16)])
def test_ranks_of_engines_that_share_experts_have_a_share_of_tokens_each(
    engine: Engine, alias: str, local: int
) -> None:
    """Sequence parallelism of mixtures, as vLLM calls it: what a rank sends to the experts is no other's."""
    skip_what_0_26_lacks(engine, alias)
    recorded = traced(engine, alias, tensor_parallel_size=2, data_parallel_size=2, expert_parallel_size=4)
    experts = next(each for each in recorded.operations if each.kind is OperationKind.MOE)
    attributes = {"data_parallel": 2, "sequence_parallel": 2, "num_local_experts": local}
    assert attributes.items() <= dict(experts.attributes).items()
    sent = [op for op in model_operations(recorded) if op.signature.name == "all_gather"]
    assert any("// " in str(op.signature.tensors[0][2][0]) for op in sent)  # half of the tokens each


def test_formats_that_change_the_kernel_are_part_of_the_signature(engine: Engine) -> None:
    plain = {op.signature for op in model_operations(traced(engine, "llama3"))}
    for options, kinds in [
        ({"quantization": "fp8"}, {"linear"}),
        ({"kv_cache_dtype": "fp8"}, {"attention"}),
    ]:
        others = {op.signature for op in model_operations(traced(engine, "llama3", **options))}
        assert {signature.kind.value for signature in others - plain} == kinds


def test_latent_attention_and_experts_in_formulas(engine: Engine) -> None:
    skip_what_0_26_lacks(engine, "deepseek-v2-lite")
    by_layer = {operation.layer: operation for operation in traced(engine, "deepseek-v2-lite").operations}
    attention = by_layer["model.layers.5.self_attn.mla_attn.mla_attn"]
    shapes = {t.name: [str(dim) for dim in t.shape] for t in attention.inputs + attention.parameters}
    assert shapes["q"] == ["num_tokens", "num_attention_heads", "qk_nope_head_dim + qk_rope_head_dim"]
    assert shapes["latents"] == ["context_len + query_len", "kv_lora_rank + qk_rope_head_dim"]
    assert shapes["kv_b_proj.weight"] == ["num_attention_heads*(qk_nope_head_dim + v_head_dim)", "kv_lora_rank"]
    experts = by_layer["model.layers.5.mlp.experts"]
    shapes = {t.name: [str(dim) for dim in t.shape] for t in experts.parameters}
    assert shapes["_shared_experts._layer.down_proj.weight"] == [
        "hidden_size",
        "moe_intermediate_size*n_shared_experts",
    ]
    assert "model.layers.0.mlp.gate_up_proj" in by_layer


def test_an_architecture_that_cannot_be_traced_is_named(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.model_executor.layers.activation import SiluAndMul

    def broken(self: object, x: object) -> None:
        raise NotImplementedError("no kernel here")

    monkeypatch.setattr(SiluAndMul, "forward_cpu", broken, raising=False)
    monkeypatch.setattr(SiluAndMul, "forward_native", broken)
    with pytest.raises(TraceError, match=r"LlamaForCausalLM .*mlp\.act_fn .*no kernel here"):
        traced(engine, "llama-tiny")


@pytest.mark.parametrize(("version", "warned"), [("0.25.1", True), ("0.26.0", False), ("0.33.0", True)])
def test_an_untested_version_is_named(monkeypatch: pytest.MonkeyPatch, version: str, warned: bool) -> None:
    from pytest_dooly.engine.vllm import engine as vllm_engine

    monkeypatch.setattr(vllm_engine, "installed_version", lambda: version)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        vllm_engine.VllmEngine()
    texts = [str(each.message) for each in caught if each.category is UntestedEngineWarning]
    assert bool(texts) is warned
    if warned:
        assert f"vLLM {version} is outside of the tested range, 0.26.0 to 0.32.0" in texts[0]


@pytest.mark.parametrize(
    ("backend", "complaint"),
    [
        ("FASTEST", "vLLM .* refuses the configuration of .*: Unknown attention backend: 'FASTEST'. Valid options are"),
        ("FLASH_ATTN", "cannot serve .* with attention backend FLASH_ATTN: cpu runs CPU_ATTN instead"),
    ],
)
def test_an_attention_backend_that_cannot_be_had_is_named(
    engine: Engine, tmp_path: Path, backend: str, complaint: str
) -> None:
    with pytest.raises(ConfigurationError, match=complaint) as raised:
        trace(engine, configured(tmp_path, LLAMA, attention_backend=backend))
    assert "\n" not in str(raised.value)


def test_an_attention_backend_can_be_chosen(engine: Engine, tmp_path: Path) -> None:
    traced, _ = trace(engine, configured(tmp_path, LLAMA, attention_backend="CPU_ATTN"))
    (attention,) = {o.attributes for o in traced.operations if o.kind is OperationKind.ATTENTION}
    assert dict(attention)["backend"] == "CPU_ATTN"


def test_graphs_are_refused_on_a_cpu(engine: Engine, tmp_path: Path) -> None:
    configuration = configured(tmp_path, LLAMA, device=None, execution="cuda_graph")
    if torch.cuda.is_available():
        assert engine.environment(configuration).execution == "cuda_graph"
    else:
        with pytest.raises(ConfigurationError, match="execution cuda_graph needs device cuda"):
            engine.environment(configuration)
