"""Vidur's own command line, in which `--execution_time_predictor_config_type dooly` is one more choice.

Nothing of Vidur is edited. Its `pip install .` installs nothing (7d47513): a clone stands on PYTHONPATH.
"""

from __future__ import annotations

import argparse
import sys

from pytest_dooly.errors import DoolyError
from pytest_dooly.hosts.missing import host

__all__ = ["main"]


def main() -> None:
    """Runs Vidur; what goes wrong on our side is one message and exit status 1."""
    try:
        with host("Vidur", "put a clone of github.com/microsoft/vidur on PYTHONPATH and install its requirements.txt"):
            from vidur.main import main as simulate

            from pytest_dooly.hosts.vidur.predictor import register
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        parser.add_argument("--replica_config_model_name")
        register(parser.parse_known_args()[0].replica_config_model_name)
        simulate()
    except DoolyError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
