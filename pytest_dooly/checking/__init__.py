"""What the suites check of a model's latencies: an SLO, cliffs, monotony. Imports `strategies` and what is below it."""

__all__ = ()
