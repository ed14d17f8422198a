"""The contract of a format: records of a file in, dialogues in the project's own format out.

To add one, write a file here with one class whose name ends in ``Format``. Nothing else has to be touched.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, ClassVar, Protocol

from calibrated_rl.errors import UserError, printable
from calibrated_rl.logs.base import LogProblem
from calibrated_rl.logs.found import Found
from calibrated_rl.logs.options import ANY, FileSettings
from calibrated_rl.logs.parts import parts_of
from calibrated_rl.logs.row import Row


class Format(Protocol):
    """Finds dialogues in records."""

    title: ClassVar[str]
    """What it is called, in words."""

    def fit(self, content: Any) -> int:
        """How many keys of a record it recognises; 0: it is of another format. The format with the most reads the
        file."""
        ...

    def dialogues(self, rows: Iterator[Row], settings: FileSettings) -> Iterator[Found | LogProblem]:
        """All dialogues of ``rows``, and what is refused. No row is left out silently."""
        ...


@cache
def formats() -> dict[str, Format]:
    """All that there are, by name."""
    return parts_of("calibrated_rl.logs.formats", "Format")


def fits(content: Any) -> bool:
    """Whether any format recognises the record."""
    return any(each.fit(content) for each in formats().values())


def format_of(contents: Sequence[Any], name: str, place: str) -> Format | None:
    """The format called ``name``, or the one that fits the first record that any fits; None: none does.

    Raises:
        UserError: two fit equally well.
    """
    if name != ANY:
        return formats()[name]
    for content in contents:
        points = {name: each.fit(content) for name, each in formats().items()}
        best = [name for name, count in points.items() if count == max(points.values()) > 0]
        if len(best) > 1:
            raise UserError(f"{place} may be {' or '.join(best)}: name one of them as the format")
        if best:
            return formats()[best[0]]
    return None


def described(content: Any) -> str:
    """What a record is, for a message: its keys."""
    if not isinstance(content, dict):
        return f"its records are of type {type(content).__name__}"
    keys = ", ".join(printable(repr(key), 40) for key in list(content)[:8])
    return f"its records have the keys {keys}{' and more' if len(content) > 8 else ''}"
