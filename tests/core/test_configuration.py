import dataclasses
import json
from pathlib import Path

import pytest

from pytest_dooly.core.configuration import ServingOptions, aliases, resolve
from pytest_dooly.core.environment import content_hash
from pytest_dooly.errors import ConfigurationError, UnknownModelError

OTHER_OPTIONS = {
    "device": "cuda",
    "dtype": "float16",
    "attention_backend": "FLASH_ATTN",
    "kv_cache_dtype": "fp8",
    "block_size": 32,
    "tensor_parallel_size": 4,
    "expert_parallel_size": 2,
    "data_parallel_size": 2,
    "quantization": "fp8",
    "moe_precision": "mxfp4_mxfp8",
    "max_num_tokens": 512,
    "max_num_seqs": 8,
    "max_model_len": 1024,
    "execution": "cuda_graph",
}


def write_config(directory: Path, text: str = '{"architectures": ["LlamaForCausalLM"]}') -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(text)
    return directory


@pytest.mark.parametrize("alias", sorted(aliases()))
def test_an_alias_is_a_shipped_configuration(alias: str) -> None:
    configuration = resolve(alias)
    assert configuration.directory == aliases()[alias]
    assert configuration.document["architectures"]
    assert configuration.slug == alias


def test_the_models_of_the_readme_are_shipped() -> None:
    assert {"llama3", "llama-300m"} <= aliases().keys()


def test_a_directory_is_a_model(tmp_path: Path) -> None:
    configuration = resolve(str(write_config(tmp_path / "my-model")))
    assert configuration.document == {"architectures": ["LlamaForCausalLM"]}
    assert configuration.slug == "my-model"


def test_the_current_directory_has_a_slug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_config(tmp_path / "my-model"))
    assert resolve(".").slug == "my-model"


def test_a_hub_id_is_left_to_the_engine() -> None:
    configuration = resolve("organisation/model")
    assert (configuration.directory, configuration.document) == (None, {})
    assert configuration.slug == "organisation--model"


def test_a_directory_that_is_not_there_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve("cfg/none").directory is None
    (tmp_path / "cfg").mkdir()
    with pytest.raises(UnknownModelError, match="there is no directory 'cfg/none': name one that holds config.json"):
        resolve("cfg/none")


@pytest.mark.parametrize(
    "name", ["llama33", "/nowhere/model", "a/b/c", "./model", "../model", "organisation/", "/m", ""]
)
def test_an_unknown_name_is_answered_with_the_known_ones(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownModelError) as raised:
        resolve(name)
    assert str(raised.value).startswith(f"unknown model {name!r}: name one of {', '.join(aliases())}")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "not valid JSON"),
        ("[]", "must hold a JSON object, not a list"),
        ("{}", "names no 'architectures'"),
        ('{"architectures": []}', "names no 'architectures'"),
        ("\N{LATIN SMALL LETTER E WITH ACUTE}", "not valid JSON"),
    ],
)
def test_a_config_that_no_engine_can_build_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    directory = write_config(tmp_path, text)
    with pytest.raises(ConfigurationError, match=complaint) as raised:
        resolve(str(directory))
    assert str(directory / "config.json") in str(raised.value)


def test_a_directory_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        resolve(str(tmp_path))


@pytest.mark.parametrize("option", [f.name for f in dataclasses.fields(ServingOptions) if f.name != "max_captured"])
def test_every_option_that_changes_operations_is_part_of_the_key(option: str) -> None:
    usual = ServingOptions(tensor_parallel_size=2)  # with which experts may be spread too
    options = dataclasses.replace(usual, **{option: OTHER_OPTIONS[option]})  # type: ignore[arg-type]
    for model in ("llama3", "organisation/model"):
        assert resolve(model, options).key != resolve(model, usual).key


def test_an_option_that_came_later_leaves_the_keys_of_before_as_they_were() -> None:
    before = dataclasses.asdict(ServingOptions())
    del before["max_captured"], before["data_parallel_size"]
    model = resolve("llama3")
    assert model.key == content_hash({"model": model.document, "options": before})


def test_what_is_captured_changes_no_operation() -> None:
    assert resolve("llama3", ServingOptions(max_captured=0)).key == resolve("llama3").key
    with pytest.raises(ConfigurationError, match="max-cudagraph-capture-size must be at least 0, got -1"):
        ServingOptions(max_captured=-1)


def test_the_key_sees_the_config_and_not_where_it_lies(tmp_path: Path) -> None:
    shipped = resolve("llama3")
    copy = write_config(tmp_path / "copy", json.dumps(dict(reversed(list(shipped.document.items())))))
    changed = write_config(tmp_path / "changed", json.dumps({**shipped.document, "hidden_size": 1}))
    assert resolve(str(copy)).key == shipped.key != resolve(str(changed)).key
    assert resolve("organisation/one").key != resolve("organisation/other").key


@pytest.mark.parametrize("option", ["block_size", "tensor_parallel_size", "max_num_tokens"])
def test_an_option_below_one_is_refused_by_its_flag(option: str) -> None:
    (flag,) = (field.metadata["flag"] for field in dataclasses.fields(ServingOptions) if field.name == option)
    with pytest.raises(ConfigurationError, match=f"{flag} must be at least 1, got 0"):
        ServingOptions(**{option: 0})  # type: ignore[arg-type]


def test_experts_are_spread_over_all_ranks_or_none() -> None:
    assert ServingOptions(tensor_parallel_size=2, data_parallel_size=4, expert_parallel_size=8).num_ranks == 8
    with pytest.raises(ConfigurationError, match="ep 2 beside tp 2 and dp 4: .* must be 1 or tp times dp"):
        ServingOptions(tensor_parallel_size=2, data_parallel_size=4, expert_parallel_size=2)
    assert ServingOptions(tensor_parallel_size=4, expert_parallel_size=4).expert_parallel_size == 4
    with pytest.raises(ConfigurationError, match="ep 2 beside tp 4: .* must be 1 or equal to tp"):
        ServingOptions(tensor_parallel_size=4, expert_parallel_size=2)


def test_an_unknown_precision_of_experts_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match="unknown moe-precision 'w4a8': name one of bf16, .*mxfp4_mxfp8"):
        ServingOptions(moe_precision="w4a8")


def test_an_unknown_device_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match="unknown device 'tpu': name cpu or cuda"):
        ServingOptions(device="tpu")


def test_an_unknown_execution_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match="unknown execution 'jit': name eager or cuda_graph"):
        ServingOptions(execution="jit")


def test_graphs_are_refused_where_there_are_none() -> None:
    assert ServingOptions(execution="cuda_graph").execution_on("cuda") == "cuda_graph"
    assert ServingOptions(device="cpu").execution_on("cpu") == "eager"
    with pytest.raises(ConfigurationError, match="execution cuda_graph needs device cuda: cpu has no CUDA graphs"):
        ServingOptions(device="cpu", execution="cuda_graph")
    with pytest.raises(ConfigurationError, match="needs device cuda"):
        ServingOptions(execution="cuda_graph").execution_on("cpu")
