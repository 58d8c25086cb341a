"""The fixture through which a case is timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import pytest

from pytest_dooly.errors import DoolyError
from pytest_dooly.plugin.session import PLUGIN, DoolyPlugin

if TYPE_CHECKING:
    from pytest_dooly.profiling import Rounds
    from pytest_dooly.sweep.plan import Case

__all__ = ["dooly_time", "timing"]


class _Enough(BaseException):
    """Ends the rounds of a case; no Exception, which pytest-benchmark would take for a failure of the operation."""


@pytest.fixture
def dooly_time(request: pytest.FixtureRequest, benchmark: Any) -> Callable[[Case], None]:
    """Times a case through pytest-benchmark and commits its outcome to the latency DB."""
    plugin = cast("DoolyPlugin", request.config.pluginmanager.get_plugin(PLUGIN))

    def rounds(
        run: Callable[[], object],
        before: Callable[[], None],
        enough: Callable[[Sequence[float]], bool],
        most: int,
    ) -> Sequence[float]:
        def setup() -> None:
            if benchmark.stats and enough(benchmark.stats.stats.data):
                raise _Enough
            before()

        with suppress(_Enough):
            benchmark.pedantic(run, setup=setup, rounds=most)
        return benchmark.stats.stats.data if benchmark.stats else ()

    def time(case: Case) -> None:
        benchmark.extra_info.update(
            signature=case.operation.signature.key,
            point=str(case.point),
            environment=plugin.profiling.plan.environment.key,
        )
        try:
            timing(request, plugin, case, rounds)
        except pytest.fail.Exception:
            benchmark.skipped = True  # else pytest-benchmark warns of a fixture that was not used
            raise

    return time


def timing(request: pytest.FixtureRequest, plugin: DoolyPlugin, case: Case, rounds: Rounds) -> None:
    """Times a case in a test, whose outcome is the case's, and says what came of it in JUnit's words and to the hooks.

    Args:
        request: of the test.
        plugin: of the session.
        case: what is timed.
        rounds: runs it for several rounds.
    """
    try:
        outcome = plugin.profiling.time(case, rounds)
    except DoolyError as error:  # no other case would fare better
        pytest.exit(str(error), returncode=pytest.ExitCode.TESTS_FAILED)
    if outcome is None:
        return
    from pytest_dooly.core.measurement import Measurement

    properties: dict[str, object] = {"operation": case.operation.signature.label, "point": str(case.point)}
    if isinstance(outcome, Measurement):
        properties |= {"latency_s": outcome.median_s, "rounds": outcome.rounds, "noise": outcome.noise}
    request.node.user_properties.extend(properties.items())
    request.config.hook.pytest_dooly_measured(config=request.config, case=case, outcome=outcome)
    if not isinstance(outcome, Measurement):
        pytest.fail(f"{case.id}: {outcome.reason}", pytrace=False)
