"""What Vidur has to know of a predictor, a model and a GPU; it finds them among the subclasses of its own classes.

Fields of these classes are options of Vidur's command line, which reads their types: no annotation may be text here.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vidur.config import BaseExecutionTimePredictorConfig
from vidur.config.device_sku_config import BaseDeviceSKUConfig
from vidur.config.model_config import BaseModelConfig
from vidur.types import ActivationType, BaseIntEnum, NormType

from pytest_dooly.core.configuration import resolve
from pytest_dooly.core.device import DEVICES, Device
from pytest_dooly.core.language_model import language_model
from pytest_dooly.errors import ConfigurationError

__all__ = ["Dooly", "DoolyExecutionTimePredictorConfig", "add_devices", "add_model"]

_FIRST_KEY = 1001
"""Of ours, apart from Vidur's own, which count from 1."""

_ADDED: list[type] = []
"""Classes that Vidur finds among its own subclasses, which Python alone does not keep."""

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""What a config.json may call the number of experts of a mixture."""


class Dooly(BaseIntEnum):
    """The name `dooly` on Vidur's command line."""

    DOOLY = _FIRST_KEY


@dataclass
class DoolyExecutionTimePredictorConfig(BaseExecutionTimePredictorConfig):
    """Where step times come from; each field is `--dooly_execution_time_predictor_config_<field>`."""

    db: str = field(default=".dooly/latency.db", metadata={"help": "Latency DB of pytest-dooly."})
    model: str = field(default="", metadata={"help": "Its name in the latency DB, where Vidur has another one."})
    device: str = field(default="", metadata={"help": "GPU, as in h100_sxm, where Vidur has another one."})
    options: str = field(
        default="", metadata={"help": "What it is served with besides tp, as in max-num-tokens=8192,max-num-seqs=256."}
    )
    routing: str = field(default="trained", metadata={"help": "How a mixture's tokens spread over experts."})

    @staticmethod
    def get_type() -> Any:
        """The key that the predictor is registered by."""
        return Dooly.DOOLY


def add_devices() -> None:
    """Lets `--replica_config_device` name our GPUs."""
    known = {str(each.get_type()) for each in BaseDeviceSKUConfig.__subclasses__()}
    keys = BaseIntEnum("DoolyDevice", [(d.name.upper(), _FIRST_KEY + place) for place, d in enumerate(DEVICES)])
    for device in DEVICES:
        if device.name not in known:
            _add_device(device, keys[device.name.upper()])


def _add_device(device: Device, key: Any) -> None:
    sizes = {"fp16_tflops": round(device.flops_per_s / 1e12), "total_memory_gb": int(device.memory_bytes / (1 << 30))}
    _add("DoolyDeviceSKUConfig", BaseDeviceSKUConfig, sizes, get_type=lambda: key)


def _add(name: str, base: type, values: Mapping[str, Any], **named: Callable[[], Any]) -> None:
    """A subclass with other defaults, and with what Vidur finds it by."""
    types = {each.name: each.type for each in dataclasses.fields(base)}
    fields = [(each, types[each], field(default=value)) for each, value in values.items()]
    namespace = {each: staticmethod(function) for each, function in named.items()}
    _ADDED.append(dataclasses.make_dataclass(name, fields, bases=(base,), namespace=namespace))


def add_model(name: str) -> None:
    """Lets `--replica_config_model_name` name any model with a config.json.

    Args:
        name: an alias or a directory; one that Vidur knows stays as Vidur has it.

    Raises:
        UnknownModelError: it is neither, nor known to Vidur.
        ConfigurationError: it is a hub id that Vidur lacks, or its config.json does not say its sizes.
    """
    if name in _names(BaseModelConfig):
        return
    configuration = resolve(name)
    if configuration.directory is None:
        raise ConfigurationError(f"Vidur has no model {name!r}: name a directory that holds its config.json")
    try:
        sizes = _sizes(language_model(configuration.document))
    except KeyError as error:
        raise ConfigurationError(f"config.json of {name} does not say {error}, which Vidur needs") from error
    _add("DoolyModelConfig", BaseModelConfig, sizes, get_name=lambda: name)


def _names(of: Any) -> set[str]:
    """Of all models that Vidur knows; the class that they share has none of its own."""
    found = {of.get_name()} if hasattr(of, "get_name") else set()
    return found.union(*(_names(each) for each in of.__subclasses__()))


def _sizes(document: Mapping[str, Any]) -> dict[str, Any]:
    """Of one layer, as Vidur plans memory and counts operations by them; a mixture is as wide as all of its experts."""
    heads, width = document["num_attention_heads"], document.get("intermediate_size")
    experts = next((document[key] for key in _EXPERTS if document.get(key)), None)
    if experts is not None:
        width = (experts + (document.get("n_shared_experts") or 0)) * document.get("moe_intermediate_size", width)
    return {
        "num_layers": document["num_hidden_layers"],
        "num_q_heads": heads,
        "num_kv_heads": document.get("num_key_value_heads") or heads,
        "embedding_dim": document["hidden_size"],
        "mlp_hidden_dim": width or 4 * document["hidden_size"],
        "max_position_embeddings": document["max_position_embeddings"],
        "use_gated_mlp": True,
        "use_bias": bool(document.get("mlp_bias")),
        "use_qkv_bias": bool(document.get("attention_bias")),
        "activation": ActivationType.GELU if "gelu" in str(document.get("hidden_act")) else ActivationType.SILU,
        "norm": NormType.RMS_NORM,
        "post_attn_norm": True,
        "vocab_size": document["vocab_size"],
    }
