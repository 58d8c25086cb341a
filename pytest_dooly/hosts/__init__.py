"""Latencies for other simulators: a back end that they ask, and files that they read. Imports `simulation` and below.

A module of a host's name imports that host; nothing else does.
"""

__all__ = ()
