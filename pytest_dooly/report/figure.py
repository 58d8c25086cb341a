"""What all plots have in common: colours, style, axes and the ways out as SVG or PNG."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_dooly.core.operation import OperationKind
from pytest_dooly.errors import ConfigurationError, refusal_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = [
    "BACK",
    "COLOURS",
    "INK",
    "LINE",
    "SOFT",
    "decimal_axis",
    "headline",
    "new_figure",
    "note",
    "png_path",
    "power_axis",
    "readable_on",
    "save_png",
    "shorten",
    "style",
    "svg",
]

COLOURS = {
    OperationKind.LINEAR: "#0072b2",
    OperationKind.NORM: "#56b4e9",
    OperationKind.ROTARY: "#999933",
    OperationKind.ACTIVATION: "#e69f00",
    OperationKind.ATTENTION: "#d55e00",
    OperationKind.MOE: "#cc79a7",
    OperationKind.MIXER: "#aa4466",
    OperationKind.EMBEDDING: "#6e8cab",
    OperationKind.LOGITS: "#009e73",
    OperationKind.SAMPLER: "#8a63a8",
    OperationKind.COLLECTIVE: "#b07d62",
    OperationKind.OTHER: "#777777",
    OperationKind.OVERHEAD: "#a6a6a6",
}
"""Okabe and Ito's palette for the kinds that cost most, muted ones beside it; one colour a kind in every plot."""

# Stand-ins that `svg` turns into the page's own colours, so that a plot follows light and dark.
INK, SOFT, LINE, BACK = "#1d2430", "#5b6573", "#e2e5ea", "#ffffff"

_VARIABLES = {INK: "--ink", SOFT: "--soft", LINE: "--line", BACK: "--back"}

_STYLE = {
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a name may hold a dollar sign
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "dooly",
}

_MANTISSAS: tuple[tuple[float, ...], ...] = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7))
"""Ticks of a logarithmic axis within a decade, from few to many."""


def style() -> Any:
    """A context in which what is drawn has our style."""
    import matplotlib as mpl

    return mpl.rc_context(_STYLE)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that size in inches, whose parts make room for each other."""
    from matplotlib.figure import Figure as BareFigure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    # A figure of its own, not pyplot's: the backend of the process that we are loaded into stays as it is.
    return BareFigure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))


def headline(figure: Figure, text: str) -> None:
    """The title of a whole picture."""
    figure.suptitle(text, x=0.012, ha="left", fontsize=13, fontweight="bold")


def svg(figure: Figure, title: str) -> str:
    """SVG text to be put into a page that defines --ink, --soft, --line and --back."""
    buffer = io.StringIO()
    unsigned = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=unsigned)
    text = buffer.getvalue()[buffer.getvalue().index("<svg") :]
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # nothing refers to groups, and several plots share a page
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)


def png_path(text: str) -> Path:
    """Where a PNG can be written to, its directory made.

    Raises:
        ConfigurationError: it cannot, or the name says that it is something else.
    """
    path = Path(text)
    if path.suffix.lower() != ".png":
        raise ConfigurationError(f"pictures are PNG: name a file that ends in .png, got {text}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        there = path.exists()
        with path.open("ab"):
            pass
        if not there:
            path.unlink()
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {refusal_of(error)}; name another file") from error
    return path


def save_png(figure: Figure, path: Path) -> None:
    """Writes a figure that is twelve inches wide as 1,600 pixels."""
    figure.savefig(path, format="png", dpi=1600 / 12)


def note(ax: Axes, text: str, at: tuple[float, float], offset: tuple[float, float], **looks: Any) -> None:
    """A remark beside a point, `offset` in typographic points away."""
    looks = {"va": "center", "fontsize": 7.5, "color": SOFT, "annotation_clip": False, **looks}
    ax.annotate(text, at, xytext=offset, textcoords="offset points", **looks)


def decimal_axis(axis: Axis, values: Iterable[float]) -> tuple[float, float]:
    """Puts few round ticks on a logarithmic axis; returns the bounds that show all values."""
    low, high = _limits(values)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    choices = [
        [m * 10.0**e for e in decades for m in mantissas if low <= m * 10.0**e <= high] for mantissas in _MANTISSAS
    ]
    _ticks(axis, next(ticks for ticks in choices if len(ticks) >= 3))
    return low, high


def power_axis(axis: Axis, sizes: Sequence[int]) -> tuple[float, float]:
    """As `decimal_axis`, at powers of two."""
    low, high = _limits(sizes)
    powers = range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)
    _ticks(axis, [2.0**power for power in powers[:: math.ceil(len(powers) / 6)]])
    return low, high


def readable_on(colour: str) -> str:
    """A colour of text that can be read on `#rrggbb`."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#111111" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "#fefefe"


def shorten(text: str, length: int) -> str:
    """The text without its middle, where it is too long."""
    half = (length - 1) // 2
    return text if len(text) <= length else f"{text[:half]}…{text[-half:]}"


def _limits(values: Iterable[float]) -> tuple[float, float]:
    """Bounds of a logarithmic axis: a factor of 3 at least, lest noise fill a plot."""
    positive = [max(value, 1e-9) for value in values]
    low, high = min(positive), max(positive)
    margin = max(1.25, math.sqrt(3 * low / high))
    return low / margin, high * margin


def _ticks(axis: Axis, ticks: Sequence[float]) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: f"{value:.10g}")
