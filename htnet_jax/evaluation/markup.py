"""Pieces of the HTML pages: the style, escaped text, pictures inside the page, tables."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5b6570; --line: #d5dae0;
  --page: #f5f6f8; --card: #ffffff; --accent: #1f5fa8; --warn: #b4540a; --mark: #fff3e4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --soft: #9aa5b1; --line: #363d46;
  --page: #14171b; --card: #1d2126; --accent: #7fb2ef; --warn: #f0a35e; --mark: #33261a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  overflow-wrap: anywhere; }
main { max-width: 64rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 1rem; }
h2 { font-size: 1.15rem; margin: 0 0 .75rem; }
h3 { font-size: 1rem; margin: 1.1rem 0 .5rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  padding: 1.1rem; margin: 0 0 1rem; }
p { margin: 0 0 .75rem; } p:last-child { margin-bottom: 0; }
.soft { color: var(--soft); font-size: .9rem; }
.partial { color: var(--warn); background: var(--mark); border: 2px solid var(--warn);
  border-radius: .4rem; padding: .5rem .8rem; font-weight: 650; font-size: 1.15rem; }
.headline { display: flex; flex-wrap: wrap; gap: .75rem 2.5rem; margin: 0 0 .75rem; }
.headline div { min-width: 6rem; }
.number { display: block; font-size: 2.3rem; font-weight: 650; line-height: 1.15;
  color: var(--accent); font-variant-numeric: tabular-nums; }
.second .number { font-size: 1.5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums;
  font-size: .92rem; overflow-wrap: normal; }
caption { text-align: left; color: var(--soft); padding: 0 0 .3rem; }
th, td { text-align: left; padding: .4rem .7rem; border-bottom: 1px solid var(--line);
  vertical-align: top; }
tbody th { font-weight: 400; overflow-wrap: anywhere; }
td.score, th.score { white-space: nowrap; }
td small { display: block; color: var(--soft); font-weight: 400; }
thead th { color: var(--soft); font-weight: 600; }
tbody tr.group th { color: var(--soft); font-weight: 600; padding-top: .9rem; }
tr.ours th, tr.ours td { font-weight: 600; }
.oracle, tbody tr.group th.oracle { color: var(--warn); }
.how { min-width: 9rem; }
.stay { display: inline-block; position: sticky; left: 0; max-width: min(100%, 100vw - 4rem);
  overflow-wrap: anywhere; }
.scroll + p, .plots + p { margin-top: .6rem; }
.plots { display: grid; gap: 1rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
figure { margin: 0; min-width: 0; }
figcaption { font-size: .9rem; margin-top: .3rem; }
img { display: block; max-width: min(100%, 36rem); height: auto;
  background: #fff; border-radius: .35rem;
  margin: 0 auto; }
.cards { display: grid; gap: 1.2rem 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 16rem), 1fr)); }
.cards img { width: 100%; background: none; image-rendering: pixelated; }
.legend { display: flex; flex-wrap: wrap; gap: 1rem; align-items: center; margin: 0 0 1rem; }
.legend img { width: 7rem; margin: 0; background: none; }
.legend div { flex: 1 1 14rem; }
.bar { display: inline-block; width: 6rem; height: .6rem; border-radius: .3rem;
  background: var(--line); overflow: hidden; vertical-align: middle; margin-right: .5rem; }
.bar i { display: block; height: 100%; background: var(--accent); }
details + details, .scroll + details, .plots + details, p + details, figure + details {
  margin-top: .75rem; }
summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; font-size: .82rem; margin: .5rem 0 0; }
dt { font-weight: 600; } dd { margin: 0 0 .6rem; }
@media (max-width: 30rem) { main { padding: 1rem .5rem 2rem; } section { padding: .9rem .75rem; }
  th, td { padding: .4rem .35rem; } .how { min-width: 5.5rem; } }
@media print { :root { color-scheme: light; --ink: #000; --soft: #444; --line: #bbb; --page: #fff;
    --card: #fff; --accent: #1f5fa8; --warn: #b4540a; --mark: #fff; }
  body { font-size: 11pt; } main { max-width: none; padding: 0; }
  section { border: 0; padding: 0; } .scroll { overflow: visible; }
  h2, h3 { break-after: avoid; } figure, tr { break-inside: avoid; }
  pre { white-space: pre-wrap; } }
"""


def document(title: str, body: str, style: str = STYLE) -> str:
    """A whole page: `title` in its head and as its heading, `body` (HTML) below."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{style}</style></head>\n"
        f"<body><main><h1>{text(title)}</h1>\n{body}\n</main></body></html>\n"
    )


def text(value: object) -> str:
    """A value's text, safe inside HTML."""
    return html.escape(str(value))


def image(png: bytes, alt: str) -> str:
    """An `img` element that carries its PNG."""
    data = base64.b64encode(png).decode("ascii")
    return f'<img alt="{text(alt)}" src="data:image/png;base64,{data}">'


def section(title: str, body: str) -> str:
    """A part of the page; `title` is text, `body` HTML."""
    return f"<section><h2>{text(title)}</h2>{body}</section>"


def paragraph(words: str, kind: str = "") -> str:
    """A paragraph of text; `kind`: its class in `STYLE`."""
    return f"<p{_class(kind)}>{text(words)}</p>"


def details(title: str, body: str) -> str:
    """HTML that is folded away under a line of text."""
    return f"<details><summary>{text(title)}</summary>{body}</details>"


def row(name: str, cells: Iterable[str], kind: str = "") -> str:
    """A row of a table: its name (text) and its cells (HTML)."""
    inside = "".join(f'<td class="score">{cell}</td>' for cell in cells)
    return f'<tr{_class(kind)}><th scope="row" class="how">{text(name)}</th>{inside}</tr>'


def group_row(name: str, columns: int, kind: str = "") -> str:
    """A row that heads the rows below it; `columns`: the columns of the table."""
    return (
        f'<tr class="group"><th scope="rowgroup" colspan="{columns}"{_class(kind)}>'
        f'<span class="stay">{text(name)}</span></th></tr>'
    )


def table(columns: Sequence[str], rows: Iterable[str], caption: str = "") -> str:
    """A table that scrolls sideways where it is too wide.

    Args:
        columns: Headings (text), the first over the rows' names.
        rows: From `row` and `group_row`.
        caption: Text above the table.
    """
    first, *others = columns
    head = f'<th scope="col">{text(first)}</th>' + "".join(
        f'<th scope="col" class="score">{text(name)}</th>' for name in others
    )
    above = f'<caption><span class="stay">{text(caption)}</span></caption>' if caption else ""
    return (
        f'<div class="scroll"><table>{above}<thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def count(number: int, noun: str, plural: str = "") -> str:
    """`1 fold`, `2 folds`."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
