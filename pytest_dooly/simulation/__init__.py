"""Traffic drawn, read and summed up, and replicas. Imports `prediction` and below; `simulate` is the API's function."""

__all__ = ()
