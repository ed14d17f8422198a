"""Which values a setting may have: ranges and choices are annotations of the fields of a config dataclass.

    updates: Annotated[int, Range(at_least=1)] = 30
    learning_rate: Annotated[float, Range(above=0)] = 3e-4
    keep: Literal["best", "last"] = "best"
    learning_rates: dict[str, Annotated[float, Range(above=0)]] = field(default_factory=dict)
    labels: dict[str, Annotated[str, Pattern(r"\\S+", "a word")]] = field(default_factory=dict)

``from_plain`` makes the dataclass from what a YAML file says, and ``check_settings`` looks at one made in Python; both
name every setting that is not allowed. Whatever is built by import path gets this by its ``Config``.

One rule decides what counts as what: a value must have its field's type, as YAML reads it, save that a whole number
does for ``float``, and that text does for a number or a truth value if it is one without its quotes (what environment
variables contain is always text). ``true`` is no number, ``2.0`` no whole number, and neither of them is text: YAML has
then read more into unquoted letters (``off``, ``1e3``, ``12:30``) than was meant. Numbers are finite.
"""

import dataclasses
import difflib
import enum
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from calibrated_rl.errors import UserError, first_line, printable
from calibrated_rl.settings.ranges import (
    SCALARS,
    Key,
    NotAllowed,
    OneOf,
    Pattern,
    Problem,
    Range,
    chosen,
    dotted,
    listed,
    nearest,
    quoted,
    shown,
)

__all__ = [
    "IMPORT_PATH", "Key", "Name", "NotAllowed", "NotNegative", "OneOf", "PartPath", "PartPathOrNone", "Pattern",
    "Positive", "Precision", "Problem", "Range", "Seed", "Share", "check_settings", "converted", "dotted", "from_plain",
    "hints_of", "listed", "nearest", "refuse", "shown", "unknown_key", "valid_keys",
]  # fmt: skip

MOST_PROBLEMS = 10
"""Lines of one message; further mistakes are only counted."""


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
IMPORT_PATH = Pattern(r"[^:\s][^:]*:[^\W\d]\w*", "an import path: package.module:Class or file.py:Class")
PartPath = Annotated[str, IMPORT_PATH]
"""Import path of a part; see ``component.py``."""
PartPathOrNone = Annotated[str, Pattern(r"|[^:\s][^:]*:[^\W\d]\w*", "empty, or package.module:Class or file.py:Class")]


def refuse(problems: Sequence[Problem], location: Callable[[Key], str]) -> None:
    """Raise a ``UserError`` with a line for each of ``problems``, if there are any.

    Args:
        location: gives file and position of a key.
    """
    if not problems:
        return
    lines = [f"{location(problem.key)}: {problem}" for problem in problems]
    if len(lines) > MOST_PROBLEMS:
        lines[MOST_PROBLEMS:] = [f"and {len(lines) - MOST_PROBLEMS} more"]
    raise UserError("\n".join(lines))


def from_plain(cls: type, values: Mapping[str, Any], key: Key = ()) -> Any:
    """The dataclass ``cls`` with ``values``, plain data as a YAML file contains it; defaults for the rest.

    Raises:
        NotAllowed: keys that it does not have, values of other types or out of range, and what the class itself raises.
        UserError: ``cls`` cannot be a config; see ``hints_of``.
    """
    hints = hints_of(cls)
    problems, arguments = [], {}
    for name, value in values.items():
        if name not in hints:
            problems.append(Problem((*key, name), unknown_key(cls, name, key), named=False))
            continue
        try:
            arguments[name] = converted(hints[name], value, (*key, name))
        except NotAllowed as error:
            problems += error.problems
    required = (f.name for f in dataclasses.fields(cls) if f.init and not _has_default(f) and f.name not in values)
    problems += [Problem((*key, name), "is missing and has no default") for name in required]
    if problems:
        raise NotAllowed(problems)
    try:
        return cls(**arguments)
    except NotAllowed:
        raise
    except Exception as error:
        reason = first_line(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"
        raise NotAllowed([Problem(key, f"{dotted(key)}: {reason}" if key else reason, named=False)]) from error


def check_settings(config: Any, prefix: str) -> None:
    """Refuse what the annotations of ``config``, a dataclass made in Python, do not allow.

    Args:
        prefix: what stands before the names of its fields in the message, such as ``learner``.

    Raises:
        UserError: names each of them.
    """
    problems: list[Problem] = []
    for name, hint in hints_of(type(config)).items():
        try:
            converted(hint, getattr(config, name), (prefix, name))
        except NotAllowed as error:
            problems += error.problems
    if problems:
        raise UserError("\n".join(map(str, problems[:MOST_PROBLEMS])))


def hints_of(cls: Any) -> dict[str, Any]:
    """Annotations of the settable fields of ``cls``, with the ranges in them.

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
        type_hints = typing.get_type_hints(cls, include_extras=True)
    except Exception as error:
        raise UserError(f"{name}: its annotations cannot be read: {first_line(error)}") from error
    hints = {field.name: type_hints[field.name] for field in dataclasses.fields(cls) if field.init}
    for field_name, hint in hints.items():
        if (unknown := _not_for_yaml(hint)) is not None:
            kind = getattr(unknown, "__qualname__", str(unknown))
            raise UserError(
                f"{name}.{field_name} is annotated with {printable(kind)}, which a YAML file cannot contain: take "
                "numbers, texts, truth values, Literal, enumerations, frozen dataclasses, or lists, tuples and dicts "
                "of these"
            )
    return hints


def unknown_key(cls: type, name: Any, key: Key = ()) -> str:
    """The message about a key that ``cls`` does not have: names the nearest that it has, at any depth, or all."""
    valid = sorted(valid_keys(cls))
    leaf = str(name)
    close = difflib.get_close_matches(leaf, [each for each in valid if "." not in each], n=1)
    close = close or [each for each in valid if each.split(".")[-1] == leaf]
    close = close or difflib.get_close_matches(leaf, valid, n=1)
    prefix = f"{dotted(key)}." if key else ""
    if close:
        hint = f"; did you mean '{prefix}{close[0]}'?"
    else:
        top_level = [each for each in valid if "." not in each]
        hint = f"; valid keys: {', '.join(top_level[:20])}" if top_level else "; there is nothing to set"
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
    """``value`` converted to the type of the annotation ``hint``.

    Raises:
        NotAllowed: it is something else.
    """
    bare, limits = _bare(hint)
    origin, inside = get_origin(bare), get_args(bare)
    if bare is Any or bare is object:
        return value
    if origin is Literal:
        return chosen(value, inside, key)
    if origin in (Union, types.UnionType):
        return _one_of(value, inside, key)
    if dataclasses.is_dataclass(bare):
        return _nested(bare, value, key)
    if isinstance(bare, type) and issubclass(bare, enum.Enum):
        return value if isinstance(value, bare) else bare[chosen(value, [each.name for each in bare], key)]
    if (of := next((each for each in limits if isinstance(each, OneOf)), None)) is not None:
        if isinstance(value, str) and of.otherwise is not None and of.otherwise.admits(value):
            return value
        return chosen(value, of.choices, key)
    if bare in SCALARS:
        return SCALARS[bare](value, [each for each in limits if isinstance(each, Range | Pattern)], key)
    if (origin or bare) in _MAPPINGS:
        return _mapping(inside or (Any, Any), value, key)
    return _sequence(origin or bare, inside, value, key)


_SEQUENCES: tuple[Any, ...] = (list, tuple, Sequence, Iterable)
_MAPPINGS: tuple[Any, ...] = (dict, Mapping)


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
        entries = [(name, hint, getattr(value, name)) for name, hint in hints_of(cls).items()]
        problems: list[Problem] = []
        for name, hint, entry in entries:
            try:
                converted(hint, entry, (*key, name))
            except NotAllowed as error:
                problems += error.problems
        if problems:
            raise NotAllowed(problems)
        return value
    if not isinstance(value, Mapping):
        names = ", ".join(list(hints_of(cls))[:8]) or "none"
        raise NotAllowed([Problem(key, f"is {quoted(value, key)}: write settings as key: value; keys: {names}")])
    return from_plain(cls, value, key)


def _mapping(inside: Sequence[Any], value: Any, key: Key) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise NotAllowed([Problem(key, f"is {quoted(value, key)}: write settings as key: value")])
    problems, converted_entries = [], {}
    for name, entry in value.items():
        below = (*key, name if isinstance(name, str) else shown(name))
        try:
            if inside[0] is str and not isinstance(name, str):
                raise NotAllowed([Problem(key, f"has the key {shown(name)}: keys are text; put it in quotes")])
            try:
                own_key = converted(inside[0], name, below)
            except NotAllowed as error:
                reason = error.problems[0].text.partition(": ")[2]
                raise NotAllowed([Problem(below, f"unknown key '{dotted(below)}': {reason}", named=False)]) from error
            converted_entries[own_key] = converted(inside[1], entry, below)
        except NotAllowed as error:
            problems += error.problems
    if problems:
        raise NotAllowed(problems)
    return converted_entries


def _sequence(kind: Any, inside: Sequence[Any], value: Any, key: Key) -> Any:
    if not isinstance(value, list | tuple):
        raise NotAllowed([Problem(key, f"is {quoted(value, key)}: write a list, [a, b]")])
    fixed = kind is tuple and inside and Ellipsis not in inside
    if fixed and len(value) != len(inside):
        raise NotAllowed([Problem(key, f"has {len(value)} entries: write {len(inside)}")])
    problems, converted_entries = [], []
    for number, entry in enumerate(value):
        hint = inside[number] if fixed else inside[0] if inside else Any
        try:
            converted_entries.append(converted(hint, entry, (*key, number)))
        except NotAllowed as error:
            problems += error.problems
    if problems:
        raise NotAllowed(problems)
    return converted_entries if kind is list else tuple(converted_entries)


def _bare(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """The annotation without the metadata of ``Annotated``, and the metadata."""
    return (get_args(hint)[0], hint.__metadata__) if get_origin(hint) is Annotated else (hint, ())


def _not_for_yaml(hint: Any) -> Any:
    """The first part of an annotation that no YAML value fits; None: all of it can be written."""
    bare, _ = _bare(hint)
    origin = get_origin(bare)
    if bare in SCALARS or bare in (Any, object, Ellipsis) or origin is Literal:
        return None
    if isinstance(bare, type) and (dataclasses.is_dataclass(bare) or issubclass(bare, enum.Enum)):
        return None
    if (origin or bare) in (*_SEQUENCES, *_MAPPINGS, Union, types.UnionType):
        return next((unfit for each in get_args(bare) if (unfit := _not_for_yaml(each)) is not None), None)
    return bare


def _has_default(field: "dataclasses.Field[Any]") -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
