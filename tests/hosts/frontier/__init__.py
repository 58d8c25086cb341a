"""Frontier, recorded and real."""
