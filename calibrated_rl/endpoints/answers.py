"""The answers of an endpoint on disk: found again by request and seed, and the account of what was paid.

A file of JSON Lines that is only ever appended to, one answer a line with a checksum, under a lock: several processes
may share it, and a copy that is made meanwhile is whole up to its last line. A line that a crash or a full disk has cut
is skipped; its answer is paid for again. Requests are not in it, only their digests.
"""

import fcntl
import hashlib
import json
import logging
import os
import threading
from collections import defaultdict
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from calibrated_rl.endpoints.requests import Answer

logger = logging.getLogger(__name__)


@dataclass
class Paid:
    """What answers cost together."""

    answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    unmetered: int = 0
    """Answers whose tokens the server did not count."""

    def add(self, answer: Answer, cost: float) -> None:
        """Count one more."""
        self.answers += 1
        self.prompt_tokens += answer.prompt_tokens
        self.completion_tokens += answer.completion_tokens
        self.cost += cost
        self.unmetered += not answer.metered


class AnswerFile:
    """The answers in ``file``, which is made with the first one. Safe to use from several threads."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.RLock()
        self._answers: dict[str, Answer] = {}
        self._accounts: dict[str, Paid] = defaultdict(Paid)
        self._all = Paid()
        self._read_up_to = 0
        self._broken_lines = 0

    def get(self, key: str) -> Answer | None:
        """The answer to a request, of this process or another one."""
        with self._lock:
            if key not in self._answers:
                self._read_on()
            return self._answers.get(key)

    def keep(self, key: str, answer: Answer, cost: float, account: str) -> Answer:
        """Write an answer down, unless another process was faster; returns the one that counts.

        Args:
            account: who pays for it.

        Raises:
            OSError: it cannot be written.
        """
        line = _line({"key": key, "cost": cost, "account": account, **asdict(answer)})
        with self._lock:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                self._read_on()
                end = file.seek(0, os.SEEK_END)
                line = line if self._ends_with_a_line(end) else b"\n" + line
                try:
                    file.write(line)
                    file.flush()
                    os.fsync(file.fileno())
                except OSError:
                    os.ftruncate(file.fileno(), end)  # a full disk: no half line stays
                    raise
            self._read_on()
            return self._answers[key]

    def paid(self, account: str | None = None) -> Paid:
        """What was paid by ``account``, or by all, in every process up to now."""
        with self._lock:
            self._read_on()
            return self._all if account is None else self._accounts[account]

    def _ends_with_a_line(self, end: int) -> bool:
        if not end:
            return True
        with self._file.open("rb") as file:
            file.seek(end - 1)
            return file.read(1) == b"\n"

    def _read_on(self) -> None:
        """Read what has been appended since, up to the last whole line."""
        try:
            size = os.stat(self._file).st_size
        except FileNotFoundError:
            return
        if size <= self._read_up_to:
            return
        with self._file.open("rb") as file:
            file.seek(self._read_up_to)
            content = file.read(size - self._read_up_to)
        whole = content.rfind(b"\n") + 1
        broken_before = self._broken_lines
        for line in content[:whole].splitlines():
            if line:
                self._take(line)
        self._read_up_to += whole
        if self._broken_lines > broken_before:
            logger.warning(f"{self._file} has {self._broken_lines} broken lines; what they answered is asked again")

    def _take(self, line: bytes) -> None:
        entry = _entry(line)
        if entry is None:
            self._broken_lines += 1
            return
        answer = Answer(**{field.name: entry[field.name] for field in fields(Answer)})
        self._accounts[entry["account"]].add(answer, entry["cost"])
        self._all.add(answer, entry["cost"])
        self._answers.setdefault(entry["key"], answer)  # the first of two processes that asked at once


_NAMES = {"key", "cost", "account", *(field.name for field in fields(Answer))}


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry | {"sha": _digest(entry)}, sort_keys=True).encode() + b"\n"


def _entry(line: bytes) -> dict[str, Any] | None:
    """What a line says; None where it is not as it was written."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    if not isinstance(entry, dict) or entry.pop("sha", None) != _digest(entry):
        return None
    return entry if entry.keys() == _NAMES else None
