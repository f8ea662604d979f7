"""The report as one HTML page: no script, nothing loaded from elsewhere, readable in light and dark and on paper."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from classroom.reports.clean import clean, clean_line
from classroom.reports.text import failure_lines, header_lines, next_step, points, status_name

_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1f2328; --soft: #57606a; --line: #d0d7de; --block: #f3f5f7;
  --good: #00724f; --part: #8a5a00; --bad: #b3261e; --bar: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --page: #14171a; --ink: #e6e8ea; --soft: #a3abb3; --line: #3a4047;
  --block: #1f2429; --good: #4cc79a; --part: #e6b450; --bad: #ff8a80; --bar: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 62rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .5rem; }
p { margin: .4rem 0; }
.total { font-size: 1.25rem; margin: .25rem 0 1.25rem; }
a { color: var(--bar); }
.soft, dt { color: var(--soft); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: 1rem 0; font-size: .875rem; }
dd { margin: 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { font-weight: 600; color: var(--soft); font-size: .875rem; }
.n { text-align: right; white-space: nowrap; }
.id { white-space: nowrap; }
.passed { color: var(--good); } .part { color: var(--part); }
.failed, .error, .timeout, .suspicious { color: var(--bad); }
.not_implemented, .skipped { color: var(--soft); }
pre { background: var(--block); border-left: 3px solid var(--line); margin: .5rem 0; padding: .75rem 1rem;
  white-space: pre-wrap; font: .875rem/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
code { font: .875em ui-monospace, "DejaVu Sans Mono", monospace; }
.bar { display: block; width: 5rem; height: .6rem; margin-top: .45rem; background: var(--block);
  border: 1px solid var(--line); }
.bar span { display: block; height: 100%; background: var(--bar); }
.wide { overflow-x: auto; }
.wide table { font-size: .875rem; overflow-wrap: normal; }
img { max-width: 100%; height: auto; }
""".strip()


_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def text(value: Any, limit: int = 200) -> str:
    """One line of anyone's text, inert in HTML."""
    return escape(clean_line(value, limit), quote=True)


def block(value: Any, limit: int = 4000) -> str:
    """Text of several lines, as it stands."""
    return f"<pre>{escape(clean(value, limit), quote=True)}</pre>"


def bar(part: float) -> str:
    """A bar filled from the left; `part` is from 0 to 1."""
    return f'<span class="bar"><span style="width:{100 * min(1.0, max(0.0, part)):.0f}%"></span></span>'


def kind(exercise: Mapping[str, Any]) -> str:
    """Which colour an exercise's status has."""
    status = str(exercise["status"])
    if status == "failed" and exercise["points"] > 0:
        return "part"
    return status if status.replace("_", "").isalpha() and status.isascii() else "error"


def table(header: list[tuple[str, str]], rows: list[list[str]]) -> str:
    """A table; `header` is name and class of each column, cells are HTML already."""
    head = "".join(f'<th scope="col" class="{css}">{escape(name)}</th>' for name, css in header)
    body = ""
    for row in rows:
        cells = "".join(f'<td class="{css}">{cell}</td>' for (_, css), cell in zip(header, row, strict=True))
        body += f"<tr>{cells}</tr>\n"
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>'


def page(title: str, body: str) -> str:
    """A whole page around `body`, which is HTML already; `title` is text.

    The policy in its head keeps a browser from running or loading anything, should a student's text ever get through.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>\n{_STYLE}\n</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def report_html(report: Mapping[str, Any]) -> str:
    """Return a report as an HTML page.

    Parameters
    ----------
    report : mapping
        As `classroom.grading.grade` makes it. Its exercises' `detail` is for the teacher and stays out.
    """
    title = report.get("assignment") or f"Lesson {report.get('lesson', '')}"
    parts = [
        f"<h1>{text(title)}</h1>",
        f'<p class="total"><strong>{points(report["total"])}</strong> of {points(report["max"])} points</p>',
    ]
    rows = []
    for e in report["exercises"]:
        share = e["points"] / e["max_points"] if e["max_points"] else 0.0
        state = f'<span class="{kind(e)}">{escape(status_name(e))}</span>'
        score = f"{points(e['points'])} / {points(e['max_points'])}"
        rows.append([text(e["id"], 12), text(e["title"]), state, bar(share), score])
    columns = [("", "id"), ("exercise", ""), ("state", ""), ("", ""), ("points", "n")]
    for penalty in report.get("penalties") or []:
        rows.append(["", text(penalty["reason"]), "", "", f"−{points(penalty['points'])}"])
    parts.append(table(columns, rows))

    following = next_step(report)
    if following is not None:
        what, where = following
        parts.append(f"<p><strong>Next:</strong> {text(what)} (<code>{text(where)}</code>)</p>")

    for e in report["exercises"]:
        told = failure_lines(e)
        if not told or (e["status"] in ("passed", "not_implemented") and not e.get("message")):
            continue
        heading = f'{text(e["id"], 12)} {text(e["title"])}: <span class="{kind(e)}">{escape(status_name(e))}</span>'
        parts.append(f'<h2>{heading}</h2>\n<p class="soft"><code>{text(e["function"])}</code></p>')
        parts.append(block("\n".join(told), 6000))

    ignored = (report.get("submission") or {}).get("ignored") or []
    if ignored:
        more = f"<li>… and {len(ignored) - 20} more</li>" if len(ignored) > 20 else ""
        items = "".join(f"<li>{text(note, 300)}</li>" for note in ignored[:20])
        parts.append(f"<h2>About the files</h2>\n<ul>{items}{more}</ul>")
    about = "".join(f"<dt>{escape(name)}</dt><dd>{text(value, 600)}</dd>" for name, value in header_lines(report))
    parts.append(f"<h2>About this report</h2>\n<dl>{about}</dl>")
    return page(str(title), "\n".join(parts))
