"""`python -m pytest_dooly.cli`."""

import sys

from pytest_dooly.cli import main

__all__ = ()

sys.exit(main())
