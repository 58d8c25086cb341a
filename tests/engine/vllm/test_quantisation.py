"""Quantised checkpoints as people have them: each is traced, and told by the precision that its kernels work in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.core.configuration import ServingOptions, resolve
from pytest_dooly.core.operation import OperationKind
from pytest_dooly.core.signature import Signature, model_operations
from pytest_dooly.engine import load_engine
from pytest_dooly.published.family import parts_of
from pytest_dooly.published.footprint import footprint
from pytest_dooly.sweep.roofline import flops_of
from pytest_dooly.tracing.trace import trace
from tests.models import LLAMA, write
from tests.samples import served, uses
from tests.traced import DEVICE


def _group(weights: Mapping[str, Any], inputs: Mapping[str, Any] | None, form: str, *ignored: str) -> dict[str, Any]:
    """A configuration of compressed-tensors, whose single group is all linears but the ignored ones."""
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "ignore": ["lm_head", *ignored],
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
    }


def _number(bits: int, kind: str, strategy: str, **others: Any) -> dict[str, Any]:
    return {"num_bits": bits, "type": kind, "strategy": strategy, "dynamic": False, "symmetric": True, **others}


FP8 = _number(8, "float", "tensor")
QUANTISED: dict[str, tuple[str, dict[str, Any]]] = {
    "fp8 static": ("fp8", {"quant_method": "fp8", "activation_scheme": "static"}),
    "fp8 dynamic": ("fp8", {"quant_method": "fp8", "activation_scheme": "dynamic"}),
    "fp8 in blocks": (
        "fp8_block",
        {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128]},
    ),
    "compressed-tensors fp8 static": ("fp8", _group(FP8, FP8, "float-quantized")),
    "compressed-tensors fp8 by channel": (
        "fp8",
        _group(_number(8, "float", "channel"), {**_number(8, "float", "token"), "dynamic": True}, "float-quantized"),
    ),
    "compressed-tensors fp8 in blocks": (
        "fp8_block",
        _group(
            _number(8, "float", "block", block_structure=[128, 128]),
            {**_number(8, "float", "group", group_size=128), "dynamic": True},
            "float-quantized",
        ),
    ),
    "compressed-tensors int8": (
        "int8",
        _group(_number(8, "int", "channel"), {**_number(8, "int", "token"), "dynamic": True}, "int-quantized"),
    ),
    "compressed-tensors w4a16": ("int4", _group(_number(4, "int", "group", group_size=128), None, "pack-quantized")),
    "compressed-tensors nvfp4": (
        "nvfp4",
        _group(
            _number(4, "float", "tensor_group", group_size=16),
            {**_number(4, "float", "tensor_group", group_size=16), "dynamic": "local"},
            "nvfp4-pack-quantized",
        ),
    ),
    "modelopt fp8": ("fp8", {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]}),
    "modelopt nvfp4": (
        "nvfp4",
        {
            **_group(_number(4, "float", "tensor"), _number(4, "float", "tensor"), ""),
            "quant_method": "modelopt",
            "quant_algo": "NVFP4",
            "kv_cache_quant_algo": "FP8",
            "group_size": 16,
        },
    ),
    "AWQ": ("int4", {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}),
    "GPTQ": ("int4", {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}),
    "GPTQ of 8 bits": (
        "int8_weights",
        {"quant_method": "gptq", "bits": 8, "group_size": 128, "desc_act": False, "sym": True},
    ),
    "FBGEMM fp8": (
        "fp8",
        {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": ["lm_head"]},
    ),
}
MOE = {
    **LLAMA,
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 256,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "attention_bias": False,
}
SHARED = {
    **MOE,
    "architectures": ["Qwen2MoeForCausalLM"],
    "model_type": "qwen2_moe",
    "shared_expert_intermediate_size": 512,
    "qkv_bias": True,
}
WIDE = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 1, "head_dim": 128}


def signatures(
    folder: Path, base: Mapping[str, Any], quantisation: Mapping[str, Any] | None, **options: Any
) -> list[Signature]:
    document = {**base, **WIDE}
    if quantisation is not None:
        document["quantization_config"] = quantisation
    configuration = resolve(str(write(folder, document)), ServingOptions(max_model_len=256, **options))
    return [each.signature for each in model_operations(trace(load_engine("vllm"), configuration)[0])]


def of_kind(found: list[Signature], kind: OperationKind) -> list[Signature]:
    return [signature for signature in found if signature.kind is kind]


@pytest.mark.parametrize("name", QUANTISED)
def test_linears_are_those_of_the_kernels_precision(name: str, tmp_path: Path) -> None:
    precision, quantisation = QUANTISED[name]
    plain, found = (of_kind(signatures(tmp_path, LLAMA, each), OperationKind.LINEAR) for each in (None, quantisation))
    assert {part.family.precision for signature in found for part in parts_of(signature)} == {precision}
    # Packed or not, a product is as large, and so is the work that it is.
    assert [part.sizes for s in found for part in parts_of(s)] == [part.sizes for s in plain for part in parts_of(s)]
    point = SweepPoint(num_tokens=7)
    assert [flops_of(s, point) for s in found] == [flops_of(s, point) for s in plain]


@pytest.mark.parametrize("name", ["fp8 in blocks", "modelopt nvfp4", "compressed-tensors w4a16"])
def test_experts_are_those_of_the_kernels_precision(name: str, tmp_path: Path) -> None:
    precision, quantisation = QUANTISED[name]
    plain, found = (of_kind(signatures(tmp_path, MOE, each), OperationKind.MOE)[0] for each in (None, quantisation))
    assert (parts_of(found)[0].family.kernel, parts_of(found)[0].family.precision) == ("experts", precision)
    assert parts_of(found)[0].sizes == parts_of(plain)[0].sizes


@pytest.mark.parametrize("name", ["AWQ", "GPTQ", "compressed-tensors w4a16", "fp8 in blocks"])
def test_shared_experts_and_routers_are_as_large_as_those_that_are_not_packed(name: str, tmp_path: Path) -> None:
    precision, quantisation = QUANTISED[name]
    plain, found = (of_kind(signatures(tmp_path, SHARED, each), OperationKind.MOE)[0] for each in (None, quantisation))
    assert len(parts_of(plain)) > 1
    assert [part.sizes for part in parts_of(found)] == [part.sizes for part in parts_of(plain)]
    assert {part.family.precision for part in parts_of(found)} == {precision, "bf16"}
    assert flops_of(found, SweepPoint(num_tokens=7)) == flops_of(plain, SweepPoint(num_tokens=7))


def test_weights_that_the_engine_quantises_as_it_loads_are_those_that_its_kernels_read(tmp_path: Path) -> None:
    plain, found = (signatures(tmp_path, MOE, None, quantization=each) for each in (None, "fp8"))
    products = (OperationKind.LINEAR, OperationKind.MOE)
    assert {p.family.precision for s in found if s.kind in products for p in parts_of(s)} == {"fp8"}
    held = [
        footprint(served(*(uses(s) for s in each if s.kind in products)), DEVICE, num_reqs=1, seq_len=1).weights_bytes
        for each in (plain, found)
    ]
    assert held[1] == held[0] / 2


def test_experts_are_computed_from_what_the_engine_is_told(tmp_path: Path) -> None:
    found = of_kind(
        signatures(tmp_path, MOE, {"quant_method": "mxfp4"}, moe_precision="mxfp4_mxfp8"), OperationKind.MOE
    )
    assert parts_of(found[0])[0].family.precision == "mxfp4_mxfp8"


def test_a_packed_weight_takes_half_a_byte(tmp_path: Path) -> None:
    (found, *_) = of_kind(signatures(tmp_path, LLAMA, QUANTISED["GPTQ"][1]), OperationKind.LINEAR)
    ((_, dtype, (outputs, inputs)),) = [tensor for tensor in found.tensors if tensor[0] == "weight"]
    assert dtype == "uint4"
    held = footprint(served(uses(found)), DEVICE, num_reqs=1, seq_len=1).weights_bytes
    assert 0.5 <= held / (int(outputs) * int(inputs)) < 0.55  # and the scales of its groups


def test_ignored_layers_keep_their_precision(tmp_path: Path) -> None:
    ignoring = _group(FP8, FP8, "float-quantized", "re:.*down_proj")
    found = of_kind(signatures(tmp_path, LLAMA, ignoring), OperationKind.LINEAR)
    assert (
        sorted(part.family.precision for signature in found for part in parts_of(signature)) == ["bf16"] + ["fp8"] * 3
    )
