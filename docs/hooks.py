"""Pages of the site that are made when it is built, from files that lie elsewhere and are not copied."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

__all__ = ["arena_page", "on_files"]

_ROOT = Path(__file__).parent.parent
_ARENA = _ROOT / "benchmarks/results/public/arena"

_PAGES = {"arena.md": _ARENA.with_suffix(".md"), "contributing.md": _ROOT / "CONTRIBUTING.md"}
_FILES = {"arena.png": _ARENA.with_suffix(".png"), "sort.js": _ROOT / "pytest_dooly/report/sort.js"}


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages and files that are made from others."""
    for name, path in _PAGES.items():
        text = path.read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=arena_page(text) if name == "arena.md" else text))
    for name, path in _FILES.items():
        files.append(File.generated(config, name, abs_src_path=str(path)))
    home = '<!doctype html><meta http-equiv="refresh" content="0; url=start.html"><title>pytest-dooly</title>\n'
    files.append(File.generated(config, "index.html", content=home))
    return files


def arena_page(text: str) -> str:
    """The arena's text, its lines of columns as tables that can be sorted."""
    before, block, after = re.split(r"^```\n", text, maxsplit=2, flags=re.M)
    parts = [before.replace("\n", "\n\n![Predicted beside measured](arena.png)\n", 1)]
    head: list[str] = []
    rows: list[list[str]] = []
    for line in [*block.splitlines(), ""]:
        name, *cells = line.split("|")
        if cells:
            row = [*name.rstrip().rpartition(" ")[::2], *cells]
            head, rows = (row, []) if row[1] == "n" else (head, [*rows, row])
        else:
            parts += [_table(head, rows) if rows else "", f"<p>{html.escape(line)}</p>" if line else ""]
            rows = []
    return "\n".join([*parts, after])


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [_row(head, "th"), "</thead><tbody>", *(_row(row, "td") for row in rows)]
    return "\n".join(["", "<table><thead>", *lines, "</tbody></table>", ""])


def _row(cells: list[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell.strip())}</{tag}>" for cell in cells) + "</tr>"
