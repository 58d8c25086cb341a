"""The field's words as data, and the arithmetic that both halves need. Imports `errors` alone, as every room may."""

__all__ = ()
