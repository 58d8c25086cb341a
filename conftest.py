"""Hypothesis profiles for the project's own tests."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Registers and loads the profiles; a profiling run from this directory needs none and starts a second sooner."""
    if config.getoption("dooly_model", None):
        return
    from hypothesis import HealthCheck, Phase, settings

    # No deadline: the machine is shared. No shrinking by default: a failing trace takes seconds to repeat.
    settings.register_profile(
        "default",
        deadline=None,
        max_examples=30,
        phases=[Phase.explicit, Phase.reuse, Phase.generate],
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.register_profile("thorough", deadline=None, max_examples=500)
    if not config.getoption("--hypothesis-profile", None):
        settings.load_profile("default")
