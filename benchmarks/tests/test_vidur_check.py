"""The check by Vidur's profiles: its operations are ours, and a factor between two ways of timing is a bias."""

from __future__ import annotations

import numpy as np

from benchmarks.vidur_check import Rows, _figures, _operations


def test_operations_are_those_of_a_rank() -> None:
    sizes = {"num_tensor_parallel_workers": 4, "n_head": 64, "n_kv_head": 8, "n_embd": 8192}
    operations = _operations({**sizes, "n_expanded_embd": 28672, "use_gated_mlp": 1})
    weights = {
        name: shape
        for name, each in operations.items()
        for role, _, shape in each.tensors
        if each.name == "linear"
        if role == "weight"
    }
    assert weights == {
        "attn_pre_proj": (2560, 8192),
        "attn_post_proj": (8192, 2048),
        "mlp_up_proj": (14336, 8192),
        "mlp_down_proj": (8192, 7168),
    }


def test_a_factor_is_a_bias_without_spread() -> None:
    measured_s, tokens = np.array([1e-3, 2e-3, 4e-3]), np.array([1.0, 64.0, 65.0])
    rows = Rows("add", "estimate", measured_s, measured_s / 2, np.full(3, np.nan), tokens)
    assert _figures([rows]).split() == ["3", "|", "50.0%", "-50.0%", "50.0%", "|", "0.0%", "|", "none"]
    assert list(rows.between(1, 65).measured_s) == [1e-3, 2e-3]
