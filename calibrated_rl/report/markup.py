"""Small pieces of the page: sections, plots, notes and tables. Texts are escaped here, except table cells and
the parts of a section, which are HTML already."""

from collections.abc import Callable
from html import escape
from typing import Any

from matplotlib.figure import Figure

from calibrated_rl.report.plots.drawing import data_uri
from calibrated_rl.report.values import NOT_MEASURED, Interval, number


def section(title: str, *parts: str) -> str:
    """A titled box; ``parts`` are HTML."""
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def plot_section(title: str, words: str, content: Any, draw: Callable[[], Figure]) -> str:
    """A section with the plot that ``draw`` makes, or with a plain word if ``content`` is empty."""
    if not content:
        return section(title, missing())
    return section(title, note(words) if words else "", image(draw(), title))


def image(drawn: Figure, meaning: str) -> str:
    """The figure as an embedded image; ``meaning`` is read to those who cannot see it."""
    width = drawn.get_size_inches()[0] * 118
    address = data_uri(drawn)
    return f'<figure><img src="{address}" alt="{escape(meaning)}" style="width:{width:.0f}px"></figure>'


def note(text: str) -> str:
    """A paragraph in small print."""
    return f'<p class="note">{escape(text)}</p>'


def missing() -> str:
    """Says that nothing was measured here."""
    return f'<p class="missing">{NOT_MEASURED}</p>'


def plain(text: str) -> str:
    """A text as a table cell; a dash where nothing was measured."""
    return "–" if text == NOT_MEASURED else escape(text)


def cell(value: Interval | None, digits: int = 2, *, sign: bool = False) -> str:
    """A figure as a table cell, its bounds below it."""
    if value is None:
        return "–"
    bounds = ""
    if value.bounds is not None:
        low, high = (number(bound, digits) for bound in value.bounds)
        bounds = f"<small>[{low}, {high}]</small>"
    return f"{number(value.mean, digits, sign=sign)}{bounds}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A table whose cells are HTML already."""
    head_row = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    whole = f"<table><thead><tr>{head_row}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll">{whole}</div>'
