"""The contract of a format: records of a file in, dialogues in the project's own format out.

To add one, write a file here with one class whose name ends in ``Format``. Nothing else has to be touched.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, Protocol

from calibrated_rl.errors import UserError, printable
from calibrated_rl.logs.base import LogProblem, Refused
from calibrated_rl.logs.containers.base import Row
from calibrated_rl.logs.options import ANY, FileSettings
from calibrated_rl.logs.parts import parts_of
from calibrated_rl.logs.record import METADATA, OPTIONAL, optional_problem


@dataclass(kw_only=True)
class Found:
    """A dialogue that a format has found. Turns may be empty and a side's may follow each other: that is decided in one
    place for all formats (``reading.py``)."""

    row: Row
    """Its first record."""
    line: dict[str, Any]
    """The dialogue as ``record.py`` describes it; without ``id`` where the format has none."""
    unknown: Sequence[str] = ()
    """Keys of the record that the format does not know; what they say is in the metadata."""
    counts: Counter[str] = field(default_factory=Counter)
    """What had to be decided, by what it is called in the summary."""


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


def one_a_row(
    rows: Iterator[Row], dialogues: Callable[[Row], Iterator[Found]]
) -> Iterator[Found | LogProblem]:  # fmt: skip
    """For formats in which a record has whole dialogues: those of each row, and what ``dialogues`` refuses."""
    for row in rows:
        if row.problem is not None:
            yield LogProblem(row.file, row.number, row.problem)
            continue
        try:
            yield from dialogues(row)
        except Refused as refusal:
            yield LogProblem(row.file, row.number, str(refusal))


def parsed(value: Any) -> Any:
    """``value``, or, where it is a text that is a JSON list or object (as tables have it), what that says."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def first_of(content: Mapping[str, Any], *keys: str) -> Any:
    """The value of the first of ``keys`` that has one."""
    return next((content[key] for key in keys if content.get(key) is not None), None)


def id_of(content: Mapping[str, Any], *keys: str) -> str | None:
    """The dialogue's own id, if it has a usable one."""
    value = first_of(content, *keys)
    usable = isinstance(value, str | int) and not isinstance(value, bool) and str(value).strip()
    return str(value) if usable else None


def line_of(
    content: Mapping[str, Any], turns: list[dict[str, Any]], *, used: Sequence[str], known: Sequence[str] = (),
    metadata: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], list[str]]:  # fmt: skip
    """A dialogue of ``turns`` with what the record says beside them.

    The optional keys of ``record.py`` are taken over where the record has them as they are wanted there; all others are
    metadata.

    Args:
        used: keys of ``content`` that are in the turns already, or are its id.
        known: keys that the format is known to have.
        metadata: more of it.

    Returns:
        The line without its id, and the keys that are not known.
    """
    own = _own(content, used)
    rest = {key: value for key, value in content.items() if key not in used and key not in own and value is not None}
    if isinstance(rest.get(METADATA), dict):
        rest |= rest.pop(METADATA)
    rest |= metadata or {}
    expected = (*used, *known, *OPTIONAL, METADATA)
    unknown = [key for key, value in content.items() if key not in expected and value is not None]
    return {"turns": turns, **own, **({METADATA: rest} if rest else {})}, unknown


def _own(content: Mapping[str, Any], used: Sequence[str]) -> dict[str, Any]:
    given = {key: typed(key, content[key]) for key in OPTIONAL if content.get(key) is not None and key not in used}
    pair: dict[str, Any] = {key: given.pop(key) for key in ("reward", "success") if key in given}
    own = {key: value for key, value in given.items() if optional_problem({key: value}) is None}
    return {**own, **(pair if len(pair) == 2 and optional_problem(pair) is None else {})}


def typed(key: str, value: Any) -> Any:
    """The value of an optional key, where a table has it as text."""
    if not isinstance(value, str):
        return value
    if key == "success":
        return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}.get(value.lower(), value)
    if key == "reward":
        try:
            return float(value)
        except ValueError:
            return value
    return parsed(value) if key == "goal" else value


def described(content: Any) -> str:
    """What a record is, for a message: its keys."""
    if not isinstance(content, dict):
        return f"its records are of type {type(content).__name__}"
    keys = ", ".join(printable(repr(key), 40) for key in list(content)[:8])
    return f"its records have the keys {keys}{' and more' if len(content) > 8 else ''}"
