"""`-n N` with pytest-xdist: one accelerator a worker, an operation's cases on one worker, all in one latency DB.

The controller traces, plans and says so in the header; its workers find the trace in the latency DB, time what they are
dealt and commit it there; the controller fits the regressors once, at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from pytest_dooly.plugin.fixtures import timing
from pytest_dooly.plugin.session import DoolyPlugin
from pytest_dooly.plugin.settings import serving_options, setting, usage_errors

if TYPE_CHECKING:
    from pytest_dooly.core.profiled import Share
    from pytest_dooly.sweep.plan import Case

__all__ = ["Controller", "Worker", "accelerators", "session_plugin"]

_CASES, _ENVIRONMENT, _SHARE = "dooly_cases", "dooly_environment", "dooly_share"
"""What a controller tells its workers, and what they tell it."""


def session_plugin(config: pytest.Config) -> DoolyPlugin:
    """The plugin of a session: alone, of the controller of several workers, or of one of these."""
    if hasattr(config, "workerinput"):
        return Worker(config)
    if config.getoption("dist", "no") != "no" and config.getoption("tx") and not config.option.collectonly:
        return Controller(config)
    return DoolyPlugin(config)


def accelerators(config: pytest.Config) -> tuple[str, ...]:
    """Accelerators that workers can have, by their names in CUDA_VISIBLE_DEVICES; none on a CPU.

    Raises:
        DoolyError: the engine cannot be loaded, or the model or an option is no such thing.
    """
    from pytest_dooly.core.configuration import resolve
    from pytest_dooly.engine import load_engine

    configuration = resolve(setting(config, "model")[0], serving_options(config))
    return load_engine(setting(config, "engine") or "vllm").accelerators(configuration)


class Controller(DoolyPlugin):
    """The session that others work for: it plans and sums up, and times nothing."""

    def __init__(self, config: pytest.Config) -> None:
        """Remembers the session's configuration."""
        super().__init__(config)
        self._shares: list[Share] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        """Deals the accelerators, then traces and plans, before xdist starts the workers."""
        with usage_errors():
            self._config.option.tx = _dealt(self._config, accelerators(self._config))
        super().pytest_sessionstart()

    def pytest_configure_node(self, node: Any) -> None:
        """Tells a worker the order of the cases, also one that takes the place of another and finds more measured."""
        node.workerinput[_CASES] = [case.id for case in self.cases]
        node.workerinput[_ENVIRONMENT] = str(self.profiling.plan.environment)

    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        """Deals by operation."""
        from pytest_dooly.plugin.dealing import OperationScheduling

        return OperationScheduling(config, log, cases=self.cases)

    def pytest_testnodedown(self, node: Any) -> None:
        """Takes down what a worker has done; one that was killed has said nothing."""
        from pytest_dooly.core.profiled import Share

        document = getattr(node, "workeroutput", {}).get(_SHARE)
        if document is not None:
            self._shares.append(Share.from_json(document))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Counts what the workers have recorded, fits the regressors and writes the reports."""
        if self._started:
            self._asked = True  # of the workers
            self.profiling.take_over(self._shares)
        super().pytest_sessionfinish(session)


class Worker(DoolyPlugin):
    """A session that times what it is dealt, on an accelerator of its own."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        """Opens the latency DB, in which the controller has put the trace."""
        super().pytest_sessionstart()
        planned = self._config.workerinput[_ENVIRONMENT]  # type: ignore[attr-defined]
        here = str(self.profiling.plan.environment)
        if here != planned:
            raise pytest.UsageError(
                f"the plan is for {planned}, a worker has {here}: leave that accelerator out of CUDA_VISIBLE_DEVICES"
            )

    @property
    def cases(self) -> Sequence[Case]:
        """The cases in the controller's order: xdist wants every worker to have the same."""
        positions = {name: i for i, name in enumerate(self._config.workerinput[_CASES])}  # type: ignore[attr-defined]
        return sorted(self.profiling.plan.cases, key=lambda case: positions.get(case.id, len(positions)))

    @pytest.fixture
    def dooly_time(self, request: pytest.FixtureRequest) -> Callable[[Case], None]:
        """Times a case without pytest-benchmark, which switches itself off in a worker."""
        if request.config.getoption("benchmark_skip"):
            pytest.skip("Benchmarks are skipped (--benchmark-skip was used).")
        disabled = request.config.getoption("benchmark_disable") and not request.config.getoption("benchmark_enable")

        def time(case: Case) -> None:
            from pytest_dooly.timing.measure import rounds_by

            timing(request, self, case, _once if disabled else rounds_by(self.profiling.timer(case)))

        return time

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Keeps which sweeps are decided on, and tells the controller what is not in the latency DB."""
        if not self._started:
            return
        self.profiling.close()
        self.profiling.settle()
        output: dict[str, Any] = self._config.workeroutput  # type: ignore[attr-defined]
        output[_SHARE] = self.profiling.share().to_json()


def _once(run: Callable[[], object], *_: object) -> Sequence[float]:
    """A round that is not timed, for `--benchmark-disable`."""
    run()
    return ()


def _dealt(config: pytest.Config, entries: Sequence[str]) -> list[str]:
    """The workers' specifications, each with the accelerator that its worker may see.

    Raises:
        UsageError: there are fewer accelerators than workers, or a worker is somewhere else.
    """
    from execnet import XSpec
    from xdist.workermanage import parse_tx_spec_config

    from pytest_dooly.engine.accelerators import VISIBLE

    if not entries:
        raise pytest.UsageError("--dooly-model times operations one at a time: drop '-n', or use '-n 0'")
    if config.getoption("dist") == "each":
        raise pytest.UsageError("--dist=each would time every case on every worker: name another --dist, or none")
    specs = parse_tx_spec_config(config)
    # Where the user has dealt himself, that stands.
    taken = {named for spec in specs if (named := XSpec(spec).env.get(VISIBLE)) is not None}
    left = [spec for spec in specs if VISIBLE not in XSpec(spec).env]
    free = iter([entry for entry in entries if entry not in taken])
    if len(specs) > len(entries):
        there = f"{len(entries)} accelerator{'s' if len(entries) > 1 else ''} ({', '.join(entries)})"
        raise pytest.UsageError(
            f"{len(specs)} workers need an accelerator each, there are {there}: use -n {len(entries)}"
        )
    dealt = []
    for spec in specs:
        if not XSpec(spec).popen:
            raise pytest.UsageError(f"--tx {spec} is no process of this machine, whose latency DB all workers write to")
        dealt.append(f"{spec}//env:{VISIBLE}={next(free)}" if spec in left else spec)
    return dealt
