"""Item statistics: which exercise a class found hard, and which mistakes it made, how often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from classroom.reports import sheet
from classroom.reports.clean import clean_line
from classroom.reports.text import points
from lessons.common import plotting

UNTOUCHED = ("not_implemented", "skipped")
"""States of an exercise that its student has not attempted."""


def statistics(reports: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return figures of each exercise over a class.

    Parameters
    ----------
    reports : sequence of report
        Of one lesson. An exercise where the grader failed does not count.

    Returns
    -------
    items : list of dict
        One an exercise: ``id``, ``title``, ``max_points``, ``students``, ``attempted``, ``full``, ``mean`` (points,
        over all students), ``mistakes`` (label → students, the commonest first), ``causes`` (label → what one of
        them was told) and ``discrimination``: the correlation of its points with those of all other exercises
        together, None where either never varies.

    Notes
    -----
    The corrected item-total correlation of classical test theory (Henrysson 1963, Psychometrika 28:211). From about
    0.3 an exercise tells strong from weak students; one near or below 0 tests something else, or is itself wrong.
    """
    items: dict[str, dict[str, Any]] = {}
    scores: dict[str, list[tuple[float, float]]] = {}
    for report in reports:
        counted = [e for e in report["exercises"] if e["status"] != "error"]
        total = sum(e["points"] for e in counted)
        for e in counted:
            item = items.setdefault(
                e["id"],
                {"id": e["id"], "title": e["title"], "max_points": e["max_points"], "students": 0, "attempted": 0}
                | {"full": 0, "mistakes": Counter(), "causes": {}},
            )
            item["students"] += 1
            item["attempted"] += e["status"] not in UNTOUCHED
            item["full"] += e["status"] == "passed"
            if e["diagnosis"] and e["status"] not in ("passed", *UNTOUCHED):
                item["mistakes"][e["diagnosis"]] += 1
                item["causes"].setdefault(e["diagnosis"], e["cause"])
            scores.setdefault(e["id"], []).append((e["points"], total - e["points"]))
    for key, item in items.items():
        own, rest = np.array(scores[key], dtype=np.float64).T
        item["mean"] = float(own.mean())
        varies = np.ptp(own) > 0 and np.ptp(rest) > 0
        item["discrimination"] = float(np.corrcoef(own, rest)[0, 1]) if varies else None
        item["mistakes"] = dict(sorted(item["mistakes"].items(), key=lambda pair: (-pair[1], pair[0])))
    return list(items.values())


def statistics_csv(items: Sequence[Mapping[str, Any]]) -> str:
    """The statistics as a table, an exercise a row."""
    fields = ("id", "title", "max_points", "students", "attempted", "full", "mean", "discrimination")
    rows = [[*(item[name] for name in fields), _mistakes(item)] for item in items]
    return sheet.write((*fields, "mistakes"), rows)


def _mistakes(item: Mapping[str, Any], most: int = 100) -> str:
    """``no-scale 12, transposed 3``."""
    return ", ".join(f"{clean_line(label, 60)} {count}" for label, count in list(item["mistakes"].items())[:most])


def picture(items: Sequence[Mapping[str, Any]], title: str, path: Path) -> Path:
    """Draw, for each exercise, which part of the class has it right, tried in vain, or has not tried; save it as PNG.

    Parameters
    ----------
    items : sequence of dict
        As `statistics` gives them; at least one.
    title : str
    path : Path
    """
    figure, axes = plotting.new(height=1.7 + 0.36 * len(items))
    names = [plotting.drawable(f"{clean_line(i['id'], 8)}  {clean_line(i['title'], 44)}") for i in items]
    full = np.array([i["full"] / i["students"] for i in items]) * 100
    tried = np.array([i["attempted"] / i["students"] for i in items]) * 100 - full
    places = np.arange(len(items))
    axes.barh(places, full, color=plotting.BLUE, label="right")
    axes.barh(places, tried, left=full, color=plotting.ORANGE, label="tried, not right yet")
    axes.barh(places, 100 - full - tried, left=full + tried, color="#E3E3E3", label="not begun")
    for place, part in zip(places, full, strict=True):
        inside = part > 12
        axes.annotate(
            f"{part:.0f} %",
            (part if inside else 0.0, place),
            xytext=(-4 if inside else 4, 0),
            textcoords="offset points",
            ha="right" if inside else "left",
            va="center",
            fontsize=9,
            color="white" if inside else plotting.BLACK,
        )
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel(f"students, percent of {max(i['students'] for i in items)}")
    axes.set_ylabel("exercise")
    axes.grid(visible=False, axis="y")
    axes.set_title(plotting.drawable(clean_line(title, 80)), pad=28)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize=9, borderaxespad=0.2)
    return plotting.save(figure, path)


def statistics_rows(items: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Cells for a page, plain text: id, title, attempted, right, mean, discrimination."""
    return [
        [
            clean_line(i["id"], 12),
            clean_line(i["title"]),
            f"{i['attempted']} of {i['students']}",
            f"{i['full']} ({100 * i['full'] / i['students']:.0f} %)",
            f"{points(i['mean'])} / {points(i['max_points'])}",
            "" if i["discrimination"] is None else f"{i['discrimination']:.2f}",
        ]
        for i in items
    ]


def mistake_rows(items: Sequence[Mapping[str, Any]], most: int = 3) -> list[list[str]]:
    """Cells for a page, plain text: exercise, students, mistake, what one of them was told; the commonest of each."""
    return [
        [
            clean_line(i["id"], 12),
            str(count),
            clean_line(label, 60).replace("-", " "),
            clean_line(i["causes"][label], 400),
        ]
        for i in items
        for label, count in list(i["mistakes"].items())[:most]
    ]
