"""The adapter of vLLM, tested with 0.26.0 and 0.32.0; nothing else imports vLLM. Imports `core` and `engine`."""

__all__ = ()
