"""Single settings: which numbers and texts are allowed, and how others are refused. Whole configs: ``settings.py``."""

import difflib
import math
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from calibrated_rl.errors import printable
from calibrated_rl.settings.secrets import is_secret

Key = tuple[str | int, ...]
"""Where a setting stands, from the root: names of keys and numbers of list entries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Which numbers are allowed; always finite."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def admits(self, value: float) -> bool:
        return not (
            (self.at_least is not None and value < self.at_least)
            or (self.above is not None and value <= self.above)
            or (self.at_most is not None and value > self.at_most)
            or (self.below is not None and value >= self.below)
        )

    def __str__(self) -> str:
        limits = (("at least", self.at_least), ("above", self.above), ("at most", self.at_most), ("below", self.below))
        return " and ".join(f"{words} {_plain(limit)}" for words, limit in limits if limit is not None)


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else f"{number:g}"


@dataclass(frozen=True, slots=True)
class Pattern:
    """Which texts are allowed: those that ``expression`` matches as a whole. ``words`` describes it in error
    messages."""

    expression: str
    words: str

    def admits(self, value: str) -> bool:
        return re.fullmatch(self.expression, value, re.DOTALL) is not None


@dataclass(frozen=True, slots=True)
class OneOf:
    """Which texts are allowed, where a ``Literal`` will not do: the list is made by the program, or names keys."""

    choices: tuple[str, ...]
    otherwise: Pattern | None = None
    """Allowed beside them, such as an import path."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One setting that is not allowed."""

    key: Key
    text: str
    """What is wrong with it, and what is allowed; a whole sentence but for the key."""
    named: bool = True
    """Whether the line begins with the key, where ``text`` does not name it."""

    def __str__(self) -> str:
        return f"{dotted(self.key)} {self.text}" if self.key and self.named else self.text


def dotted(key: Key) -> str:
    """``policy.scaling.maximum``, ``arms[2]``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{printable(part, 80)}" for part in key)
    return text.removeprefix(".")


class NotAllowed(Exception):
    """Raised with all problems of a config, nested ones included."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = list(problems)


def _whole(value: Any, limits: Sequence[Range | Pattern], key: Key) -> int:
    if isinstance(value, str) and re.fullmatch(r"\s*[-+]?[0-9][0-9_]{0,40}\s*", value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise _wrong_type(value, "a whole number", limits, key)
    return int(_ranged(value, limits, key))


def _real(value: Any, limits: Sequence[Range | Pattern], key: Key) -> float:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise _wrong_type(value, "a number", limits, key) from None
    if isinstance(value, bool) or not isinstance(value, Real):
        raise _wrong_type(value, "a number", limits, key)
    return float(_ranged(value, limits, key))


def _ranged(value: Any, limits: Sequence[Range | Pattern], key: Key) -> Any:
    if isinstance(value, Integral) and not -(2**63) <= int(value) < 2**63:
        raise _wrong_type(value, "a number that 64 bits can represent", limits, key)
    if not math.isfinite(value):
        raise _wrong_type(value, "a finite number", limits, key)
    for limit in limits:
        if isinstance(limit, Range) and not limit.admits(value):
            raise NotAllowed([Problem(key, f"is {quoted(value, key)}: it must be {limit}")])
    return value


def _text(value: Any, limits: Sequence[Range | Pattern], key: Key) -> str:
    if not isinstance(value, str):
        may_be_empty = all(limit.admits("") for limit in limits if isinstance(limit, Pattern))
        none = " ('' for none)" if value is None and may_be_empty else ""
        quotes = " in quotes" if isinstance(value, bool | int | float) else none
        raise _wrong_type(value, f"text{quotes}", limits, key)
    if "\0" in value:
        raise NotAllowed([Problem(key, f"is {quoted(value, key)}: it contains the character U+0000")])
    for limit in limits:
        if isinstance(limit, Pattern) and not limit.admits(value):
            raise NotAllowed([Problem(key, f"is {quoted(value, key)}: it must be {limit.words}")])
    return value


def _truth(value: Any, limits: Sequence[Range | Pattern], key: Key) -> bool:
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    if not isinstance(value, bool):
        raise _wrong_type(value, "true or false", limits, key)
    return value


def _path(value: Any, limits: Sequence[Range | Pattern], key: Key) -> Path:
    return value if isinstance(value, Path) else Path(_text(value, limits, key))


def _nothing(value: Any, limits: Sequence[Range | Pattern], key: Key) -> None:
    if value is not None:
        raise _wrong_type(value, "null", limits, key)


SCALARS: dict[Any, Callable[[Any, Sequence[Range | Pattern], Key], Any]] = {
    bool: _truth, int: _whole, float: _real, str: _text, Path: _path, types.NoneType: _nothing, None: _nothing,
}  # fmt: skip


def _wrong_type(value: Any, expected: str, limits: Sequence[Range | Pattern], key: Key) -> NotAllowed:
    also = "".join(f", {limit}" for limit in limits if isinstance(limit, Range) and str(limit))
    also += "".join(f": {limit.words}" for limit in limits if isinstance(limit, Pattern))
    return NotAllowed([Problem(key, f"is {quoted(value, key)}: write {expected}{also}")])


def shown(value: Any) -> str:
    """A value as YAML writes it, truncated where it is long."""
    if isinstance(value, str):
        return f"'{printable(value, 80)}'"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    return printable(str(value), 80)


def quoted(value: Any, key: Key) -> str:
    """As ``shown``, with secrets masked."""
    return "*** (a secret)" if any(is_secret(str(part)) for part in key) else shown(value)


def listed(choices: Iterable[Any], last: str = "or") -> str:
    """``a, b or c``."""
    *first, end = (str(each) for each in choices)
    return f"{', '.join(first)} {last} {end}" if first else end


def nearest(value: Any, choices: Iterable[Any]) -> str:
    """``; did you mean 'b'?``, or nothing where no choice is similar."""
    close = difflib.get_close_matches(str(value), [str(each) for each in choices], n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def chosen(value: Any, choices: Sequence[Any], key: Key) -> Any:
    """``value``, which is to be one of ``choices``.

    Raises:
        NotAllowed: it is none of them.
    """
    for choice in choices:
        if type(value) is type(choice) and value == choice:
            return choice
    if isinstance(value, str) and (number := next((c for c in choices if str(c) == value.strip()), None)) is not None:
        return number  # a number in quotes, by the rule for numbers
    quotes = isinstance(value, bool) and not any(isinstance(choice, bool) for choice in choices)
    hint = " (in quotes: YAML reads off, no, on and yes without them as false and true)" if quotes else ""
    text = f"is {quoted(value, key)}: choose {listed(choices)}{hint}{nearest(value, choices)}"
    raise NotAllowed([Problem(key, text)])
