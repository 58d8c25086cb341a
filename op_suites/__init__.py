"""Suites of operations that `pytest --dooly-model=…` runs; they travel in the wheel."""
