"""The protocol of a log reader: human data in, dialogues out, broken lines named and skipped."""

import json
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from calibrated_rl.dialogue import Dialogue, Split
from calibrated_rl.errors import printable

MOST_NESTED = 64
"""Levels of a record's JSON. Python's own limit depends on how deep its caller is: what is read near it could be
neither stored nor read back elsewhere."""


@dataclass(frozen=True, slots=True)
class LogProblem:
    """A record that was refused. The rest of the file is read all the same."""

    file: str
    line: int
    """1-based line for line formats, 1-based record number for JSON arrays."""
    reason: str

    def __str__(self) -> str:
        """One line; reasons quote the file, which may hold anything."""
        return f"{self.file}:{self.line}: {printable(self.reason)}"


def json_problem(content: Any) -> str | None:
    """Why JSON data cannot be kept as it is, or None: nested too deeply, or with half a surrogate pair, which escapes
    such as \\ud800 alone spell and UTF-8 cannot."""
    level, depth = [content], 0
    while level:
        depth += 1
        if depth > MOST_NESTED:
            return f"it is nested deeper than {MOST_NESTED} levels"
        inner = [node.values() if isinstance(node, dict) else node for node in level if isinstance(node, dict | list)]
        level = [child for children in inner for child in children]
    try:
        json.dumps(content, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return "a text holds half a surrogate pair, which is no character"
    return None


@runtime_checkable
class LogReader(Protocol):
    """Reads one human data set. Built as ``ReaderClass(ReaderClass.Config(...), task=task)``."""

    problems: list[LogProblem]
    """What was refused so far."""

    def read(self, split: Split) -> list[Dialogue]:
        """All logged dialogues of ``split``, in a fixed order, each with ``kind='log'``.

        Raises:
            UserError: the data is missing or holds no usable dialogue; the message says what it must hold.
        """
        ...
