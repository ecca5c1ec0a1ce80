"""What all plots share: colours, empty figures, PNG bytes. Matplotlib is imported when used."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart by colour-blind readers too: Okabe and Ito, "Color Universal Design" (2008). Its yellow
# is left out: too pale for lines on white.
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
)
GREY = "#555555"

# A figure of 4.6 inches is 736 pixels wide: sharp on a phone, and its page stays small.
WIDTH = 4.6
_DOTS_PER_INCH = 160
_LONGEST_NAME = 26


class Drawn(NamedTuple):
    """A finished plot.

    Attributes:
        png: A PNG file.
        alt: What it shows, in words, for those who do not see it.
    """

    png: bytes
    alt: str


def colour(index: int) -> str:
    """The colour of the `index`-th run; they start again after six."""
    return COLOURS[index % len(COLOURS)]


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure of `width` x `height` inches."""
    # The figure is made without pyplot: no display, and no global list of open figures.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure, mark: str = "") -> bytes:
    """The figure as a PNG file; the same figure gives the same bytes.

    Args:
        figure: What to draw.
        mark: A warning that is drawn below it.
    """
    if mark:
        figure.supxlabel(plain(mark, 60), color=VERMILION, fontsize=9, fontweight="bold")
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A name in a script that Matplotlib's font lacks is drawn as boxes.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .*missing from font")
        # No software version inside.
        figure.savefig(buffer, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    return buffer.getvalue()


def plain(name: object, longest: int = _LONGEST_NAME) -> str:
    """A name for a plot: shortened, and its dollar signs are no formulas to Matplotlib."""
    short = str(name)
    if len(short) > longest:
        short = short[: longest - 1] + "…"
    return short.replace("$", r"\$")


def tidy(*panels: Axes) -> None:
    """A light grid, and lines at the left and below only."""
    for axes in panels:
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8.5)
