"""Latency prediction for LLM serving; see README.md.

Public names are resolved when they are used: this package is loaded in every project that has the plugin installed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_dooly.core.batch import Batch, Request
    from pytest_dooly.core.configuration import ServingOptions, aliases, resolve
    from pytest_dooly.core.measurement import Failure, Measurement
    from pytest_dooly.core.traffic import Traffic, TrafficRequest
    from pytest_dooly.core.workload import Workload
    from pytest_dooly.errors import DoolyError, OutOfRangeWarning
    from pytest_dooly.hosts.backend import Backend, backend
    from pytest_dooly.latency_db.db import LatencyDB
    from pytest_dooly.prediction.forecast import predict
    from pytest_dooly.prediction.step import StepPrediction
    from pytest_dooly.prediction.workload import WorkloadPrediction
    from pytest_dooly.published.across_estimator import AcrossSizesRegressor
    from pytest_dooly.regress.estimator import RampRegressor
    from pytest_dooly.regress.frames import frame
    from pytest_dooly.report.findings import Summary
    from pytest_dooly.searching.ranking import Search
    from pytest_dooly.searching.search import search
    from pytest_dooly.simulation.predicted_model import PredictedModel
    from pytest_dooly.simulation.simulate import Simulation, simulate
    from pytest_dooly.step_timer import StepTimer
    from pytest_dooly.sweep.plan import Case

__all__ = [
    "AcrossSizesRegressor",
    "Backend",
    "Batch",
    "Case",
    "DoolyError",
    "Failure",
    "LatencyDB",
    "Measurement",
    "OutOfRangeWarning",
    "PredictedModel",
    "RampRegressor",
    "Request",
    "Search",
    "ServingOptions",
    "Simulation",
    "StepPrediction",
    "StepTimer",
    "Summary",
    "Traffic",
    "TrafficRequest",
    "Workload",
    "WorkloadPrediction",
    "aliases",
    "backend",
    "frame",
    "predict",
    "resolve",
    "search",
    "simulate",
]

_ROOMS = {
    "AcrossSizesRegressor": "published.across_estimator",
    "Backend": "hosts.backend",
    "Batch": "core.batch",
    "Case": "sweep.plan",
    "DoolyError": "errors",
    "Failure": "core.measurement",
    "LatencyDB": "latency_db.db",
    "Measurement": "core.measurement",
    "OutOfRangeWarning": "errors",
    "PredictedModel": "simulation.predicted_model",
    "RampRegressor": "regress.estimator",
    "Request": "core.batch",
    "Search": "searching.ranking",
    "ServingOptions": "core.configuration",
    "Simulation": "simulation.simulate",
    "StepPrediction": "prediction.step",
    "StepTimer": "step_timer",
    "Summary": "report.findings",
    "Traffic": "core.traffic",
    "TrafficRequest": "core.traffic",
    "Workload": "core.workload",
    "WorkloadPrediction": "prediction.workload",
    "aliases": "core.configuration",
    "backend": "hosts.backend",
    "frame": "regress.frames",
    "predict": "prediction.forecast",
    "resolve": "core.configuration",
    "search": "searching.search",
    "simulate": "simulation.simulate",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
