"""Reads YAML files of settings: a mapping of text to values, every key once, with the position of each key.

What is refused, each in one line with file, line and column: what is no YAML in UTF-8, no mapping, empty, or several
documents; duplicate keys in one mapping, at any depth; keys that are no text (``off``, ``no`` and dates without
quotes among them; whole numbers may be keys inside the settings of a part). Anchors and merge keys mean what YAML says.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from calibrated_rl.errors import UserError, printable
from calibrated_rl.settings.fields import Key, dotted

MOST_VALUES = 100_000
"""Values of one file, aliases written out; a file of nested anchors could expand to more than fits in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Settings that were read from one place."""

    name: str
    """File, or `command line`."""
    values: dict[str, Any]
    """Plain data; interpolations are not resolved."""
    marks: dict[Key, tuple[int, int]] = field(default_factory=dict)
    """Line and column, from 1, of each key of a file, and of each entry of its lists."""

    def has(self, key: Key) -> bool:
        """Whether it sets ``key``, or a key above or below it."""
        tree: Any = self.values
        for part in key:
            try:
                tree = tree[part]
            except (KeyError, IndexError, TypeError):
                return False
        return True

    def place(self, key: Key) -> str:
        """``file:line:column`` of the key, or of the nearest key above it in the file."""
        for length in range(len(key), 0, -1):
            if key[:length] in self.marks:
                line, column = self.marks[key[:length]]
                return f"{self.name}:{line}:{column}"
        return self.name


def laid_over(below: Any, above: Any) -> Any:
    """``above`` merged into ``below``: mappings key by key, everything else as a whole; ``above`` wins."""
    if not (isinstance(below, Mapping) and isinstance(above, Mapping)):
        return above
    return {**below, **{key: laid_over(below[key], value) if key in below else value for key, value in above.items()}}


def places(sources: Sequence[Source]) -> Callable[[Key], str]:
    """Function that gives the position of a setting: in the last source that has it, or else in the first source."""

    def place(key: Key) -> str:
        for length in range(len(key), 0, -1):
            for source in reversed(sources):
                if source.has(key[:length]):
                    return source.place(key[:length])
        return sources[0].name

    return place


def read_yaml(path: Path, kind: str = "config") -> Source:
    """The settings in a file.

    Args:
        kind: of file, for messages.

    Raises:
        UserError: as above, or it cannot be read.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; a YAML file is wanted")
    if not path.exists():
        raise UserError(f"there is no {kind} file {path}")
    if not path.is_file():
        raise UserError(f"{path} is not a regular file; a YAML file is wanted")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    return parse_yaml(_decoded(content, str(path)), str(path))


def _decoded(content: bytes, name: str) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or 0 in content[:4]:
        raise UserError(f"{name}:1:1: the file is UTF-16 or UTF-32; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        text_before = content[: error.start]
        line, column = text_before.count(b"\n") + 1, error.start - text_before.rfind(b"\n")
        raise UserError(
            f"{name}:{line}:{column}: byte 0x{content[error.start]:02x} is not UTF-8 text; a YAML file is wanted"
        ) from error


def parse_yaml(text: str, name: str) -> Source:
    """The settings in ``text``.

    Args:
        name: of where it comes from, for messages.

    Raises:
        UserError: as above.
    """
    try:
        root = yaml.compose(text, yaml.SafeLoader)
        if root is None or (isinstance(root, yaml.ScalarNode) and not root.value):
            raise UserError(f"{name}:1:1: the file is empty; settings are written as key: value")
        if not isinstance(root, yaml.MappingNode):
            kind = "a list" if isinstance(root, yaml.SequenceNode) else "a single value"
            raise UserError(f"{_at(name, root)}: the file is {kind}; settings are written as key: value")
        marks: dict[Key, tuple[int, int]] = {}
        for key, mark in _walk(root, name):
            marks.setdefault(key, mark)  # what is merged in comes later, and gives way
        values = OmegaConf.to_container(OmegaConf.create(text))
    except yaml.MarkedYAMLError as error:
        raise UserError(_in_words(error, text, name)) from error
    except yaml.reader.ReaderError as error:
        text_before = text[: error.position]
        line, column = text_before.count("\n") + 1, error.position - text_before.rfind("\n")
        raise UserError(
            f"{name}:{line}:{column}: the character U+{ord(text[error.position]):04X} is not allowed in a YAML file"
        ) from error
    except RecursionError as error:
        raise UserError(f"{name}: the settings are nested too deeply") from error
    except OmegaConfBaseException as error:
        reason = printable(str(error).strip().splitlines()[0])
        raise UserError(f"{name}: key '{printable(str(getattr(error, 'full_key', None) or '?'))}': {reason}") from error
    except ValueError as error:  # such as numbers of more digits than Python reads
        if isinstance(error, UserError):
            raise
        raise UserError(f"{name}: {printable(str(error))}") from error
    assert isinstance(values, dict)
    return Source(name=name, values=values, marks=marks)


def _at(name: str, node: yaml.Node) -> str:
    return f"{name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"


def _in_words(error: yaml.MarkedYAMLError, text: str, name: str) -> str:
    mark = error.problem_mark or error.context_mark
    place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
    problem = str(error.problem or error.context or "not YAML")
    lines = text.split("\n")
    if mark and mark.line < len(lines) and "\t" in lines[mark.line][: mark.column + 1]:
        return f"{place}: a tab stands where YAML allows none; indent with spaces"
    if "another document" in problem:
        return f"{place}: a second document begins here; a config file is one"
    if "undefined alias" in problem:
        return f"{place}: {printable(problem)}: there is no anchor of this name before it"
    key = _key_of_line(lines[mark.line]) if mark and mark.line < len(lines) else ""
    context = f" {printable(str(error.context))}" if error.context and error.problem else ""
    return f"{place}: not readable as YAML: {printable(problem)}{context}{key}"


def _key_of_line(line: str) -> str:
    name, colon, _ = line.strip().partition(":")
    return f" (at '{printable(name, 60)}')" if colon and name else ""


def _walk(root: yaml.MappingNode, name: str) -> Iterator[tuple[Key, tuple[int, int]]]:
    """Each key and its position.

    Raises:
        UserError: a key that occurs twice, or is no text, or a value that contains itself.
    """
    count = 0
    waiting: list[tuple[yaml.Node, Key, tuple[int, ...]]] = [(root, (), ())]
    while waiting:
        node, key, above = waiting.pop()
        count += 1
        if id(node) in above:
            raise UserError(f"{_at(name, node)}: '{dotted(key)}' contains itself by its alias")
        if count > MOST_VALUES:
            raise UserError(f"{name}: more than {MOST_VALUES} values, aliases written out")
        if isinstance(node, yaml.SequenceNode):
            for number, child in enumerate(node.value):
                yield (*key, number), (child.start_mark.line + 1, child.start_mark.column + 1)
                waiting.append((child, (*key, number), (*above, id(node))))
        elif isinstance(node, yaml.MappingNode):
            key_nodes: dict[str, yaml.Node] = {}
            for key_node, value in node.value:
                if key_node.tag == "tag:yaml.org,2002:merge":
                    merged = value.value if isinstance(value, yaml.SequenceNode) else [value]
                    waiting += [(child, key, (*above, id(node))) for child in merged]
                    continue
                own_key = _checked_key(key_node, key, key_nodes, name)
                below = (*key, own_key)
                yield below, (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
                waiting.append((value, below, (*above, id(node))))


def _checked_key(node: yaml.Node, key: Key, key_nodes: dict[str, yaml.Node], name: str) -> str:
    below = f" in '{dotted(key)}'" if key else ""
    if not isinstance(node, yaml.ScalarNode):
        raise UserError(f"{_at(name, node)}: a key{below} is a list or a mapping; keys are text")
    kind = node.tag.rpartition(":")[2]
    if kind != "str" and not (kind == "int" and key):
        reads = {"bool": "true or false", "null": "null"}.get(kind, f"a {kind}")
        raise UserError(
            f"{_at(name, node)}: the key {printable(node.value or 'null', 80)}{below} is no text: YAML reads it as "
            f"{reads}; put it in quotes"
        )
    if node.value in key_nodes:
        first = key_nodes[node.value].start_mark
        raise UserError(
            f"{_at(name, node)}: the key '{dotted((*key, node.value))}' occurs twice, first in line {first.line + 1}"
        )
    key_nodes[node.value] = node
    return str(node.value)
