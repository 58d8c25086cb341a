"""The latency DB in a browser: Datasette with ready-made queries and charts, on this machine alone."""

from __future__ import annotations

import importlib.util
import socket
import tempfile
import threading
import tomllib
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from pytest_dooly.errors import ConfigurationError, MissingExtraError
from pytest_dooly.latency_db.db import LatencyDB

if TYPE_CHECKING:
    from datasette.app import Datasette

__all__ = ["HOST", "Chart", "Query", "browse", "queries", "served"]

HOST = "127.0.0.1"
"""Nobody but this machine's users is meant to see the pages."""

_NAME = "latency"
"""Of the database in every address, whatever the file's name."""

_SETTINGS = {
    "sql_time_limit_ms": 20_000,  # a scan of a million published latencies takes seconds
    "max_returned_rows": 5_000,
    "default_page_size": 50,
}


@dataclass(frozen=True)
class Chart:
    """A chart of a query's rows.

    Attributes:
        mark: `bar`, `line` or `circle`.
        x: column.
        y: column, of numbers.
        x_type: `ordinal`, `nominal`, `quantitative` or `temporal`.
        color: column that tells marks apart; none where it is empty.
    """

    mark: str
    x: str
    y: str
    x_type: str = "ordinal"
    color: str = ""

    @property
    def fragment(self) -> str:
        """What datasette-vega reads from the end of an address."""
        options = {
            "g.mark": self.mark,
            "g.x_column": self.x,
            "g.x_type": self.x_type,
            "g.y_column": self.y,
            "g.y_type": "quantitative",
            "g.color_column": self.color,
        }
        return urlencode({name: value for name, value in options.items() if value}, quote_via=quote)


@dataclass(frozen=True)
class Query:
    """A ready-made query.

    Attributes:
        name: in its address.
        title: for people.
        description: one line for people.
        sql: with named parameters that may be left empty.
        chart: of its rows, or None.
    """

    name: str
    title: str
    description: str
    sql: str
    chart: Chart | None = None

    @property
    def path(self) -> str:
        """Of its page."""
        return f"/{_NAME}/{self.name}"


def queries() -> tuple[Query, ...]:
    """Every ready-made query."""
    document = tomllib.loads(Path(__file__).with_name("browse.toml").read_text(encoding="utf-8"))
    return tuple(
        Query(**{**query, "sql": query["sql"].strip(), "chart": Chart(**query["chart"]) if "chart" in query else None})
        for query in document["query"]
    )


def browse(
    path: Path, *, port: int = 8001, open_browser: bool = True, announce: Callable[[str], None] = lambda _: None
) -> str:
    """Shows the latency DB in a browser until the process is interrupted; what a run records meanwhile is seen.

    Args:
        path: of the latency DB.
        port: to listen at; 0 for any that is free.
        open_browser: open the start page.
        announce: is told the address.

    Returns:
        the address that it was shown at.

    Raises:
        MissingExtraError: Datasette or its charts are not installed.
        ConfigurationError: another program listens at the port.
        DatabaseError: the file is no latency DB.
    """
    _check_installed()
    import uvicorn

    with served(path) as datasette, _listening(port) as listener:
        address = f"http://{HOST}:{listener.getsockname()[1]}/"
        announce(f"{path} is at {address} until you press Ctrl-C")
        if open_browser:  # beside the server, which the browser waits for
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        config = uvicorn.Config(datasette.app(), log_level="warning", lifespan="off", timeout_graceful_shutdown=1)
        with suppress(KeyboardInterrupt):  # uvicorn ends by itself, and raises it again
            uvicorn.Server(config).run(sockets=[listener])
    return address


@contextmanager
def served(path: Path) -> Iterator[Datasette]:
    """Datasette over the latency DB, which it reads only.

    Raises:
        DatabaseError: the file is no latency DB.
    """
    from datasette.app import Datasette

    # Readers of a write-ahead log leave files beside the DB unless one that may write closes it after them.
    with LatencyDB.open(path, create=False), tempfile.TemporaryDirectory() as directory:
        # Datasette takes the name from the file, and its path for a URI without quoting it.
        link = Path(directory) / f"{_NAME}.db"
        link.symlink_to(path.resolve())
        datasette = Datasette([str(link)], metadata=_metadata(queries()), settings=_SETTINGS)
        try:
            yield datasette
        finally:
            for database in datasette.databases.values():
                database.close()


def _check_installed() -> None:
    missing = [name for name in ("datasette", "datasette_vega") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"{' and '.join(missing)} not installed: run pip install 'pytest-dooly[browse]', "
            "or read the latency DB with any SQLite program"
        )


@contextmanager
def _listening(port: int) -> Iterator[socket.socket]:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen at port {port} ({error}): name another with --port, or 0 for any that is free"
            ) from error
        listener.listen()
        yield listener


def _metadata(every: Sequence[Query]) -> dict[str, Any]:
    """What Datasette shows beside the tables."""
    return {
        "title": "Latency DB",
        "description_html": _start_page(every),
        "databases": {
            _NAME: {
                "queries": {
                    query.name: {
                        "title": query.title,
                        "description_html": " ".join([escape(query.description), *_links(query)]),
                        "sql": query.sql,
                    }
                    for query in every
                },
                "tables": {"_sqlite_migrations": {"hidden": True}},
            }
        },
    }


def _start_page(every: Sequence[Query]) -> str:
    items = (
        f'<li><a href="{query.path}">{escape(query.title)}</a>: {" ".join([escape(query.description), *_links(query)])}'
        for query in every
    )
    return (
        f'<p>Every own and published latency is in <a href="/{_NAME}/latency">latency</a>, in seconds. '
        f"Ready-made queries, in microseconds:</p><ul>{''.join(items)}</ul>"
    )


def _links(query: Query) -> list[str]:
    # datasette-vega looks at the fragment when a page is loaded: without another query nothing would be loaded.
    chart = query.chart
    return [] if chart is None else [f'<a href="{query.path}?chart=1#{escape(chart.fragment)}">Chart</a>']
