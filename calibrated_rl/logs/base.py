"""The protocol of a log reader: human data in, dialogues out, broken lines named and skipped."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from calibrated_rl.dialogue import Dialogue, Split


@dataclass(frozen=True, slots=True)
class LogProblem:
    """A record that was refused. The rest of the file is read all the same."""

    file: str
    line: int
    """1-based line for line formats, 1-based record number for JSON arrays."""
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


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
