"""How a router spreads tokens over experts, and what of it a step is expected to meet."""

from __future__ import annotations

__all__ = []
