"""The keys of a config dataclass: defaults, allowed values, and the strings below the fields."""

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
    is_mapping: bool = False
    """Whether these stand below names of the user's choice: ``KEY.NAME.`` instead of ``KEY.``."""


def keys_of(cls: type) -> list[Key]:
    """All keys of ``cls``, in the order of its fields."""
    texts = field_texts(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    keys = []
    for name, hint in hints_of(cls).items():
        section, is_mapping = _section(hint)
        is_section = section is not None and not is_mapping
        keys.append(
            Key(
                name=name, default="" if is_section else default_of(fields[name]),
                allowed="" if is_section else allowed_text(hint),
                text=texts.get(name, ""), section=section, is_mapping=is_mapping,
            )
        )  # fmt: skip
    return keys


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
        return "{" + ", ".join(f"{key}: {yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(yaml, value))}]"
    text = str(value)
    return text if text and text.isprintable() and not set(text) & set(",[]{}#'\"") else json.dumps(text)


def allowed_text(hint: Any) -> str:
    """What the annotation ``hint`` allows, in Markdown."""
    bare, limits = (get_args(hint)[0], hint.__metadata__) if get_origin(hint) is Annotated else (hint, ())
    origin, type_arguments = get_origin(bare), get_args(bare)
    if (choice_limit := next((option for option in limits if isinstance(option, OneOf)), None)) is not None:
        choices = [f"`{choice}`" for choice in choice_limit.choices]
        return listed([*choices, *([choice_limit.otherwise.words] if choice_limit.otherwise else [])])
    if hint == Name:
        return "text, not empty"
    if pattern := next((option for option in limits if isinstance(option, Pattern)), None):
        return pattern.words
    if origin is Literal:
        return listed(f"`{yaml(choice)}`" for choice in type_arguments)
    if origin in (Union, types.UnionType):
        return listed("`null`" if option is types.NoneType else allowed_text(option) for option in type_arguments)
    if dataclasses.is_dataclass(bare):
        return "keys of its own"
    if isinstance(bare, type) and issubclass(bare, enum.Enum):
        return listed(f"`{option.name}`" for option in bare)
    if origin in (dict, Mapping) or bare in (dict, Mapping):
        key, value_type = type_arguments or (Any, Any)
        if value_type is Any:
            return "mapping"
        value_text = "the keys below" if dataclasses.is_dataclass(value_type) else allowed_text(value_type)
        return f"mapping of {'names' if key in (str, Name) else allowed_text(key)} to {value_text}"
    if origin in (list, tuple, Sequence) or bare in (list, tuple):
        if origin is tuple and Ellipsis not in type_arguments:
            return f"list of {len(type_arguments)}: {'; '.join(map(allowed_text, type_arguments))}"
        return f"list, each {allowed_text(type_arguments[0])}" if type_arguments else "list"
    words = WORDS.get(bare, "anything")
    ranges = [str(limit) for limit in limits if isinstance(limit, Range)]
    return ", ".join([words, *ranges])


def field_texts(cls: type) -> dict[str, str]:
    """The strings below the fields of ``cls``, or where it has none, of the classes that it derives from."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            texts |= _texts_in(_node(base))
    return texts


def text_of(documented: Any) -> str:
    """The docstring of a class or module as one line of Markdown; of a dataclass only a written one."""
    if isinstance(documented, type) and dataclasses.is_dataclass(documented):
        return markdown(ast.get_docstring(_node(documented)) or "")
    return markdown(documented.__doc__)


def markdown(text: str | None) -> str:
    """The first paragraph of a docstring as one line of Markdown."""
    paragraph = " ".join(inspect.cleandoc(text or "").split("\n\n")[0].split())
    return paragraph.replace("``", "`")


def _node(cls: type) -> ast.ClassDef:
    body: Sequence[ast.stmt] = _parsed(cls.__module__).body
    for name in cls.__qualname__.split("."):
        node = next(statement for statement in body if isinstance(statement, ast.ClassDef) and statement.name == name)
        body = node.body
    return node


@cache
def _parsed(module: str) -> ast.Module:
    return ast.parse(textwrap.dedent(inspect.getsource(sys.modules[module])))


def _texts_in(node: ast.ClassDef) -> dict[str, str]:
    texts = {}
    for field, following in zip(node.body, [*node.body[1:], None], strict=True):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        value = following.value if isinstance(following, ast.Expr) else None
        text = value.value if isinstance(value, ast.Constant) else None
        if isinstance(text, str):
            texts[field.target.id] = markdown(text)
    return texts
