"""Vidur, recorded and real."""
