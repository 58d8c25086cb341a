"""What is served: a model's config.json and the options it is served with."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pytest_dooly.core.device import DEVICES
from pytest_dooly.core.document import Document
from pytest_dooly.core.environment import CUDA_GRAPH, EAGER, content_hash
from pytest_dooly.errors import ConfigurationError, UnknownModelError

__all__ = ["ModelConfiguration", "ServingOptions", "aliases", "parse_options", "resolve"]

_PRECISIONS = ("bf16", "fp8", "fp8_block", "int4", "int8", "mxfp4", "mxfp4_mxfp8", "nvfp4")
"""That the kernels of a mixture's experts work in."""

_SHIPPED = Path(__file__).parent.parent / "models"


def _option(
    flag: str,
    description: str,
    default: int | str | None = None,
    *,
    least: int = 1,
    traced: bool = True,
    late: bool = False,
) -> Any:
    """A field with what its flag is called and does, the least number it takes, and whether operations depend on it.

    A late one counts in keys only where it is not the default, so that what was traced before it was there is found.
    """
    metadata = {"flag": flag, "help": description, "least": least, "traced": traced, "late": late}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class ServingOptions(Document):
    """Options of the engine; None leaves the engine's own default.

    Each is an option of the plugin (`--dooly-FLAG`) and of the CLI (`--FLAG`), with the flag in the field's metadata.
    """

    device: str | None = _option("device", "device to serve on: cpu or cuda")
    dtype: str | None = _option("dtype", "dtype of weights and activations, as in bfloat16")
    attention_backend: str | None = _option("attention-backend", "the engine's attention backend, as in FLASH_ATTN")
    kv_cache_dtype: str | None = _option("kv-cache-dtype", "dtype of the KV cache, as in fp8")
    block_size: int | None = _option("block-size", "tokens per KV-cache block")
    tensor_parallel_size: int = _option("tp", "tensor-parallel size: ranks that share each layer", 1)
    expert_parallel_size: int = _option("ep", "expert-parallel size: 1, or all ranks, tp times dp", 1)
    data_parallel_size: int = _option(
        "dp", "data-parallel size: engines, each of tp ranks, that share a mixture's experts", 1, late=True
    )
    quantization: str | None = _option("quantization", "how the engine quantises weights as it loads them, as in fp8")
    moe_precision: str | None = _option(
        "moe-precision", "what experts are computed from where the engine is told to, as in mxfp4_mxfp8"
    )
    execution: str = _option("execution", "how the model runs: eager (default), or cuda_graph to replay graphs", EAGER)
    max_num_tokens: int | None = _option("max-num-tokens", "most tokens of one step")
    max_num_seqs: int | None = _option("max-num-seqs", "most requests of one step")
    max_model_len: int | None = _option("max-model-len", "most tokens of one request, prompt and output together")
    max_captured: int | None = _option(
        "max-cudagraph-capture-size",
        "most tokens of a step that a GPU replays from a graph; 0 for none",
        least=0,
        traced=False,
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = field.metadata["least"]
            if isinstance(value, int) and value < least:
                raise ConfigurationError(f"{field.metadata['flag']} must be at least {least}, got {value}")
        if self.expert_parallel_size not in (1, self.num_ranks):
            apart = self.data_parallel_size > 1
            beside = f"tp {self.tensor_parallel_size}" + f" and dp {self.data_parallel_size}" * apart
            raise ConfigurationError(
                f"ep {self.expert_parallel_size} beside {beside}: experts are spread over all ranks or over none, "
                f"so ep must be 1 or {'tp times dp' if apart else 'equal to tp'}"
            )
        if self.device not in (None, "cpu", "cuda", *(gpu.name for gpu in DEVICES)):
            raise ConfigurationError(f"unknown device {self.device!r}: name cpu or cuda, or a GPU as in h200_sxm")
        if self.execution not in (EAGER, CUDA_GRAPH):
            raise ConfigurationError(f"unknown execution {self.execution!r}: name {EAGER} or {CUDA_GRAPH}")
        if self.moe_precision not in (None, *_PRECISIONS):
            raise ConfigurationError(
                f"unknown moe-precision {self.moe_precision!r}: name one of {', '.join(_PRECISIONS)}"
            )
        if self.device == "cpu":
            self.execution_on(self.device)

    @property
    def num_ranks(self) -> int:
        """GPUs of one deployment: the ranks of all its engines."""
        return self.tensor_parallel_size * self.data_parallel_size

    @property
    def ranks(self) -> dict[str, int]:
        """How many share each layer, are engines apart and share experts, by flag."""
        return {"tp": self.tensor_parallel_size, "dp": self.data_parallel_size, "ep": self.expert_parallel_size}

    @property
    def named(self) -> dict[str, int | str]:
        """What is not the default, by field."""
        usual = {field.name: field.default for field in dataclasses.fields(self)}
        return {name: value for name, value in dataclasses.asdict(self).items() if value != usual[name]}

    def execution_on(self, device: str) -> str:
        """How the model runs on a device, cpu or cuda or a GPU by name.

        Raises:
            ConfigurationError: the device has no graphs to replay.
        """
        if self.execution == CUDA_GRAPH and device == "cpu":
            raise ConfigurationError(f"execution {CUDA_GRAPH} needs device cuda: {device} has no CUDA graphs")
        return self.execution


@dataclass(frozen=True)
class ModelConfiguration:
    """A model as it is served.

    Attributes:
        name: alias, directory or hub id as the user wrote it.
        directory: holds config.json; None for a hub id.
        options: of the engine.
    """

    name: str
    directory: Path | None
    options: ServingOptions

    @cached_property
    def document(self) -> Mapping[str, Any]:
        """The parsed config.json; empty for a hub id, which only the engine can read."""
        return {} if self.directory is None else _read(self.directory / "config.json")

    @property
    def key(self) -> str:
        """Content hash of config.json and options; a hub id stands for its config."""
        model: object = self.document or self.name
        values = dataclasses.asdict(self.options)
        fields = [field for field in dataclasses.fields(self.options) if field.metadata["traced"]]
        counted = [field.name for field in fields if not field.metadata["late"] or values[field.name] != field.default]
        options = {name: values[name] for name in counted}
        return content_hash({"model": model, "options": options})

    @property
    def slug(self) -> str:
        """The name as a part of a file name."""
        return self.directory.resolve().name if self.directory else self.name.replace("/", "--")


def parse_options(texts: Mapping[str, str | None]) -> ServingOptions:
    """The options given as text by flag; None and a missing flag leave the default.

    Raises:
        ConfigurationError: a value is no number where one is needed, or out of range.
    """
    values: dict[str, Any] = {}
    for field in dataclasses.fields(ServingOptions):
        flag = field.metadata["flag"]
        text = texts.get(flag)
        if text is None:
            continue
        try:
            values[field.name] = int(text) if "int" in str(field.type) else text
        except ValueError as error:
            raise ConfigurationError(f"{flag} must be a whole number, got {text!r}") from error
    return ServingOptions(**values)


def aliases() -> dict[str, Path]:
    """Directories of the shipped configurations by alias."""
    return {path.parent.name: path.parent for path in sorted(_SHIPPED.glob("*/config.json"))}


def resolve(name: str, options: ServingOptions | None = None) -> ModelConfiguration:
    """The configuration that a user means by an alias, a directory with config.json, or a hub id.

    Raises:
        UnknownModelError: neither an alias nor a directory, and no hub id (`organisation/model`) by its form.
        ConfigurationError: the directory's config.json is missing or no JSON object.
    """
    options = options or ServingOptions()
    directory = aliases().get(name)
    if directory is None and name and Path(name).is_dir():
        directory = Path(name)
    if directory is None and _is_hub_id(name) and Path(name).parent.is_dir():  # no hub needs to be asked for minutes
        raise UnknownModelError(
            f"there is no directory {name!r}: name one that holds config.json, one of {', '.join(aliases())}, or a hub "
            "id (organisation/model) whose first part is no directory here"
        )
    if directory is None and not _is_hub_id(name):
        raise UnknownModelError(
            f"unknown model {name!r}: name one of {', '.join(aliases())}, a directory that holds config.json, "
            "or a hub id (organisation/model)"
        )
    configuration = ModelConfiguration(name, directory, options)
    if directory is not None and not configuration.document.get("architectures"):
        raise ConfigurationError(
            f"{directory / 'config.json'} names no 'architectures', so the engine cannot tell which model to build"
        )
    return configuration


def _is_hub_id(name: str) -> bool:
    organisation, slash, model = name.partition("/")
    return bool(slash and organisation and model) and "/" not in model and not name.startswith(".")


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(
            f"cannot read {path}: {error.strerror}; a model directory holds config.json"
        ) from error
    except ValueError as error:
        raise ConfigurationError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise ConfigurationError(f"{path} must hold a JSON object, not a {type(document).__name__}")
    return document
