"""How long an operation takes, alone and within a pass, by which clock. Imports `engine` and `core`."""

__all__ = ()
