"""The templates' environment: every value that a template prints is escaped, and an unknown name is an error."""

import re
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from calibrated_rl.report.values import count, duration, number, or_dash
from calibrated_rl.report.views import Cell

TEMPLATES = Path(__file__).with_name("templates")
_LINE_BREAK = re.compile(r"\s*\n\s*")


@cache
def environment() -> Environment:
    """The environment with the filters that templates write metrics with."""
    env = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    env.filters.update(
        number=number, count=count, duration=duration, or_dash=or_dash, in_one_line=in_one_line, breakable=breakable
    )
    env.tests["metric_cell"] = lambda cell: isinstance(cell, Cell)
    return env


def render(template: str, **values: object) -> str:
    """The text of ``template`` filled with ``values``."""
    return environment().get_template(template).render(**values)


def in_one_line(text: str) -> Markup:
    """A paragraph without the line breaks that it has in its template."""
    return Markup(_LINE_BREAK.sub(" ", escape(text).strip()))


def breakable(setting: str) -> Markup:
    """A ``dotted.key=value`` whose long key may break after each of its parts."""
    key, equals, value = setting.partition("=")
    return escape(key).replace(".", Markup(".<wbr>")) + escape(equals + value)
