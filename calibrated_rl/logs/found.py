"""What formats find in records: a dialogue in the project's own format, and how one is made of a record's keys."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from calibrated_rl.logs.base import LogProblem, Refused
from calibrated_rl.logs.record import METADATA, OPTIONAL, optional_problem
from calibrated_rl.logs.row import Row
from calibrated_rl.logs.sides import Sides


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


def one_a_row(
    rows: Iterator[Row], dialogues: Callable[[Row], Iterator[Found]], sides: Sides | None = None
) -> Iterator[Found | LogProblem]:
    """For formats in which a record has whole dialogues: those of each row, and what ``dialogues`` refuses.

    Args:
        sides: by which ``dialogues`` tells the sides.

    Raises:
        UserError: no turn is of a speaker that the settings name as the policy's.
    """
    file = ""
    for row in rows:
        file = row.file
        if row.problem is not None:
            yield LogProblem(row.file, row.number, row.problem)
            continue
        try:
            yield from dialogues(row)
        except Refused as refusal:
            yield LogProblem(row.file, row.number, str(refusal))
    if sides is not None:
        sides.refuse_unmatched(file)


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
    usable = _own(content, used)
    taken = (*used, *usable)
    rest = {key: value for key, value in content.items() if key not in taken and value is not None}
    if isinstance(rest.get(METADATA), dict):
        rest |= rest.pop(METADATA)
    rest |= metadata or {}
    recognised = (*used, *known, *OPTIONAL, METADATA)
    unknown = [key for key, value in content.items() if key not in recognised and value is not None]
    return {"turns": turns, **usable, **({METADATA: rest} if rest else {})}, unknown


def _own(content: Mapping[str, Any], used: Sequence[str]) -> dict[str, Any]:
    optional = {key: typed(key, content[key]) for key in OPTIONAL if content.get(key) is not None and key not in used}
    pair: dict[str, Any] = {key: optional.pop(key) for key in ("reward", "success") if key in optional}
    usable = {key: value for key, value in optional.items() if optional_problem({key: value}) is None}
    return {**usable, **(pair if len(pair) == 2 and optional_problem(pair) is None else {})}


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
