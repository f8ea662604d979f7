"""Pictures of lesson 13: the roofline, passes over memory, what attention keeps, how a warp reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lessons.common import plotting


@plotting.style()
def roofline_picture(found: Sequence[Any], machine: Any, attainable: Callable[..., Any]) -> Figure:
    """Operations under the machine's two ceilings: an arrow from the reference form to the fast one.

    Parameters
    ----------
    found : sequence
        With ``name``, ``intensity``, ``flops`` and the seconds ``reference`` and ``fast``.
    machine
        With ``peak`` and ``bandwidth``.
    attainable : (intensity, peak, bandwidth) -> rate
    """
    figure, axes = plotting.new(height=5.2)
    lowest, highest = min(m.intensity for m in found) / 3, max(m.intensity for m in found) * 4
    x = np.geomspace(lowest, highest, 200)
    axes.plot(x, attainable(x, machine.peak, machine.bandwidth) / 1e9, color=plotting.BLACK)
    ends = []
    for m, colour in zip(found, np.resize(plotting.PALETTE[:-1], len(found)), strict=True):
        slow, fast = (m.flops / seconds / 1e9 for seconds in (m.reference, m.fast))
        axes.annotate("", (m.intensity, fast), (m.intensity, slow), arrowprops={"arrowstyle": "->", "color": colour})
        axes.plot(m.intensity, slow, "o", color="white", markeredgecolor=colour, markersize=6)
        axes.plot(m.intensity, fast, "o", color=colour, markersize=6)
        ends.append(plotting.End(m.intensity, fast, f"  {m.name}", colour))
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    plotting.logarithmic(axes)
    plotting.label_ends(axes, ends)
    ridge = machine.peak / machine.bandwidth
    axes.annotate(
        f"copy: {machine.bandwidth / 1e9:.1f} GB/s", (x[8], x[8] * machine.bandwidth / 1e9), (-2, 8),
        textcoords="offset points", ha="left", va="bottom", fontsize=9,
    )  # fmt: skip
    axes.annotate(
        f"product: {machine.peak / 1e9:.0f} GFLOP/s", (max(ridge, x[0]), machine.peak / 1e9), (4, 6),
        textcoords="offset points", ha="left", va="bottom", fontsize=9,
    )  # fmt: skip
    axes.set_xlabel("operations for each byte that has to move")
    axes.set_ylabel("GFLOP/s")
    axes.set_title("Under the roof: reference form (hollow), fast form")
    return figure


@plotting.style()
def passes_picture(found: Sequence[Any]) -> Figure:
    """How often an operation's reference form goes through memory, and how much quicker the fast form is.

    Parameters
    ----------
    found : sequence
        With ``name``, ``passes`` and the seconds ``reference`` and ``fast``.
    """
    figure, (left, right) = plotting.new(1, 2, height=0.9 + 0.36 * len(found), sharey=True)
    names = [m.name for m in found]
    for axes, values, title, unit in (
        (left, [m.passes for m in found], "bytes of the reference form", "× the least that has to move"),
        (right, [m.reference / m.fast for m in found], "gain of the fast form", "× faster"),
    ):
        bars = axes.barh(names, values, height=0.65)
        axes.bar_label(bars, [f"{v:.1f}" for v in values], padding=3, fontsize=9)
        axes.axvline(1, color=plotting.GREY, linewidth=1, linestyle=(0, (4, 3)))
        axes.margins(x=0.14)
        axes.grid(axis="y", visible=False)
        axes.set_title(title)
        axes.set_xlabel(unit)
    left.invert_yaxis()
    return figure


@plotting.style()
def memory_picture(times: Sequence[int], found: Mapping[str, Sequence[int]]) -> Figure:
    """Peak memory of attention by sequence length, a line a form.

    Parameters
    ----------
    times : sequence of int
    found : dict of str to sequence of int
        Form → bytes.
    """
    figure, axes = plotting.new(height=3.8)
    ends = []
    for (name, values), colour in zip(found.items(), (plotting.VERMILLION, plotting.BLUE), strict=True):
        megabytes = [v / 1e6 for v in values]
        axes.plot(times, megabytes, marker="o", color=colour)
        ends.append(plotting.End(times[-1], megabytes[-1], name, colour))
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    plotting.logarithmic(axes, 2)
    axes.set_xticks(times, [str(T) for T in times])
    axes.set_xlabel("T, tokens")
    axes.set_ylabel("MB beside q, k and v")
    axes.set_title("What attention needs to hold")
    plotting.label_ends(axes, ends)
    return figure


@plotting.style()
def reads_picture(
    reads: Mapping[str, tuple[np.ndarray, int]], sector: int, count: Callable[[np.ndarray, int], int]
) -> Figure:
    """Which bytes the threads of a warp want, and which sectors have to be moved for it; a panel a pattern.

    Parameters
    ----------
    reads : dict of str to (addresses, width)
    sector : int
        Bytes.
    count : (addresses, width) -> sectors
    """
    shown = 640  # bytes: what lies further off is told in the title
    figure, panels = plotting.panels(len(reads), height=1.15, columns=1, sharex=True)
    for axes, (name, (addresses, width)) in zip(panels, reads.items(), strict=True):
        touched = np.unique((addresses[:, None] + np.arange(width)) // sector)
        for s in touched[touched * sector < shown]:
            axes.axvspan(s * sector, (s + 1) * sector, color="#CFE6F5", linewidth=0)
        axes.barh(range(len(addresses)), [width] * len(addresses), left=addresses, height=1, color=plotting.VERMILLION)
        n = count(addresses, width)
        axes.set_title(f"{name}: {n} sectors, {len(addresses) * width / (n * sector):.0%} used", fontsize=10)
        axes.set_xlim(0, shown)
        axes.set_xticks(range(0, shown + 1, 128))
        axes.set_ylim(31.5, -0.5)
        axes.set_yticks((0, 31))
        axes.set_ylabel("thread")
        axes.grid(visible=False)
    panels[-1].set_xlabel("byte; blue: a sector that has to be moved; red: what is wanted of it")
    return figure
