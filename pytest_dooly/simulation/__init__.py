"""Traffic through a scheduler on a virtual clock. Imports `prediction` and below; `simulate` is the API's function."""

__all__ = ()
