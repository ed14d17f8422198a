"""The log of hand-outs: one JSON line an event, on disk before the event is answered."""

import itertools
import json
import os
from pathlib import Path
from typing import Any

Event = dict[str, Any]
"""``update``, ``delivered`` and ``stale`` (lists of arm and group id), or ``rewind``; and ``segments``: how many
segments there were when it happened, so that reopening replays both in their original order."""

_NUMBERS, _GROUPS = ("update", "rewind", "segments"), ("delivered", "stale")
_KEYS = ({"update", "delivered", "stale", "segments"}, {"rewind", "segments"})


def _is_event(content: Any) -> bool:
    if not isinstance(content, dict) or set(content) not in _KEYS:
        return False
    groups = [content.get(key, []) for key in _GROUPS]
    return (
        all(type(content.get(key, 0)) is int for key in _NUMBERS)
        and all(isinstance(group_list, list) for group_list in groups)
        and all(map(_is_group, itertools.chain(*groups)))
    )


def _is_group(key: Any) -> bool:
    """Arm and group id."""
    return isinstance(key, list) and len(key) == 2 and all(isinstance(part, str) for part in key)


class DeliveryLog:
    """``deliveries.jsonl`` of a store's folder; without a folder, nothing is written."""

    NAME = "deliveries.jsonl"

    def __init__(self, folder: Path | None) -> None:
        self._path = folder / self.NAME if folder is not None else None

    def read(self) -> tuple[list[Event], dict[str, str]]:
        """The events so far, and the invalid lines (``file:line``) with the reason. A torn last line was never
        acknowledged: it is cut off, so that the next one starts on a line of its own."""
        if self._path is None or not self._path.exists():
            return [], {}
        data = self._path.read_bytes()
        complete_lines = data[: data.rfind(b"\n") + 1]
        lines = complete_lines.split(b"\n")[:-1]
        refused: dict[str, str] = {}
        if len(complete_lines) < len(data):
            refused[f"{self.NAME}:{len(lines) + 1}"] = "a last line that was never finished"
            os.truncate(self._path, len(complete_lines))
        events = []
        for number, line in enumerate(lines, start=1):
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                event = None
            if _is_event(event):
                events.append(event)
            else:
                refused[f"{self.NAME}:{number}"] = "not an event of a replay store"
        return events, refused

    def record(self, event: Event) -> None:
        """Append ``event`` durably, or nothing.

        Raises:
            OSError: it could not be written (a full disk).
        """
        if self._path is None:
            return
        line = json.dumps(event).encode() + b"\n"
        with self._path.open("ab", buffering=0) as file:
            size_before = file.tell()
            try:
                while line:
                    line = line[file.write(line) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(size_before)  # or the next event would be appended to half a line
                raise
