"""A stretch of time as people write it: a number and its unit."""

from __future__ import annotations

import math
import re

__all__ = ["DURATION", "duration_s"]

DURATION = r"(?:\d+(?:\.\d+)?|\.\d+)(?:ms|s)"
"""Pattern of one, as in `500ms` or `1.5s`: without a unit nobody knows whether seconds or milliseconds are meant."""

_UNITS_S = {"ms": 1e-3, "s": 1.0}


def duration_s(text: str) -> float | None:
    """Seconds of what is written as `500ms` or `1.5s`; None where it is not, or no time at all."""
    if re.fullmatch(DURATION, text) is None:
        return None
    unit = "ms" if text.endswith("ms") else "s"
    seconds = float(text.removesuffix(unit)) * _UNITS_S[unit]
    return seconds if 0 < seconds < math.inf else None
