"""One style for all pictures, and saving them.

Colours are Okabe and Ito's, which stay apart for colour-blind readers. Lines are named where they end, not in a legend.
Pictures are made without pyplot, so that a lesson neither opens windows nor disturbs a notebook's own figures.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.patheffects import withStroke
from matplotlib.ticker import EngFormatter, NullFormatter

from minigpt.files import write_atomic

BLACK = "#000000"
ORANGE = "#E69F00"
SKY = "#56B4E9"
GREEN = "#009E73"
YELLOW = "#F0E442"
BLUE = "#0072B2"
VERMILLION = "#D55E00"
PURPLE = "#CC79A7"
GREY = "#6E6E6E"
PALETTE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
"""In the order in which lines take them; yellow is too light for a line on white."""

INTENSITY = LinearSegmentedColormap.from_list("intensity", ["#FFFFFF", "#9CCBE8", BLUE, "#00263D"])
"""From nothing (white) to much (dark), for matrices of amounts."""

SIGNED = LinearSegmentedColormap.from_list("signed", [VERMILLION, "#F4B183", "#FFFFFF", "#9CCBE8", BLUE])
"""From negative over 0 (white) to positive, for matrices of numbers; to be used with limits of equal size."""

STYLE: Any = {
    "figure.dpi": 100,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "savefig.facecolor": "white",
    "savefig.dpi": 160,
    "font.family": "DejaVu Sans",  # comes with Matplotlib: the same picture on every machine
    "font.size": 11,
    "text.parse_math": False,  # a token or a file name with two dollar signs is no formula
    "text.color": "#1A1A1A",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelsize": 11,
    "axes.labelcolor": "#1A1A1A",
    "axes.edgecolor": "#4D4D4D",
    "axes.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=PALETTE),
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.8,
    "lines.linewidth": 2.0,
    "xtick.color": "#4D4D4D",
    "ytick.color": "#4D4D4D",
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
}
WIDTH = 8.0  # inches: the width of a notebook's text, where a point is then a point


@contextmanager
def style() -> Iterator[None]:
    """The style, for the length of a ``with`` block, or of a function that it decorates."""
    with matplotlib.rc_context(STYLE):
        yield


def new(rows: int = 1, columns: int = 1, height: float = 4.2, **layout: Any) -> tuple[Figure, Any]:
    """A figure of notebook width, and its axes.

    Parameters
    ----------
    rows, columns : int
    height : float
        Inches.
    **layout
        As for `matplotlib.figure.Figure.subplots`.

    Returns
    -------
    figure : Figure
    axes : Axes, or an array of them
    """
    with style():
        figure = Figure(figsize=(WIDTH, height))
        FigureCanvasAgg(figure)
        return figure, figure.subplots(rows, columns, **layout)


def panels(n: int, height: float, columns: int = 2, **layout: Any) -> tuple[Figure, list[Axes]]:
    """A figure of notebook width with `n` axes of equal size, row by row; what is left of the last row stays empty.

    Parameters
    ----------
    n : int
        1 or more.
    height : float
        Inches of one panel.
    columns : int
        At most.
    **layout
        As for `matplotlib.figure.Figure.subplots`.

    Returns
    -------
    figure : Figure
    axes : list of Axes
    """
    columns = min(columns, n)
    rows = math.ceil(n / columns)
    figure, axes = new(rows, columns, height * rows, squeeze=False, **layout)
    for unused in axes.flat[n:]:
        unused.set_visible(False)
    return figure, list(axes.flat[:n])


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG on white, whatever theme it will be seen on; never half of one.

    Parameters
    ----------
    figure : Figure
    path : path
        Its folder is created if missing.

    Raises
    ------
    RunError
        If it cannot be written.
    """
    path = Path(path)
    data = io.BytesIO()
    with style():
        figure.savefig(data, format="png", facecolor="white")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, data.getvalue())
    return path


def logarithmic(axes: Axes, base: float = 10) -> None:
    """Give the x-axis a logarithmic scale with plain numbers: 1, 10, 100, 1k, 10k, 1M."""
    axes.set_xscale("log", base=base)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())


def drawable(text: str) -> str:
    """A text with the characters that the font of the pictures lacks as ``\\uNNNN`` instead of empty boxes."""
    return "".join(c if ord(c) in _known_characters() else f"\\u{ord(c):04x}" for c in text)


@cache
def _known_characters() -> frozenset[int]:
    return frozenset(get_font(findfont("DejaVu Sans Mono")).get_charmap())


class End(NamedTuple):
    """The end of a line, in data coordinates, and what to call it."""

    x: float
    y: float
    text: str
    colour: str


def label_ends(axes: Axes, ends: Sequence[End], gap: float = 14.0) -> None:
    """Write each line's name at its end, moved apart where they would overlap.

    Call it when the limits of the axes are final.

    Parameters
    ----------
    axes : Axes
    ends : sequence of End
    gap : float
        Least distance between the middles of two names, in points.
    """
    bottom = _points(axes) * axes.bbox.y0 + gap / 2  # below it stand the ticks
    _name(axes, ends, gap, bottom, right=6, va="center", ha="left", annotation_clip=False)


def label_tops(axes: Axes, tops: Sequence[End], gap: float = 14.0) -> None:
    """Write each cloud's name over its highest point, one higher than the other where two would overlap.

    Call it when the limits of the axes are final.

    Parameters
    ----------
    axes : Axes
    tops : sequence of End
        Where each cloud ends upwards.
    gap : float
        Least distance between the middles of two names, in points.
    """
    outline = [withStroke(linewidth=3, foreground="white")]
    _name(axes, tops, gap, -math.inf, up=7, weight="bold", ha="center", path_effects=outline)


def _name(
    axes: Axes, ends: Sequence[End], gap: float, lowest: float, right: float = 0, up: float = 0, **how: Any
) -> None:
    # Names beside their places, as far from each other as `gap`, and none under `lowest`; all in points.
    ordered = sorted(ends, key=lambda end: end.y)
    heights = [float(axes.transData.transform((end.x, end.y))[1]) * _points(axes) for end in ordered]
    for end, height, place in zip(ordered, heights, spaced(heights, gap, lowest), strict=True):
        offset = (right, place - height + up)
        axes.annotate(end.text, (end.x, end.y), xytext=offset, textcoords="offset points", color=end.colour, **how)


def _points(axes: Axes) -> float:
    # Of one pixel.
    figure = axes.get_figure()
    assert figure is not None
    return 72.0 / figure.dpi


def spaced(places: Sequence[float], gap: float, lowest: float = -math.inf) -> list[float]:
    """Ascending places moved apart to at least `gap`, each as little as the others allow.

    Groups of neighbours that are too near are laid out around their common middle, until no two groups touch; what
    would lie under `lowest` moves up to it.
    """
    groups: list[list[float]] = []
    for place in places:
        groups.append([place])
        while len(groups) > 1 and _top(groups[-2], gap) + gap > _bottom(groups[-1], gap):
            groups[-2:] = [groups[-2] + groups[-1]]
    apart = [_bottom(group, gap) + i * gap for group in groups for i in range(len(group))]
    return [max(place, lowest + i * gap) for i, place in enumerate(apart)]


def _middle(group: Sequence[float]) -> float:
    return sum(group) / len(group)


def _bottom(group: Sequence[float], gap: float) -> float:
    return _middle(group) - gap * (len(group) - 1) / 2


def _top(group: Sequence[float], gap: float) -> float:
    return _middle(group) + gap * (len(group) - 1) / 2
