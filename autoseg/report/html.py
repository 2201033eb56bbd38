"""The few elements of HTML that the report is made of. Everything is text in, text out, and escaped here."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from statistics import median

STYLE = """
:root { --ink: #222; --soft: #666; --line: #e3e3e3; --accent: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem 1rem 3rem; max-width: 62rem; color: var(--ink); background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; padding-top: .8rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p { margin: .4rem 0 .8rem; max-width: 46rem; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
.key { display: flex; flex-wrap: wrap; gap: .6rem 2.2rem; margin: 1.2rem 0; }
.key div { line-height: 1.25; }
.key b { display: block; font-size: 1.6rem; font-weight: 600; color: var(--accent); }
.key span { font-size: .85rem; color: var(--soft); }
.scroll { overflow-x: auto; margin: .6rem 0 1rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .9rem .28rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; color: var(--soft); vertical-align: bottom; }
th:first-child, td:first-child, table.words td { text-align: left; }
table.words td { white-space: normal; vertical-align: top; overflow-wrap: anywhere; }
table.words td:first-child { color: var(--soft); white-space: nowrap; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); gap: 1.2rem;
  align-items: start; }
figure { margin: 0; max-width: 46rem; }
figcaption { margin-bottom: .3rem; overflow-wrap: anywhere; }
img, svg { display: block; width: 100%; height: auto; }
svg text { font: 12px system-ui, sans-serif; fill: var(--ink); }
ul { padding-left: 1.2rem; margin: .4rem 0 1rem; max-width: 50rem; }
li { margin: .25rem 0; }
summary { cursor: pointer; color: var(--accent); }
pre { overflow-x: auto; background: #f6f6f6; padding: .7rem .9rem; border-radius: 4px; font-size: .85rem; }
"""


def page(title: str, body: Sequence[str]) -> str:
    """A whole document; nothing in it comes from elsewhere."""
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
            *body,
            "</body></html>\n",
        ]
    )


def heading(text: str, *, level: int = 2) -> str:
    return f"<h{level}>{escape(text)}</h{level}>"


def paragraph(text: str, *, soft: bool = False) -> str:
    return f'<p class="soft">{escape(text)}</p>' if soft else f"<p>{escape(text)}</p>"


def key_figures(figures: Sequence[tuple[str, str]]) -> str:
    """Large numbers with a word below each."""
    items = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for value, name in figures)
    return f'<div class="key">{items}</div>'


def number_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Names in the first column, numbers in the others."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    lines = ["".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def word_table(rows: Sequence[tuple[str, str]]) -> str:
    """Pairs of a name and a sentence."""
    body = "".join(f"<tr><td>{escape(name)}</td><td>{escape(text)}</td></tr>" for name, text in rows)
    return f'<table class="words"><tbody>{body}</tbody></table>'


def bullets(sentences: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences) + "</ul>"


def folded(summary: str, content: str, *, start_open: bool = False) -> str:
    """Content that opens with a click."""
    return f"<details{' open' if start_open else ''}><summary>{escape(summary)}</summary>{content}</details>"


def preformatted(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"


def picture(png: bytes, *, text: str, caption: str = "") -> str:
    """An image that lies in the page itself; ``text`` is for those who cannot see it."""
    data = base64.b64encode(png).decode("ascii")
    above = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure>{above}<img alt="{escape(text)}" src="data:image/png;base64,{data}"></figure>'


def gallery(figures: Sequence[str]) -> str:
    """Figures side by side where there is room, else one below the other."""
    return f'<div class="figures">{"".join(figures)}</div>'


def strips(rows: Sequence[tuple[str, Sequence[float]]]) -> str:
    """One line per name from 0 to 1 with a tick for every value and a long one for the median."""
    left, width, step = 130, 330, 26
    height = step * len(rows) + 26
    parts = [f'<svg viewBox="0 0 {left + width + 20} {height}" role="img" style="max-width:36rem">']
    for tenth in range(0, 11, 2):
        x = left + width * tenth / 10
        parts.append(f'<path d="M{x:g} 4V{height - 22}" stroke="#e3e3e3"/>')
        parts.append(f'<text x="{x:g}" y="{height - 6}" text-anchor="middle">{tenth / 10:g}</text>')
    for number, (name, values) in enumerate(rows):
        y = step * number + 16
        shown = name if len(name) <= 18 else f"{name[:17]}…"
        parts.append(f'<text x="{left - 10}" y="{y + 4}" text-anchor="end">{escape(shown)}</text>')
        ticks = "".join(f"M{left + width * value:.1f} {y - 7}v14" for value in values)
        parts.append(f'<path d="{ticks}" stroke="#0072b2" stroke-width="1.6" stroke-opacity=".45" fill="none"/>')
        if values:
            middle = left + width * median(values)
            parts.append(f'<path d="M{middle:.1f} {y - 10}v20" stroke="#d55e00" stroke-width="3"/>')
    return "".join([*parts, "</svg>"])
