"""Our own measurements -> regressors, which the latency DB keeps. Imports `latency_db` and `core`."""

__all__ = ()
