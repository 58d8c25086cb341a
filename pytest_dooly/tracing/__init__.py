"""One symbolic pass of the engine -> operations with the origin of every dimension. Imports `engine` and `core`."""

__all__ = ()
