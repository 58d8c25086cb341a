"""Vidur with our step times: `python -m pytest_dooly.hosts.vidur`, and then Vidur's own options."""

__all__ = ()
