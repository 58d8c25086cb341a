"""Frontier with our step times: `python -m pytest_dooly.hosts.frontier`, and then Frontier's own options."""

__all__ = ()
