"""The replay store: dialogues come in, complete groups go out, each exactly once.

- ``append`` writes what it is given as one durable segment and is idempotent: a dialogue whose
  (kind, arm, update, id) is stored already is skipped and counted, so a retry after a time-out is safe.
- ``sample`` hands out complete groups of rollouts in the order in which they became complete. A hand-out is
  on disk (``deliveries.jsonl``) before it is returned, so a reopened store repeats none.
- ``rewind`` goes with resuming a run from a checkpoint: it takes back the hand-outs that the checkpoint does
  not know of and forgets what was collected with weights that no longer exist. Files are never rewritten.

Staleness is ``update - oldest version of any own policy token in the group``, both counted in weight
versions: the number of updates that the sampling weights lag behind.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from calibrated_rl.dialogue import Dialogue
from calibrated_rl.replay.deliveries import DeliveryLog, Event
from calibrated_rl.replay.schema import SCHEMA, clean, from_table, to_table
from calibrated_rl.replay.segments import (
    RefusedSegment,
    list_segments,
    read_segment,
    segment_name,
    write_segment,
)

GroupKey = tuple[str, str]
"""Arm and group id."""
_INDEXED = [
    "id", "kind", "arm", "update", "group_id", "group_size", "simulator_version", "scenario",
    "oldest_version", "newest_version",
]  # fmt: skip


@dataclass(slots=True)
class _Group:
    """What is known of a group without its dialogues."""

    size: int
    scenario: str
    simulator_version: int | None
    rows: list[tuple[int, int]] = field(default_factory=list)
    """(segment, row) of each member."""
    oldest: int = -1
    state: str = "waiting"
    """``waiting`` for members, ``ready``, ``delivered`` or ``stale``."""
    update: int = -1
    """The update it was delivered to or dropped at."""


class ReplayStore:
    """Dialogues of one run. With ``folder=None`` nothing is written and everything stays in memory.

    What could not be read on opening is in ``refused``: file name (or file name and line) to reason.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.refused: dict[str, str] = {}
        self._tables: dict[int, pa.Table] = {}
        """Segments that still hold undelivered groups; without a folder, all of them."""
        self._kept: dict[int, np.ndarray] = {}
        """Per segment, which rows count: [rows] bool; ``rewind`` clears some."""
        self._last_segment = 0
        self._log = DeliveryLog(folder)
        self._known: set[tuple[str, str, int, str]] = set()
        self._groups: dict[GroupKey, _Group] = {}
        self._ready: dict[GroupKey, None] = {}
        self._undelivered: Counter[int] = Counter()
        self._counts: Counter[str] = Counter()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._reopen(folder)

    def append(self, dialogues: Sequence[Dialogue]) -> int:
        """Store ``dialogues`` durably, all or none, and return how many were new.

        Raises:
            UserError: another process writes to the same folder.
            TypeError: a goal, persona, detail or annotation is not JSON-able.
        """
        new = {_identity(d): d for d in dialogues if _identity(d) not in self._known}
        self._counts["repeated"] += len(dialogues) - len(new)
        if not new:
            return 0
        self._check_groups(list(new.values()))
        table = to_table(list(new.values()))
        number = self._last_segment + 1
        if self.folder is not None:
            write_segment(self.folder, number, table)
        self._index(number, table)
        return len(new)

    def sample(
        self, groups: int, *, update: int, max_staleness: int, arm: str | None = None
    ) -> list[list[Dialogue]]:
        """``groups`` complete groups, oldest first, none handed out before; or an empty list if fewer are
        ready, and then none is handed out. ``update`` is the learner's current weight version. Groups that
        are too stale are dropped for good and counted. ``arm`` restricts the choice.
        """
        chosen: list[GroupKey] = []
        stale: list[GroupKey] = []
        for key in self._ready:
            if arm is not None and key[0] != arm:
                continue
            if len(chosen) == groups:
                break
            oldest = self._groups[key].oldest
            assert oldest <= update, f"group {key} has tokens of version {oldest} > {update}: rewind first"
            staleness = update - oldest if oldest >= 0 else 0
            (chosen if staleness <= max_staleness else stale).append(key)
        if len(chosen) < groups:
            chosen = []
        if not chosen and not stale:
            return []
        result = [self._dialogues(self._groups[key].rows) for key in chosen]
        event: Event = {"update": update, "delivered": chosen, "stale": stale, "segments": self._last_segment}
        self._log.record(event)
        self._apply(event)
        return result

    def rewind(self, update: int) -> None:
        """Go back to the checkpoint taken when ``update`` updates were done.

        Hand-outs (and staleness drops) of update ``update`` and later are taken back; dialogues collected
        during a later update, or with weights newer than ``update``, are forgotten and may be appended anew.
        """
        event: Event = {"rewind": update, "segments": self._last_segment}
        self._log.record(event)
        self._apply(event)

    def ready(self, arm: str | None = None) -> int:
        """How many complete groups wait to be handed out (staleness not yet judged)."""
        return sum(arm is None or key[0] == arm for key in self._ready)

    def scan(self, *, kind: str | None = None, arm: str | None = None) -> Iterator[pa.Table]:
        """Tables of what is stored, in the order of arrival, one segment at a time."""
        for number in list(self._kept):
            table = self._load(number)
            wanted = self._kept[number].copy()
            for name, value in (("kind", kind), ("arm", arm)):
                if value is not None:
                    wanted &= np.asarray(table.column(name).to_pylist()) == value
            if wanted.all():
                yield table
            elif wanted.any():
                yield table.filter(pa.array(wanted))

    def table(self, *, kind: str | None = None, arm: str | None = None) -> pa.Table:
        """All of ``scan`` as one table."""
        return pa.concat_tables([SCHEMA.empty_table(), *self.scan(kind=kind, arm=arm)])

    def export_parquet(self, path: Path) -> int:
        """Write everything stored as one Parquet file, segment by segment, and return the number of rows."""
        part = path.with_name(path.name + ".part")
        rows = 0
        with pq.ParquetWriter(part, SCHEMA, compression="zstd") as writer:
            for table in self.scan():
                writer.write_table(table)
                rows += table.num_rows
        os.replace(part, path)
        return rows

    def counts(self) -> dict[str, int]:
        """Dialogues stored, groups by state, and what was skipped or refused."""
        states = Counter(group.state for group in self._groups.values())
        return {
            "dialogues": int(sum(kept.sum() for kept in self._kept.values())),
            **{f"groups_{state}": states[state] for state in ("waiting", "ready", "delivered", "stale")},
            "repeated": self._counts["repeated"],
            "surplus": self._counts["surplus"],
            "refused": len(self.refused),
        }

    # --- below: the index, rebuilt on opening from segments and events in the order in which they happened

    def _reopen(self, folder: Path) -> None:
        numbers, self.refused = list_segments(folder)
        events, refused = self._log.read()
        self.refused |= refused
        applied = 0
        for number in numbers:
            while applied < len(events) and events[applied]["segments"] < number:
                self._apply(events[applied])
                applied += 1
            try:
                self._index(number, read_segment(folder, number))
            except RefusedSegment as reason:
                self.refused[segment_name(number)] = str(reason)
        for event in events[applied:]:
            self._apply(event)
        self._last_segment = max([0, *numbers, *(event["segments"] for event in events)])
        for number in [n for n in self._tables if not self._undelivered[n]]:
            del self._tables[number]

    def _apply(self, event: Event) -> None:
        if "rewind" in event:
            self._forget_after(event["rewind"])
            return
        for state in ("delivered", "stale"):
            for arm, group_id in event[state]:
                group = self._groups.get((arm, group_id))
                if group is not None:
                    group.state, group.update = state, event["update"]
                    self._ready.pop((arm, group_id), None)
                    self._release(group)

    def _release(self, group: _Group) -> None:
        for number, _ in group.rows:
            self._undelivered[number] -= 1
            if self.folder is not None and not self._undelivered[number]:
                self._tables.pop(number, None)

    def _forget_after(self, update: int) -> None:
        """Rebuild the index from the rows that stay; deliveries before ``update`` keep their state."""
        settled = {
            key: group
            for key, group in self._groups.items()
            if group.state in ("delivered", "stale") and group.update < update
        }
        self._known.clear()
        self._groups.clear()
        self._ready.clear()
        self._undelivered.clear()
        self._counts["surplus"] = 0
        for number, kept in self._kept.items():
            table = self._load(number)
            for name in ("update", "newest_version"):
                kept &= table.column(name).to_numpy() <= update
            self._index_rows(number, table)
            if self._undelivered[number]:
                self._tables[number] = table
        for key, old in settled.items():
            if key in self._groups:
                self._apply({"update": old.update, "delivered": [], "stale": [], old.state: [key]})

    def _index(self, number: int, table: pa.Table) -> None:
        self._last_segment = number
        self._kept[number] = np.ones(table.num_rows, dtype=np.bool_)
        self._index_rows(number, table)
        if self._undelivered[number] or self.folder is None:
            self._tables[number] = table

    def _index_rows(self, number: int, table: pa.Table) -> None:
        for i, row in enumerate(table.select(_INDEXED).to_pylist()):
            if not self._kept[number][i]:
                continue
            self._known.add((row["kind"], row["arm"], row["update"], row["id"]))
            if row["kind"] != "rollout" or not row["group_id"]:
                continue
            key = (row["arm"], row["group_id"])
            group = self._groups.setdefault(
                key, _Group(row["group_size"], row["scenario"]["id"], row["simulator_version"])
            )
            if group.state != "waiting":
                self._counts["surplus"] += 1
                continue
            version = row["oldest_version"] if row["oldest_version"] >= 0 else row["update"]
            group.oldest = min(group.oldest, version) if group.rows else version
            group.rows.append((number, i))
            self._undelivered[number] += 1
            if len(group.rows) == group.size:
                group.state = "ready"
                self._ready[key] = None

    def _check_groups(self, dialogues: Sequence[Dialogue]) -> None:
        """Contract 4: members of a group share scenario and simulator version."""
        seen: dict[GroupKey, tuple[int, str, int | None]] = {}
        for d in dialogues:
            if d.kind != "rollout" or not d.group_id:
                continue
            key = (clean(d.arm), clean(d.group_id))
            mine = (d.group_size, clean(d.scenario.id), d.simulator_version)
            group = self._groups.get(key)
            first = (group.size, group.scenario, group.simulator_version) if group else mine
            assert seen.setdefault(key, first) == mine, f"group {key}: {mine} does not fit {seen[key]}"

    def _load(self, number: int) -> pa.Table:
        if number in self._tables:
            return self._tables[number]
        assert self.folder is not None
        return read_segment(self.folder, number)

    def _dialogues(self, rows: Sequence[tuple[int, int]]) -> list[Dialogue]:
        by_segment: dict[int, list[int]] = defaultdict(list)
        for number, row in rows:
            by_segment[number].append(row)
        parts = [self._load(n).slice(i, 1) for n, indices in by_segment.items() for i in indices]
        return from_table(pa.concat_tables(parts))


def _identity(dialogue: Dialogue) -> tuple[str, str, int, str]:
    return clean(dialogue.kind), clean(dialogue.arm), dialogue.update, clean(dialogue.id)
