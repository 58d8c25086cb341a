"""GPUs that are not here: public tables, regressors across sizes, estimates. Imports `sweep` and below."""

__all__ = ()
