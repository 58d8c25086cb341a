"""Frontier's own command line, in which `--execution_time_predictor_config_type dummy` stands for our step times.

Nothing of Frontier is edited; it is on PYTHONPATH or installed. Prefill and decode stay on one engine: steps that are
split over several clusters are not predicted.
"""

from __future__ import annotations

import sys

from pytest_dooly.errors import DoolyError
from pytest_dooly.hosts.missing import host

__all__ = ["main"]


def main() -> None:
    """Runs Frontier; what goes wrong on our side is one message and exit status 1."""
    try:
        with host("Frontier", "install a clone of github.com/NetX-lab/Frontier"):
            from frontier.main import main as simulate

            from pytest_dooly.hosts.frontier.predictor import register
        register()
        simulate()
    except DoolyError as error:
        sys.exit(f"error: {error}")
    except ValueError as error:  # Frontier's own of what goes wrong as it makes a predictor
        if isinstance(error.__context__, DoolyError):
            sys.exit(f"error: {error.__context__}")
        raise


if __name__ == "__main__":
    main()
