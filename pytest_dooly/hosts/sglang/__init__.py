"""SGLang Simulator with our step times: `python -m pytest_dooly.hosts.sglang`, and then its server's own options."""

__all__ = ()
