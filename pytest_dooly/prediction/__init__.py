"""Batch -> operations -> step -> TTFT and TPOT. Imports `published` and below; `predict` is the API's function."""

__all__ = ()
