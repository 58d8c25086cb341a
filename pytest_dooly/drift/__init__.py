"""Drift: whether predicted TTFT and TPOT have changed between two environments or times. Imports `prediction`."""

__all__ = ()
