"""A record of a log file."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a file, or why it is none."""

    file: str
    number: int
    """1-based: the line where records are lines, else the record's number."""
    content: Any = None
    """JSON data."""
    problem: str | None = None
