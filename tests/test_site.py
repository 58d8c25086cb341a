"""Pages as a browser shows them, a report's, the site's and the arena's: no error, pictures with a size, sorting."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_dooly.report.page import write_report
from tests.report.test_page import small_report

ROOT = Path(__file__).parent.parent

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

PICTURES = """
[...document.querySelectorAll("img, svg")].filter((each) => each.closest("header, nav, .md-header") === null &&
    each.parentElement.tagName !== "svg" && each.checkVisibility())
  .map((each) => ({name: each.src ?? "svg", width: each.clientWidth || each.getBoundingClientRect().width,
                   natural: each.naturalWidth ?? 1}))
"""
"""Every picture that is shown: what it is, its width, and its own width, 0 where it could not be read."""

SORT = """
[...document.querySelectorAll("table")].map((table) => {
  const first = [...table.rows].findIndex((row) => row.querySelector("td"));
  const headings = table.rows[first - 1];
  const column = headings.cells.length - 1;
  const read = () => [...table.rows].slice(first).map((row) => row.cells[column]?.textContent.trim() ?? "");
  const before = read();
  headings.cells[column].click();
  const up = read();
  headings.cells[column].click();
  return {heading: headings.cells[column].textContent, before, up, down: read()};
})
"""
"""The last column of every table, as it was, and after one and two clicks on its heading."""


class Browser:
    """One page of a headless Chromium, driven through its debugging protocol."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self.errors: list[str] = []
        self.asked: list[str] = []

    def call(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        return self._until(lambda message: message.get("id") == number)["result"]

    def open(self, page: Path) -> None:
        """Shows a page and waits until all of it is loaded."""
        self.call("Page.navigate", url=page.as_uri())
        self._until(lambda message: message.get("method") == "Page.loadEventFired")

    def evaluate(self, expression: str) -> Any:
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def _until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        while True:
            message: dict[str, Any] = json.loads(self._socket.recv())
            method, parameters = message.get("method"), message.get("params", {})
            if method == "Runtime.exceptionThrown":
                self.errors.append(str(parameters["exceptionDetails"]))
            if method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
                self.errors.append(parameters["entry"]["text"])
            if method == "Runtime.consoleAPICalled" and parameters["type"] == "error":
                self.errors.append(str(parameters["args"]))
            if method == "Network.requestWillBeSent":
                self.asked.append(parameters["request"]["url"])
            if wanted(message):
                return message


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed, so that no page is looked at: apt-get install chromium")
    websocket = pytest.importorskip("websocket")
    with tempfile.TemporaryDirectory() as profile, contextlib.ExitStack() as stack:
        flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
        quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync")
        chromium = subprocess.Popen(
            [
                CHROMIUM,
                *flags,
                *quiet,
                "--remote-debugging-port=0",
                "--remote-allow-origins=*",
                f"--user-data-dir={profile}",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        stack.callback(chromium.wait)
        stack.callback(chromium.terminate)
        port_file = Path(profile) / "DevToolsActivePort"
        while chromium.poll() is None and not (port_file.exists() and port_file.read_text().count("\n")):
            time.sleep(0.05)
        assert chromium.poll() is None, "Chromium does not start"
        port = port_file.read_text().splitlines()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
            (page,) = (each for each in json.load(answer) if each["type"] == "page")
        socket = stack.enter_context(contextlib.closing(websocket.create_connection(page["webSocketDebuggerUrl"])))
        browser = Browser(socket)
        for domain in ("Page", "Runtime", "Log", "Network"):
            browser.call(f"{domain}.enable")
        yield browser


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it."""
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def shown(browser: Browser, page: Path, *, pictures: int, tables: int) -> None:
    """Opens a page and checks all that can be seen of it."""
    browser.errors.clear()
    browser.asked.clear()
    browser.open(page)
    found = browser.evaluate(PICTURES)
    assert len(found) >= pictures
    assert not [each for each in found if not each["width"] or not each["natural"]]
    columns = browser.evaluate(SORT)
    assert len(columns) >= tables
    for column in columns:
        assert sorted(column["up"]) == sorted(column["before"]), column["heading"]
        assert column["up"] != column["down"] or len(set(column["before"])) == 1, column["heading"]
    assert not browser.errors
    assert not [url for url in browser.asked if url.startswith(("http", "ws"))]


def test_reports_are_shown_and_their_tables_sort(browser: Browser, tmp_path: Path) -> None:
    shown(browser, write_report(small_report(), tmp_path), pictures=4, tables=4)
    shown(browser, ROOT / "docs/example/index.html", pictures=5, tables=6)


def test_the_site_is_built_without_the_network_and_its_pages_are_shown(browser: Browser, site: Path) -> None:
    shown(browser, site / "arena.html", pictures=1, tables=4)
    for name, pictures in (("start", 1), ("accuracy", 0), ("plugin", 0), ("api", 0)):
        shown(browser, site / f"{name}.html", pictures=pictures, tables=0)


def test_public_names_and_hooks_are_in_the_site(site: Path) -> None:
    import pytest_dooly

    page = (site / "api.html").read_text(encoding="utf-8")
    assert not [name for name in pytest_dooly.__all__ if f'id="pytest_dooly.{name}"' not in page]
    assert 'id="pytest_dooly.plugin.hookspecs.pytest_dooly_measured"' in (site / "plugin.html").read_text(
        encoding="utf-8"
    )


def test_durations_and_shares_sort_by_what_they_say(browser: Browser, tmp_path: Path) -> None:
    script = (ROOT / "pytest_dooly/report/sort.js").read_text(encoding="utf-8")
    cells = ["1.2 s", "-", "800 µs", "12 ms", "1,000 ms", "3 ms"]
    rows = "".join(f"<tr><td>{cell}</td></tr>" for cell in cells)
    page = tmp_path / "page.html"
    head = "<meta charset='utf-8'><link rel='icon' href='data:,'>"
    page.write_text(
        f"{head}<script>{script}</script><table><tr><th>took</th></tr>{rows}<tr><th>all</th></tr></table>",
        encoding="utf-8",
    )
    browser.open(page)
    (column,) = browser.evaluate(SORT)
    assert column["up"] == ["800 µs", "3 ms", "12 ms", "1,000 ms", "1.2 s", "-", "all"]
    assert column["down"] == ["-", "1.2 s", "1,000 ms", "12 ms", "3 ms", "800 µs", "all"]
