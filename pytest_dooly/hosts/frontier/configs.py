"""What Frontier has to know of a predictor; it reads the types of fields, so that no annotation may be text here."""

from dataclasses import dataclass, field
from typing import Any

from frontier.config import BaseExecutionTimePredictorConfig
from frontier.types import ExecutionTimePredictorType

__all__ = ["DoolyExecutionTimePredictorConfig"]


@dataclass
class DoolyExecutionTimePredictorConfig(BaseExecutionTimePredictorConfig):
    """Where step times come from; each field is `--dooly_execution_time_predictor_config_<field>`."""

    db: str = field(default=".dooly/latency.db", metadata={"help": "Latency DB of pytest-dooly."})
    model: str = field(default="", metadata={"help": "Its name in the latency DB, where Frontier has another one."})
    device: str = field(default="", metadata={"help": "GPU, as in h100_sxm, where Frontier has another one."})
    options: str = field(
        default="", metadata={"help": "What it is served with besides tp, as in max-num-tokens=8192,max-num-seqs=256."}
    )
    routing: str = field(default="trained", metadata={"help": "How a mixture's tokens spread over experts."})

    @staticmethod
    def get_type() -> Any:
        """One of Frontier's own keys, which it uses for no predictor of its own: it takes no other."""
        return ExecutionTimePredictorType.DUMMY


# Frontier looks there for the names in the annotations of the class that this one derives from.
DoolyExecutionTimePredictorConfig.__module__ = "frontier.config.config"
