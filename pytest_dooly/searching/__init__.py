"""The choice of a configuration under an SLO. Imports `simulation` and below; `search` is the API's function."""

__all__ = ()
