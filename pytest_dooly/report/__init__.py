"""Tables, pages and pictures for people: reads, never computes. Imports `prediction` and below."""

__all__ = ()
