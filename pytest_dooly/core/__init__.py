"""The field's words as data: batch, operation, signature, environment, measurement. Imports `errors` alone."""

__all__ = ()
