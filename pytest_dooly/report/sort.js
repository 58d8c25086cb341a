// Sorts a table by the column whose heading is clicked, or chosen with Enter; once more turns the order round.
(() => {
  const scale = { "ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1, "min": 60, "h": 3600, "%": 1e-2, "KB": 1e3, "MB": 1e6, "GB": 1e9 };
  const read = (row, column) => (row.cells[column]?.textContent ?? "").trim();
  const value = (text) => {
    const found = text.replaceAll(",", "").match(/^[≤<~]?\s*([-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?)\s*([a-zµ%]*)/iu);
    return found ? Number(found[1]) * (scale[found[2]] ?? 1) : NaN;
  };
  const compare = (left, right) => {
    const [a, b] = [value(left), value(right)];
    if (Number.isNaN(a) !== Number.isNaN(b)) return Number.isNaN(a) ? 1 : -1;
    return Number.isNaN(a) ? left.localeCompare(right) : a - b;
  };
  const isHeading = (row) => [...row.cells].every((cell) => cell.tagName === "TH");
  const sort = (heading, body) => {
    const down = heading.getAttribute("aria-sort") === "ascending";
    for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...body.rows].slice([...body.rows].indexOf(heading.parentElement) + 1);
    const column = heading.cellIndex;
    const sorted = rows.filter((row) => !isHeading(row));
    sorted.sort((a, b) => compare(read(a, column), read(b, column)) * (down ? -1 : 1));
    body.append(...sorted, ...rows.filter(isHeading)); // a row of totals stays the last
  };
  const prepare = (table) => {
    const first = [...table.rows].find((row) => !isHeading(row));
    const headings = first && table.rows[first.rowIndex - 1];
    if (!headings) return;
    for (const heading of headings.cells) {
      heading.tabIndex = 0;
      heading.style.cursor = "pointer";
      heading.addEventListener("click", () => sort(heading, first.parentElement));
      heading.addEventListener("keydown", (event) => event.key === "Enter" && sort(heading, first.parentElement));
    }
  };
  document.addEventListener("DOMContentLoaded", () => document.querySelectorAll("table").forEach(prepare));
})();
