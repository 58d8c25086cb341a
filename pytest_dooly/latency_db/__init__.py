"""The file that latencies are kept in: schema, tables, merge, export, browse; the only SQL. Imports `core`.

Only the queries of `browse.toml` are for people.
"""

__all__ = ()
