"""SGLang Simulator with our step times: `"predictor": {"name": "dooly", …}` in its configuration.

The predictor holds `db`, and where they differ from what the rest of the configuration says `model`, `device`,
`options` and `routing`. Nothing of the simulator is edited: one method of it chooses among predictors, and is asked for
all others as before. `register()` makes ours known in this process. The simulator starts a new one for its scheduler,
which knows ours where `run_scheduler_process` is what it starts: `python -m pytest_dooly.hosts.sglang` is its server
with that, and its engine takes it as `run_scheduler_process_func`. Source: `tools/sglang-simulator` of
sgl-project/sglang (2026-08).
"""

from __future__ import annotations

from typing import Any

from pytest_dooly.errors import ConfigurationError
from pytest_dooly.hosts.backend import backend
from pytest_dooly.hosts.missing import host
from pytest_dooly.hosts.options import options_of

with host("SGLang Simulator", "install tools/sglang-simulator of a checkout of sgl-project/sglang"):
    from sglang_simulator.simulation.manager.config import ConfigManager

    # Here, not where it is called: it has to stand in for GPU kernels before SGLang's own classes are unpickled.
    from sglang_simulator.simulation.sglang.hook_bootstrap import run_simulator_scheduler_process
    from sglang_simulator.time_predictor.base import InferTimePredictor

__all__ = ["DoolyTimePredictor", "register", "run_scheduler_process"]

NAME = "dooly"


class DoolyTimePredictor(InferTimePredictor):
    """Step times of a latency DB."""

    def __init__(self, model: Any, hw: Any, config: Any, predictor: dict[str, str]) -> None:
        """Fills the tables.

        Args:
            model: what SGLang knows of the model; its path is the name in the latency DB where the predictor has none.
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
            predictor.get("model") or model.model_path,
            device=predictor.get("device") or hw.name,
            db=predictor.get("db", ".dooly/latency.db"),
            options=options_of(predictor.get("options", ""), config.tp_size),
            routing=predictor.get("routing", "trained"),
        )

    def predict_infer_time(self, batch: Any) -> float:
        """Seconds of a step; none of one without requests."""
        if batch.is_empty():
            return 0.0
        return self._backend.step_s(_lengths(request) for request in batch.reqs)


def _lengths(request: Any) -> tuple[int, int]:
    """query_len and context_len; the simulator counts the token that a decode is fed among those before it."""
    is_decode = request.extend_length == 1 and request.past_kv_length > 0
    return request.extend_length, request.past_kv_length - is_decode


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


def run_scheduler_process(*args: Any, **kwargs: Any) -> Any:
    """The simulator's scheduler, in the process that it starts for it, with our predictor known there."""
    register()
    return run_simulator_scheduler_process(*args, **kwargs)
