"""One JSON value over the whole file: an array of records, an object of records by their ids, or one record."""

import json
from collections.abc import Iterator
from typing import Any

from calibrated_rl.errors import UserError
from calibrated_rl.logs.base import object_of
from calibrated_rl.logs.containers.base import BY_TEXT
from calibrated_rl.logs.row import Row
from calibrated_rl.logs.streams import HEAD, LogFile


class JsonValueContainer:
    """The elements of an array are records; so is an array of messages, and what is no array. Read as a whole."""

    title = "JSON"
    rank = BY_TEXT
    has_columns = False

    def recognises(self, file: LogFile) -> bool:
        """Whether the first line begins a value that it does not end, or is an array alone in the file."""
        text = file.head.decode("utf-8-sig", errors="replace").lstrip()
        first, line_break, rest = text.partition("\n")
        first = first.strip()
        if first[:1] not in ("[", "{"):
            return False
        if not line_break and len(file.head) >= HEAD:  # a line that is longer than what was looked at
            return first[0] == "[" and _is_value_with_long_line(file)
        return _is_unended(first) or (first[0] == "[" and not rest.strip() and _is_json(first))

    def rows(self, file: LogFile) -> Iterator[Row]:
        content = _loaded(file)
        records = content if isinstance(content, list) and not is_talk(content) else [content]
        for number, record in enumerate(records, start=1):
            yield Row(str(file.path), number, record)


def is_talk(content: list[Any]) -> bool:
    """Whether an array is one dialogue, a list of messages, instead of a list of dialogues."""
    return bool(content) and all(
        isinstance(each, dict) and ({"role", "content"} <= each.keys() or {"from", "value"} <= each.keys())
        for each in content
    )


def _is_unended(line: str) -> bool:
    """Whether the JSON value that ``line`` begins continues after it."""
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        return error.pos >= len(line)
    except (ValueError, RecursionError):
        return False
    return False


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _is_value_with_long_line(file: LogFile) -> bool:
    """Whether a first line longer than what was looked at is all that there is, or begins a value that it does not end:
    a list of messages may be the first of JSON Lines."""
    with file.open() as stream:
        first = stream.readline()
        if not any(line.strip() for line in stream):
            return True
    return _is_unended(first.decode("utf-8-sig", errors="replace").strip())


def _loaded(file: LogFile) -> Any:
    try:
        return json.loads(file.whole().decode("utf-8-sig"), object_pairs_hook=object_of)
    except UnicodeDecodeError as error:
        problem = f"is JSON that is not UTF-8 at byte {error.start + 1}"
    except json.JSONDecodeError as error:
        problem = f"is one JSON value that is torn or damaged: {error.msg} at line {error.lineno} column {error.colno}"
    except (ValueError, RecursionError) as error:
        problem = f"is one JSON value that cannot be used: {error}"
    raise UserError(f"{file.path} {problem}; nothing of it was read")
