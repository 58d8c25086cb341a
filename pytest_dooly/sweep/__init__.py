"""Signature -> sweep points -> cases asked for, less those in the latency DB. Imports `regress` and below."""

__all__ = ()
