"""What a config dataclass says of its own keys: defaults, what is allowed, and the strings below the fields."""

import ast
import dataclasses
import enum
import inspect
import json
import sys
import textwrap
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from calibrated_rl.settings.fields import Name, OneOf, Pattern, Range, hints_of, listed

WORDS = {bool: "`true` or `false`", int: "whole number", float: "number", str: "text", Path: "path"}


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key of a config."""

    name: str
    default: str
    """In YAML, or empty where there is none."""
    allowed: str
    """In Markdown."""
    text: str
    """The string below the field, as one line of Markdown."""
    section: type | None = None
    """The dataclass whose keys stand below this one."""
    many: bool = False
    """Whether these stand below names of the user's choice: ``KEY.NAME.`` instead of ``KEY.``."""


def keys_of(cls: type) -> list[Key]:
    """All keys of ``cls``, in the order of its fields."""
    texts = field_texts(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    found = []
    for name, hint in hints_of(cls).items():
        section, many = _section(hint)
        plain = section is not None and not many
        found.append(
            Key(
                name=name, default="" if plain else default_of(fields[name]), allowed="" if plain else in_words(hint),
                text=texts.get(name, ""), section=section, many=many,
            )
        )  # fmt: skip
    return found


def _section(hint: Any) -> tuple[type | None, bool]:
    bare = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if dataclasses.is_dataclass(bare):
        assert isinstance(bare, type)
        return bare, False
    if get_origin(bare) in (dict, Mapping) and dataclasses.is_dataclass(inside := get_args(bare)[1]):
        assert isinstance(inside, type)
        return inside, True
    return None, False


def default_of(field: "dataclasses.Field[Any]") -> str:
    """The default as YAML writes it; empty where the key must be given."""
    if field.default is not dataclasses.MISSING:
        return yaml(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return yaml(field.default_factory())
    return ""


def yaml(value: Any) -> str:
    """``value`` in YAML's flow style."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, int | float):
        return f"{value:.0e}".replace("e-0", "e-") if isinstance(value, float) and 0 < abs(value) < 1e-4 else str(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {yaml(own)}" for key, own in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(yaml, value))}]"
    text = str(value)
    return text if text and text.isprintable() and not set(text) & set(",[]{}#'\"") else json.dumps(text)


def in_words(hint: Any) -> str:
    """What the annotation ``hint`` allows, in Markdown."""
    bare, limits = (get_args(hint)[0], hint.__metadata__) if get_origin(hint) is Annotated else (hint, ())
    origin, inside = get_origin(bare), get_args(bare)
    if (of := next((each for each in limits if isinstance(each, OneOf)), None)) is not None:
        choices = [f"`{choice}`" for choice in of.choices]
        return listed([*choices, *([of.otherwise.words] if of.otherwise else [])])
    if hint == Name:
        return "text, not empty"
    if pattern := next((each for each in limits if isinstance(each, Pattern)), None):
        return pattern.words
    if origin is Literal:
        return listed(f"`{yaml(choice)}`" for choice in inside)
    if origin in (Union, types.UnionType):
        return listed("`null`" if each is types.NoneType else in_words(each) for each in inside)
    if dataclasses.is_dataclass(bare):
        return "keys of its own"
    if isinstance(bare, type) and issubclass(bare, enum.Enum):
        return listed(f"`{each.name}`" for each in bare)
    if origin in (dict, Mapping) or bare in (dict, Mapping):
        key, own = inside or (Any, Any)
        if own is Any:
            return "mapping"
        what = "the keys below" if dataclasses.is_dataclass(own) else in_words(own)
        return f"mapping of {'names' if key in (str, Name) else in_words(key)} to {what}"
    if origin in (list, tuple, Sequence) or bare in (list, tuple):
        if origin is tuple and Ellipsis not in inside:
            return f"list of {len(inside)}: {'; '.join(map(in_words, inside))}"
        return f"list, each {in_words(inside[0])}" if inside else "list"
    words = WORDS.get(bare, "anything")
    ranges = [str(limit) for limit in limits if isinstance(limit, Range)]
    return ", ".join([words, *ranges])


def field_texts(cls: type) -> dict[str, str]:
    """The strings below the fields of ``cls``, or where it has none, of the classes that it derives from."""
    found: dict[str, str] = {}
    for each in reversed(cls.__mro__):
        if dataclasses.is_dataclass(each):
            found |= _texts_in(_node(each))
    return found


def text_of(thing: Any) -> str:
    """The docstring of a class or module as one line of Markdown; of a dataclass only what somebody wrote."""
    if isinstance(thing, type) and dataclasses.is_dataclass(thing):
        return markdown(ast.get_docstring(_node(thing)) or "")
    return markdown(thing.__doc__)


def markdown(text: str | None) -> str:
    """The first paragraph of a docstring as one line of Markdown."""
    paragraph = " ".join(inspect.cleandoc(text or "").split("\n\n")[0].split())
    return paragraph.replace("``", "`")


def _node(cls: type) -> ast.ClassDef:
    body: Sequence[ast.stmt] = _parsed(cls.__module__).body
    for name in cls.__qualname__.split("."):
        node = next(each for each in body if isinstance(each, ast.ClassDef) and each.name == name)
        body = node.body
    return node


@cache
def _parsed(module: str) -> ast.Module:
    return ast.parse(textwrap.dedent(inspect.getsource(sys.modules[module])))


def _texts_in(node: ast.ClassDef) -> dict[str, str]:
    found = {}
    for field, below in zip(node.body, [*node.body[1:], None], strict=True):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        value = below.value if isinstance(below, ast.Expr) else None
        text = value.value if isinstance(value, ast.Constant) else None
        if isinstance(text, str):
            found[field.target.id] = markdown(text)
    return found
