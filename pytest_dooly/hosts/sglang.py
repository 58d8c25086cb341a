"""SGLang Simulator with our step times: `register()` makes `"predictor": {"name": "dooly", …}` known to it.

Called before the simulator reads its configuration, whose predictor then holds `db`, and where they differ from what
the rest of it says `model`, `device`, `options` and `routing`. Nothing of it is edited: one method of it chooses among
predictors, and is asked for all others as before. Source: `tools/sglang-simulator` of sgl-project/sglang (2026-08).
"""

from __future__ import annotations

from typing import Any

from pytest_dooly.errors import ConfigurationError
from pytest_dooly.hosts.backend import backend
from pytest_dooly.hosts.missing import host
from pytest_dooly.hosts.options import options_of

with host("SGLang Simulator", "install tools/sglang-simulator of a checkout of sgl-project/sglang"):
    from sglang_simulator.simulation.manager.config import ConfigManager
    from sglang_simulator.time_predictor.base import InferTimePredictor

__all__ = ["DoolyTimePredictor", "register"]

NAME = "dooly"


class DoolyTimePredictor(InferTimePredictor):
    """Step times of a latency DB."""

    def __init__(self, model: Any, hw: Any, config: Any, predictor: dict[str, str]) -> None:
        """Fills the tables.

        Args:
            model: what SGLang knows of the model; its name is that in the latency DB.
            hw: the accelerator; its name is that of the GPU, as in h100_sxm.
            config: of the scheduler: tensor-parallel size.
            predictor: its part of the simulator's configuration.

        Raises:
            ConfigurationError: something named is unknown, or there are pipeline stages or data-parallel ranks.
            DatabaseError: there is no latency DB, or it cannot be read.
            MissingMeasurements: the latency DB lacks the model.
        """
        super().__init__(model, hw, config)
        for size in ("pp_size", "dp_size", "cp_size"):
            if getattr(config, size, 1) not in (None, 1):
                raise ConfigurationError(
                    f"{size} {getattr(config, size)}: steps are predicted of tensor-parallel ranks"
                )
        self._backend = backend(
            predictor.get("model") or model.name,
            device=predictor.get("device") or hw.name,
            db=predictor.get("db", ".dooly/latency.db"),
            options=options_of(predictor.get("options", ""), config.tp_size),
            routing=predictor.get("routing", "trained"),
        )

    def predict_infer_time(self, batch: Any) -> float:
        """Seconds of a step; none of one without requests."""
        if batch.is_empty():
            return 0.0
        return self._backend.step_s((request.extend_length, request.past_kv_length) for request in batch.reqs)


def register() -> None:
    """Makes the predictor known, once or more often."""
    if getattr(ConfigManager, "knows_dooly", False):
        return
    theirs = ConfigManager.get_inference_time_predictor

    def chosen(cls: Any, model: Any, hw: Any, sched_config: Any) -> Any:
        predictor = cls._get_raw_config().get("predictor", {})
        ours = predictor.get("name") == NAME
        return DoolyTimePredictor(model, hw, sched_config, predictor) if ours else theirs(model, hw, sched_config)

    ConfigManager.get_inference_time_predictor = classmethod(chosen)
    ConfigManager.knows_dooly = True
