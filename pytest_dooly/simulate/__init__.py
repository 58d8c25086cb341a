"""Traffic through a scheduler on a virtual clock: latencies of every request. Imports `prediction` and below."""

__all__ = ()
