"""Requests through a scheduler on a virtual clock: vLLM's scheduler again, its KV blocks and prefixes."""

__all__ = ()
