"""The project's own format, ``runs-format``: what ``record.py`` describes, and what all others are converted into."""

from collections.abc import Iterator
from typing import Any

from calibrated_rl.logs.base import LogProblem
from calibrated_rl.logs.found import Found, one_a_row, parsed, typed
from calibrated_rl.logs.options import FileSettings
from calibrated_rl.logs.record import METADATA
from calibrated_rl.logs.row import Row


class RunsFormat:
    """A record is a dialogue, and stays as it is."""

    title = "runs-format"

    def fit(self, content: Any) -> int:
        if not isinstance(content, dict):
            return 0
        turns = parsed(content.get("turns"))
        of_sides = isinstance(turns, list) and turns and isinstance(turns[0], dict) and "side" in turns[0]
        return 5 if of_sides else 0

    def dialogues(self, rows: Iterator[Row], settings: FileSettings) -> Iterator[Found | LogProblem]:
        yield from one_a_row(rows, lambda row: iter([Found(row=row, line=_line(row.content))]))


def _line(content: Any) -> Any:
    """The record; that of a table of texts with its numbers and objects."""
    if not isinstance(content, dict) or not isinstance(content.get("turns"), str):
        return content
    told = {key: value for key, value in content.items() if value is not None}
    return {key: parsed(value) if key in ("turns", METADATA) else typed(key, value) for key, value in told.items()}
