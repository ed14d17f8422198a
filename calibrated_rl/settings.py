"""What a setting may be, said beside it: ranges and choices are annotations of the fields of a config dataclass.

    updates: Annotated[int, Range(at_least=1)] = 30
    learning_rate: Annotated[float, Range(above=0)] = 3e-4
    keep: Literal["best", "last"] = "best"
    learning_rates: dict[str, Annotated[float, Range(above=0)]] = field(default_factory=dict)
    labels: dict[str, Annotated[str, Pattern(r"\\S+", "a word")]] = field(default_factory=dict)

``from_plain`` makes the dataclass from what a YAML file says, and ``check_settings`` looks at one made in Python; both
name every setting that is not allowed. Whatever is built by import path gets this by its ``Config``.

One rule decides what counts as what: a value must have its field's type, as YAML reads it, save that a whole number
does for ``float``, and that text does for a number or a truth value if it is one without its quotes (what environment
variables hold is always text). ``true`` is no number, ``2.0`` no whole number, and neither of them is text: YAML has
then read more into unquoted letters (``off``, ``1e3``, ``12:30``) than was meant. Numbers are finite.
"""

import dataclasses
import difflib
import enum
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from calibrated_rl.errors import UserError, first_line, printable
from calibrated_rl.secrets import is_secret

Key = tuple[str | int, ...]
"""Where a setting stands, from the root: names of keys and numbers of list entries."""

MOST_PROBLEMS = 10
"""Lines of one message: who has more mistakes than that mends those first."""


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
        named = (("at least", self.at_least), ("above", self.above), ("at most", self.at_most), ("below", self.below))
        return " and ".join(f"{words} {_plain(limit)}" for words, limit in named if limit is not None)


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else f"{number:g}"


@dataclass(frozen=True, slots=True)
class Pattern:
    """Which texts are allowed: those that ``expression`` matches as a whole. ``words`` say it to people."""

    expression: str
    words: str

    def admits(self, value: str) -> bool:
        return re.fullmatch(self.expression, value, re.DOTALL) is not None


@dataclass(frozen=True, slots=True)
class OneOf:
    """Which texts are allowed, where a ``Literal`` will not do: the list is made by the program, or names keys."""

    choices: tuple[str, ...]


Positive = Annotated[int, Range(at_least=1)]
"""How many, where none makes no sense."""
NotNegative = Annotated[int, Range(at_least=0)]
"""How many, where 0 has a meaning."""
Seed = Annotated[int, Range(at_least=0, at_most=2**32 - 1)]
"""What numpy and torch both take."""
Precision = Literal["float32", "bfloat16"]
Share = Annotated[float, Range(at_least=0, at_most=1)]
"""A share or a probability."""
Name = Annotated[str, Pattern(r"\S(.*\S)?", "text that is not empty, without white space around it")]
"""Free text that must not be empty."""
PartPath = Annotated[str, Pattern(r"[^:\s][^:]*:[^\W\d]\w*", "an import path: package.module:Class or file.py:Class")]
"""Import path of a part; see ``component.py``."""
PartPathOrNone = Annotated[str, Pattern(r"|[^:\s][^:]*:[^\W\d]\w*", "empty, or package.module:Class or file.py:Class")]


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
    written = "".join(f"[{part}]" if isinstance(part, int) else f".{printable(part, 80)}" for part in key)
    return written.removeprefix(".")


class NotAllowed(Exception):
    """Carries problems out of the depths of a tree."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = list(problems)


def refuse(problems: Sequence[Problem], where: Callable[[Key], str]) -> None:
    """Raise a ``UserError`` with a line for each of ``problems``, if there are any.

    Args:
        where: file and position of a key.
    """
    if not problems:
        return
    lines = [f"{where(problem.key)}: {problem}" for problem in problems]
    if len(lines) > MOST_PROBLEMS:
        lines[MOST_PROBLEMS:] = [f"and {len(lines) - MOST_PROBLEMS} more"]
    raise UserError("\n".join(lines))


def from_plain(cls: type, values: Mapping[str, Any], key: Key = ()) -> Any:
    """The dataclass ``cls`` with ``values``, plain data as a YAML file holds it; defaults for the rest.

    Raises:
        NotAllowed: keys that it does not have, values of other types or out of range, and what the class itself raises.
        UserError: ``cls`` cannot be a config; see ``hints_of``.
    """
    hints = hints_of(cls)
    problems, given = [], {}
    for name, value in values.items():
        if name not in hints:
            problems.append(Problem((*key, name), unknown_key(cls, name, key), named=False))
            continue
        try:
            given[name] = converted(hints[name], value, (*key, name))
        except NotAllowed as error:
            problems += error.problems
    required = (f.name for f in dataclasses.fields(cls) if f.init and not _has_default(f) and f.name not in values)
    problems += [Problem((*key, name), "is missing and has no default") for name in required]
    if problems:
        raise NotAllowed(problems)
    try:
        return cls(**given)
    except NotAllowed:
        raise
    except Exception as error:
        said = first_line(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"
        raise NotAllowed([Problem(key, f"{dotted(key)}: {said}" if key else said, named=False)]) from error


def check_settings(config: Any, where: str) -> None:
    """Refuse what the annotations of ``config``, a dataclass made in Python, do not allow.

    Args:
        where: what stands before the names of its fields in the message, such as ``learner``.

    Raises:
        UserError: names each of them.
    """
    problems: list[Problem] = []
    for name, hint in hints_of(type(config)).items():
        try:
            converted(hint, getattr(config, name), (where, name))
        except NotAllowed as error:
            problems += error.problems
    if problems:
        raise UserError("\n".join(map(str, problems[:MOST_PROBLEMS])))


def hints_of(cls: Any) -> dict[str, Any]:
    """Annotations of the settable fields of ``cls``, with what is said there of ranges.

    Raises:
        UserError: it is no frozen dataclass, or an annotation of it cannot be read or written in YAML.
    """
    name = getattr(cls, "__qualname__", repr(cls))
    if not isinstance(cls, type):
        raise UserError(f"{printable(str(name))} is no class: a Config is a frozen dataclass")
    if not dataclasses.is_dataclass(cls) or "__dataclass_fields__" not in vars(cls):
        raise UserError(f"{name} is no dataclass: write @dataclass(frozen=True) above it")
    if not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise UserError(f"{name} is not frozen: write @dataclass(frozen=True) above it")
    try:
        found = typing.get_type_hints(cls, include_extras=True)
    except Exception as error:
        raise UserError(f"{name}: its annotations cannot be read: {first_line(error)}") from error
    hints = {field.name: found[field.name] for field in dataclasses.fields(cls) if field.init}
    for field_name, hint in hints.items():
        if (unknown := _not_for_yaml(hint)) is not None:
            kind = getattr(unknown, "__qualname__", str(unknown))
            raise UserError(
                f"{name}.{field_name} is annotated with {printable(kind)}, which a YAML file cannot hold: take "
                "numbers, texts, truth values, Literal, enumerations, frozen dataclasses, or lists, tuples and dicts "
                "of these"
            )
    return hints


def unknown_key(cls: type, name: Any, key: Key = ()) -> str:
    """What is said of a key that ``cls`` does not have: the nearest that it has, at any depth, or all of them."""
    valid = sorted(valid_keys(cls))
    leaf = str(name)
    close = difflib.get_close_matches(leaf, [each for each in valid if "." not in each], n=1)
    close = close or [each for each in valid if each.split(".")[-1] == leaf]
    close = close or difflib.get_close_matches(leaf, valid, n=1)
    prefix = f"{dotted(key)}." if key else ""
    if close:
        hint = f"; did you mean '{prefix}{close[0]}'?"
    else:
        own = [each for each in valid if "." not in each]
        hint = f"; valid keys: {', '.join(own[:20])}" if own else "; there is nothing to set"
    return f"unknown key '{prefix}{printable(leaf, 80)}'{hint}"


def valid_keys(cls: type, prefix: str = "") -> set[str]:
    """All dotted keys of a (nested) config dataclass."""
    keys: set[str] = set()
    for name, hint in hints_of(cls).items():
        keys.add(prefix + name)
        if dataclasses.is_dataclass(bare := _bare(hint)[0]):
            keys |= valid_keys(bare, f"{prefix}{name}.")  # type: ignore[arg-type]
    return keys


def converted(hint: Any, value: Any, key: Key) -> Any:
    """``value`` as the annotation ``hint`` wants it.

    Raises:
        NotAllowed: it is something else.
    """
    bare, limits = _bare(hint)
    origin, inside = get_origin(bare), get_args(bare)
    if bare is Any or bare is object:
        return value
    if origin is Literal:
        return _choice(value, inside, key)
    if origin in (Union, types.UnionType):
        return _one_of(value, inside, key)
    if dataclasses.is_dataclass(bare):
        return _nested(bare, value, key)
    if isinstance(bare, type) and issubclass(bare, enum.Enum):
        return value if isinstance(value, bare) else bare[_choice(value, [each.name for each in bare], key)]
    if (of := next((each for each in limits if isinstance(each, OneOf)), None)) is not None:
        return _choice(value, of.choices, key)
    if bare in _SCALARS:
        return _SCALARS[bare](value, [each for each in limits if isinstance(each, Range | Pattern)], key)
    if (origin or bare) in _MAPPINGS:
        return _mapping(inside or (Any, Any), value, key)
    return _sequence(origin or bare, inside, value, key)


def _whole(value: Any, limits: Sequence[Range | Pattern], key: Key) -> int:
    if isinstance(value, str) and re.fullmatch(r"\s*[-+]?[0-9][0-9_]{0,40}\s*", value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise _wrong(value, "a whole number", limits, key)
    return int(_ranged(value, limits, key))


def _real(value: Any, limits: Sequence[Range | Pattern], key: Key) -> float:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise _wrong(value, "a number", limits, key) from None
    if isinstance(value, bool) or not isinstance(value, Real):
        raise _wrong(value, "a number", limits, key)
    return float(_ranged(value, limits, key))


def _ranged(value: Any, limits: Sequence[Range | Pattern], key: Key) -> Any:
    if isinstance(value, Integral) and not -(2**63) <= int(value) < 2**63:
        raise _wrong(value, "a number that 64 bits can hold", limits, key)
    if not math.isfinite(value):
        raise _wrong(value, "a finite number", limits, key)
    for limit in limits:
        if isinstance(limit, Range) and not limit.admits(value):
            raise NotAllowed([Problem(key, f"is {_said(value, key)}: it must be {limit}")])
    return value


def _text(value: Any, limits: Sequence[Range | Pattern], key: Key) -> str:
    if not isinstance(value, str):
        quotes = " in quotes" if isinstance(value, bool | int | float) else " ('' for none)" if value is None else ""
        raise _wrong(value, f"text{quotes}", limits, key)
    for limit in limits:
        if isinstance(limit, Pattern) and not limit.admits(value):
            raise NotAllowed([Problem(key, f"is {_said(value, key)}: it must be {limit.words}")])
    return value


def _truth(value: Any, limits: Sequence[Range | Pattern], key: Key) -> bool:
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    if not isinstance(value, bool):
        raise _wrong(value, "true or false", limits, key)
    return value


def _path(value: Any, limits: Sequence[Range | Pattern], key: Key) -> Path:
    return value if isinstance(value, Path) else Path(_text(value, limits, key))


def _nothing(value: Any, limits: Sequence[Range | Pattern], key: Key) -> None:
    if value is not None:
        raise _wrong(value, "null", limits, key)


_SCALARS: dict[Any, Callable[[Any, Sequence[Range | Pattern], Key], Any]] = {
    bool: _truth, int: _whole, float: _real, str: _text, Path: _path, types.NoneType: _nothing, None: _nothing,
}  # fmt: skip
_SEQUENCES: tuple[Any, ...] = (list, tuple, Sequence, Iterable)
_MAPPINGS: tuple[Any, ...] = (dict, Mapping)


def _wrong(value: Any, wanted: str, limits: Sequence[Range | Pattern], key: Key) -> NotAllowed:
    also = "".join(f", {limit}" for limit in limits if isinstance(limit, Range) and str(limit))
    also += "".join(f": {limit.words}" for limit in limits if isinstance(limit, Pattern))
    return NotAllowed([Problem(key, f"is {_said(value, key)}: write {wanted}{also}")])


def shown(value: Any) -> str:
    """A value as YAML writes it, cut off where it is long."""
    if isinstance(value, str):
        return f"'{printable(value, 80)}'"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    return printable(str(value), 80)


def _said(value: Any, key: Key) -> str:
    return "*** (a secret)" if any(is_secret(str(part)) for part in key) else shown(value)


def listed(choices: Iterable[Any], last: str = "or") -> str:
    """``a, b or c``."""
    *first, end = (str(each) for each in choices)
    return f"{', '.join(first)} {last} {end}" if first else end


def nearest(value: Any, choices: Iterable[Any]) -> str:
    """``; did you mean 'b'?``, or nothing where nothing is near."""
    close = difflib.get_close_matches(str(value), [str(each) for each in choices], n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _choice(value: Any, choices: Sequence[Any], key: Key) -> Any:
    for choice in choices:
        if type(value) is type(choice) and value == choice:
            return choice
    if isinstance(value, str) and (number := next((c for c in choices if str(c) == value.strip()), None)) is not None:
        return number  # a number in quotes, by the rule for numbers
    quotes = isinstance(value, bool) and not any(isinstance(choice, bool) for choice in choices)
    hint = " (in quotes: YAML reads off, no, on and yes without them as false and true)" if quotes else ""
    raise NotAllowed([Problem(key, f"is {_said(value, key)}: choose {listed(choices)}{hint}{nearest(value, choices)}")])


def _one_of(value: Any, hints: Sequence[Any], key: Key) -> Any:
    problems: list[Problem] = []
    for hint in sorted(hints, key=lambda each: type(value) is not _bare(each)[0]):  # what it is before what it does for
        try:
            return converted(hint, value, key)
        except NotAllowed as error:
            problems = error.problems if not problems or hint is not types.NoneType else problems
    raise NotAllowed(problems)


def _nested(cls: Any, value: Any, key: Key) -> Any:
    if isinstance(value, cls):
        found = [(name, hint, getattr(value, name)) for name, hint in hints_of(cls).items()]
        problems: list[Problem] = []
        for name, hint, own in found:
            try:
                converted(hint, own, (*key, name))
            except NotAllowed as error:
                problems += error.problems
        if problems:
            raise NotAllowed(problems)
        return value
    if not isinstance(value, Mapping):
        names = ", ".join(list(hints_of(cls))[:8]) or "none"
        raise NotAllowed([Problem(key, f"is {_said(value, key)}: write settings as key: value; keys: {names}")])
    return from_plain(cls, value, key)


def _mapping(inside: Sequence[Any], value: Any, key: Key) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise NotAllowed([Problem(key, f"is {_said(value, key)}: write settings as key: value")])
    problems, found = [], {}
    for name, own in value.items():
        below = (*key, name if isinstance(name, str) else shown(name))
        try:
            if inside[0] is str and not isinstance(name, str):
                raise NotAllowed([Problem(key, f"has the key {shown(name)}: keys are text; put it in quotes")])
            try:
                own_key = converted(inside[0], name, below)
            except NotAllowed as error:
                said = error.problems[0].text.partition(": ")[2]
                raise NotAllowed([Problem(below, f"unknown key '{dotted(below)}': {said}", named=False)]) from error
            found[own_key] = converted(inside[1], own, below)
        except NotAllowed as error:
            problems += error.problems
    if problems:
        raise NotAllowed(problems)
    return found


def _sequence(kind: Any, inside: Sequence[Any], value: Any, key: Key) -> Any:
    if not isinstance(value, list | tuple):
        raise NotAllowed([Problem(key, f"is {_said(value, key)}: write a list, [a, b]")])
    fixed = kind is tuple and inside and Ellipsis not in inside
    if fixed and len(value) != len(inside):
        raise NotAllowed([Problem(key, f"has {len(value)} entries: write {len(inside)}")])
    problems, found = [], []
    for number, own in enumerate(value):
        hint = inside[number] if fixed else inside[0] if inside else Any
        try:
            found.append(converted(hint, own, (*key, number)))
        except NotAllowed as error:
            problems += error.problems
    if problems:
        raise NotAllowed(problems)
    return found if kind is list else tuple(found)


def _bare(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """The annotation without what ``Annotated`` says beside it, and that."""
    return (get_args(hint)[0], hint.__metadata__) if get_origin(hint) is Annotated else (hint, ())


def _not_for_yaml(hint: Any) -> Any:
    """The first part of an annotation that no YAML value fits; None: all of it can be written."""
    bare, _ = _bare(hint)
    origin = get_origin(bare)
    if bare in _SCALARS or bare in (Any, object, Ellipsis) or origin is Literal:
        return None
    if isinstance(bare, type) and (dataclasses.is_dataclass(bare) or issubclass(bare, enum.Enum)):
        return None
    if (origin or bare) in (*_SEQUENCES, *_MAPPINGS, Union, types.UnionType):
        return next((found for each in get_args(bare) if (found := _not_for_yaml(each)) is not None), None)
    return bare


def _has_default(field: "dataclasses.Field[Any]") -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
