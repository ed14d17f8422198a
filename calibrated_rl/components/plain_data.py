"""Data that JSON can represent: NumPy types are converted, other values are refused with their place."""

import math
from collections.abc import Mapping
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.errors import printable

MOST_NESTED = 64
"""Levels. Python's own limit depends on how deep its caller is: what is read near it could be neither stored nor read
back elsewhere."""
MOST_BITS = 1024
"""Of an integer: about what a float can reach. Python refuses to write those of more than 4300 digits."""
_ADVICE = {
    "set": "write sorted(...) or list(...)",
    "frozenset": "write sorted(...) or list(...)",
    "Tensor": "write .tolist()",
    "datetime": "write .isoformat()",
    "date": "write .isoformat()",
    "bytes": "write .decode()",
    "PosixPath": "write str(...)",
    "Decimal": "write float(...)",
    "Fraction": "write float(...)",
    "generator": "write list(...)",
}


class NotPlain(Exception):
    """``reason`` says what is wrong with the value at ``place``."""

    def __init__(self, place: str, reason: str) -> None:
        place = printable(place)
        super().__init__(f"{place} {reason}")
        self.place, self.reason = place, reason


def kind_of(value: Any) -> str:
    """What a value is, in words for a message."""
    if value is None:
        return "None"
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    name = type(value).__name__
    value_text = ""
    if isinstance(value, str | int | float | bool):
        value_text = f" {printable(repr(value), 40)}"
    advice = f"; {_ADVICE[name]}" if name in _ADVICE else ""
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}{value_text}{advice}"


def plain(value: Any, place: str, depth: int = 0) -> Any:
    """``value`` without NumPy's types.

    Raises:
        NotPlain: something in it is no JSON: a set, an object, a number that is not finite, half a surrogate pair, a
            key that is no string, more than ``MOST_NESTED`` levels.
    """
    if depth > MOST_NESTED:
        raise NotPlain(place[:80], f"is nested deeper than {MOST_NESTED} levels, or contains itself")
    if isinstance(value, Enum) and isinstance(value, str | int | float):
        value = value.value
    if value is None or isinstance(value, bool | np.bool_):
        return value if value is None else bool(value)
    if isinstance(value, str):
        return _text(str(value), place)
    if isinstance(value, int | np.integer):
        return _integer(int(value), place)
    if isinstance(value, float | np.floating):
        return number(value, place)
    if isinstance(value, np.ndarray):
        return plain(value.tolist(), place, depth)
    if isinstance(value, list | tuple):
        items = [plain(each, f"{place}[{index}]", depth + 1) for index, each in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, Mapping):
        return {_key(key, place): plain(each, f"{place}[{key!r}]", depth + 1) for key, each in value.items()}
    raise NotPlain(place, f"is {kind_of(value)}, which JSON cannot represent")


def _key(key: Any, place: str) -> str:
    if not isinstance(key, str):
        raise NotPlain(place, f"has the key {printable(repr(key), 40)}: keys must be strings")
    return _text(str(key.value if isinstance(key, Enum) else key), place)


def _text(text: str, place: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise NotPlain(place, "contains half a surrogate pair, which is no character") from None
    return text


def _integer(value: int, place: str) -> int:
    if value.bit_length() > MOST_BITS:
        raise NotPlain(place, f"is an integer of {value.bit_length()} bits: at most {MOST_BITS} can be stored")
    return value


def number(value: Any, place: str) -> float:
    """A finite number as a float; NumPy's scalars and arrays without dimensions are numbers, booleans and strings not.

    Raises:
        NotPlain: it is something else, or not finite.
    """
    value = real(value, place)
    if not math.isfinite(value):
        raise NotPlain(place, f"is {value}: it must be a finite number")
    return value


def real(value: Any, place: str) -> float:
    """As ``number``, with infinities and NaN."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise NotPlain(place, f"is {kind_of(value)}: it must be a number")
    try:
        return float(value)
    except OverflowError:
        raise NotPlain(place, "is beyond the range of a float: it must be a finite number") from None


def numbers(value: Any, count: int, each: str) -> NDArray[np.float64]:
    """``value`` as an array [``count``], which a part returned.

    Args:
        each: what it has a number for.

    Raises:
        NotPlain: it is no array of so many numbers that are finite in float32.
    """
    if not isinstance(value, np.ndarray | list | tuple):
        raise NotPlain("it", f"is {kind_of(value)}: it must be an array of {count} numbers")
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths
        raise NotPlain("it", f"is no array: it must be one of {count} numbers") from None
    if array.shape != (count,):
        raise NotPlain("it", f"has the shape {list(array.shape)}: it must be [{count}], a number for each {each}")
    if array.dtype.kind not in "iuf":
        raise NotPlain("it", f"is an array of {array.dtype}: it must be one of numbers")
    with np.errstate(over="ignore"):
        finite = np.isfinite(array.astype(np.float32))
    if len(not_finite := np.flatnonzero(~finite)):
        raise NotPlain(f"[{not_finite[0]}]", f"is {array[not_finite[0]]}: it must be a finite number")
    return array.astype(np.float64)


def flag(value: Any, place: str) -> bool:
    """True or False, NumPy's too.

    Raises:
        NotPlain: it is something else.
    """
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if not isinstance(value, bool | np.bool_):
        raise NotPlain(place, f"is {kind_of(value)}: it must be True or False")
    return bool(value)


def words(value: Any, place: str, *, blank: bool = False) -> str:
    """A text that can be stored.

    Args:
        blank: whether it may be blank.

    Raises:
        NotPlain: it is something else.
    """
    if not isinstance(value, str):
        raise NotPlain(place, f"is {kind_of(value)}: it must be a string")
    if not blank and not value.strip():
        raise NotPlain(place, f"is {printable(repr(str(value)), 20)}: it must not be blank")
    return _text(str(value.value if isinstance(value, Enum) else value), place)
