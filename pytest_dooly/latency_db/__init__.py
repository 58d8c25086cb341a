"""The file that latencies are kept in: schema, tables, merge, export, browse; the only SQL. Imports `core`."""

__all__ = ()
