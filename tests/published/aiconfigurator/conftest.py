from pathlib import Path

import pytest


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A package without tables, but with the config.json of one model."""
    (tmp_path / "systems" / "data").mkdir(parents=True)
    (tmp_path / "model_configs").mkdir()
    (tmp_path / "model_configs" / "deepseek-ai--DeepSeek-V3_config.json").write_text(
        '{"hidden_size": 7168, "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128,'
        ' "qk_rope_head_dim": 64, "v_head_dim": 128}'
    )
    return tmp_path
