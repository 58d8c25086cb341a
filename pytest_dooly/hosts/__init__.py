"""Latencies for other simulators: a back end that they ask, and files that they read. Imports `simulation` and below.

Modules that import a host (`vidur`, `frontier`, `sglang`) are imported by nothing else; the others import none.
"""

__all__ = ()
