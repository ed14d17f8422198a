"""The protocol of a log reader: human data in, dialogues out, broken lines named and skipped."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from calibrated_rl.components.plain_data import MOST_BITS, MOST_NESTED
from calibrated_rl.data.dialogue import Dialogue, Split
from calibrated_rl.errors import UserError, printable

MOST_SHOWN = 3
"""Refused records that are printed for each reason; the others are counted."""
MOST_KINDS = 20
"""Reasons that are printed; a file of another format has as many reasons as lines."""
_OTHER_FILES = {
    b"\x1f\x8b": "is compressed (gzip): unpack it first, as with gunzip -k FILE",
    b"BZh": "is compressed (bzip2): unpack it first, as with bunzip2 -k FILE",
    b"\xfd7zXZ": "is compressed (xz): unpack it first, as with unxz -k FILE",
    b"\x28\xb5\x2f\xfd": "is compressed (zstd): unpack it first, as with unzstd FILE",
    b"PK\x03\x04": "is a ZIP archive: unpack it first",
    b"PAR1": "is a Parquet file, not JSON",
    b"\xff\xfe": "is UTF-16, not UTF-8: save it as UTF-8, as with iconv -f UTF-16 -t UTF-8 FILE",
    b"\xfe\xff": "is UTF-16, not UTF-8: save it as UTF-8, as with iconv -f UTF-16 -t UTF-8 FILE",
}
"""First bytes of files of other formats, and what to say of them."""


class Refused(Exception):
    """Why a record cannot be used."""


@dataclass(frozen=True, slots=True)
class LogProblem:
    """A record that was refused. The rest of the file is read all the same."""

    file: str
    line: int
    """1-based line for line formats, 1-based record number for JSON arrays."""
    reason: str

    def __str__(self) -> str:
        """One line; reasons quote the file, which may contain anything."""
        return f"{self.file}:{self.line}: {printable(self.reason)}"

    @property
    def kind(self) -> str:
        """The reason without what differs from record to record: quoted words and numbers."""
        return printable(re.sub(r"'[^']*'|\"[^\"]*\"|\d+", "_", self.reason.partition("\n")[0]))


def problem_lines(problems: Sequence[LogProblem]) -> list[str]:
    """Lines to print: the number and the first records of each reason, the most frequent reason first."""
    kinds: dict[str, list[LogProblem]] = {}
    for problem in problems:
        kinds.setdefault(problem.kind, []).append(problem)
    lines = []
    ordered = sorted(kinds.values(), key=len, reverse=True)
    for same_kind in ordered[:MOST_KINDS]:
        lines += [f"refused: {problem}" for problem in same_kind[:MOST_SHOWN]]
        if len(same_kind) > MOST_SHOWN:
            lines.append(f"refused: {len(same_kind) - MOST_SHOWN} more for this reason, {len(same_kind)} in all")
    if len(ordered) > MOST_KINDS:
        n_others = sum(map(len, ordered[MOST_KINDS:]))
        lines.append(f"refused: {n_others} more for {len(ordered) - MOST_KINDS} other reasons")
    return lines


def refuse_other_files(file: Path, expected: str) -> None:
    """Refuse files that are not UTF-8 text by their first bytes, before each of their lines is refused.

    Raises:
        UserError: there is no such file, it cannot be read, is empty, compressed or in UTF-16.
    """
    try:
        with file.open("rb") as stream:
            head = stream.read(1024)
    except FileNotFoundError as error:
        raise UserError(f"there is no file {file}; {expected}") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); {expected}") from error
    for mark, complaint in _OTHER_FILES.items():
        if head.startswith(mark):
            raise UserError(f"{file} {complaint.replace('FILE', str(file))}; {expected}")
    if head[:2].count(0) == 1:
        raise UserError(f"{file} {_OTHER_FILES[bytes((255, 254))].replace('FILE', str(file))}; {expected}")
    if not head.removeprefix(b"\xef\xbb\xbf").strip() and len(head) < 1024:
        raise UserError(f"{file} is empty; {expected}")


class DuplicateKey(dict[str, Any]):
    """A JSON object with a duplicate key, of which Python keeps only the last value."""

    key: str


def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For ``json.loads(object_pairs_hook=...)``: marks an object with a duplicate key, for ``json_problem``."""
    content = dict(pairs)
    if len(content) == len(pairs):
        return content
    duplicate = DuplicateKey(content)
    seen_keys: set[str] = set()
    duplicate.key = next(key for key, _ in pairs if key in seen_keys or seen_keys.add(key))  # type: ignore[func-returns-value]
    return duplicate


def json_problem(content: Any) -> str | None:
    """Why JSON data cannot be stored as it is, or None: a key twice in an object (read with ``object_of``), nested too
    deeply, a number that is not finite, or half a surrogate pair, which escapes such as \\ud800 alone spell and UTF-8
    cannot."""
    level, depth = [content], 0
    while level:
        depth += 1
        if depth > MOST_NESTED:
            return f"it is nested deeper than {MOST_NESTED} levels"
        if duplicate := next((node for node in level if isinstance(node, DuplicateKey)), None):
            return f"the key '{duplicate.key}' occurs twice in one object"
        if any(isinstance(node, float) and not math.isfinite(node) for node in level):
            return "it contains a number that is not a finite number"
        inner = [node.values() if isinstance(node, dict) else node for node in level if isinstance(node, dict | list)]
        level = [child for children in inner for child in children]
        if any(isinstance(node, int) and node.bit_length() > MOST_BITS for node in level):
            return (
                f"it contains an integer of more than {MOST_BITS} bits, which is not a finite number for most programs"
            )
    try:
        json.dumps(content, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return "a text contains half a surrogate pair, which is no character"
    return None


@runtime_checkable
class LogReader(Protocol):
    """Reads one human data set. Built as ``ReaderClass(ReaderClass.Config(...), task=task)``."""

    problems: list[LogProblem]
    """What was refused so far."""

    def read(self, split: Split) -> list[Dialogue]:
        """All logged dialogues of ``split``, in a fixed order, each with ``kind='log'``.

        Raises:
            UserError: the data is missing or contains no usable dialogue; the message says what it must contain.
        """
        ...


@runtime_checkable
class FileReader(LogReader, Protocol):
    """A log reader that recognises its own files, so that they can be read without naming reader and task."""

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether ``path``, a file or a folder that is there, is of its kind."""
        ...

    @classmethod
    def whole(cls, path: Path) -> LogReader:
        """A reader of all dialogues of ``path`` as one split, ``calibration``."""
        ...
