"""The replay store: dialogues come in, complete groups go out, each exactly once.

- ``append_table`` writes its table as one durable segment and is idempotent: a dialogue whose
  (kind, arm, update, id) is stored already is skipped and counted, so a retry after a time-out is safe. ``append`` is
  the same for dialogues as objects; converting them takes longer than storing them.
- ``sample`` hands out complete groups of rollouts in the order in which they became complete. A hand-out is
  on disk (``deliveries.jsonl``) before it is returned, so a reopened store repeats none.
- ``rewind`` is for resuming a run from a checkpoint: it takes back the hand-outs that the checkpoint does
  not include and removes what was collected with weights that no longer exist. Files are never rewritten.

Staleness of a group is ``update - newest version of any own policy token in it``, both counted in weight versions: by
how many updates the weights lag behind that sampled its freshest turn. A group that is handed out may contain older
turns, which the learner leaves out of the loss turn by turn (``learner/staleness.py``): long dialogues are not dropped
for being long.
"""

import itertools
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from calibrated_rl.data.dialogue import Dialogue
from calibrated_rl.replay.deliveries import DeliveryLog, Event
from calibrated_rl.replay.index import GroupKey, Index, Span, rows_of
from calibrated_rl.replay.index_files import SEGMENTS, last_of, read_index, write_index
from calibrated_rl.replay.schema import SCHEMA, from_table, in_schema, to_table
from calibrated_rl.replay.segments import (
    RefusedSegment,
    list_segments,
    read_segment,
    segment_name,
    write_segment,
)

CACHE_BYTES = 2**28
"""Segments that a store with a folder keeps in memory: those appended or read last. Most samples are of dialogues
that have just arrived."""
_READERS = 4
"""Segments that are checked at the same time; hashing and reading release Python's global lock."""


class _Segment(NamedTuple):
    """A segment and its rows in the index, from the first to the one before ``stop``."""

    number: int
    first: int
    stop: int


class ReplayStore:
    """Dialogues of one run. With ``folder=None`` nothing is written and everything stays in memory.

    What could not be read is in ``refused``: file name (or file name and line) to reason. A segment that an index file
    covers is checked when its dialogues are first requested, and only then refused.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.refused: dict[str, str] = {}
        self._log = DeliveryLog(folder)
        self._tables: OrderedDict[int, pa.Table] = OrderedDict()
        """Segments in memory, the one used last at the end; without a folder, all of them."""
        self._damaged: dict[int, str] = {}
        """Segments found damaged after opening, with the reason."""
        self._cached_bytes = 0
        self._repeated = 0
        self._clear()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._reopen(folder)

    def _clear(self) -> None:
        self._index = Index()
        self._segments: list[_Segment] = []
        """Those that can be read, in order."""
        self._unindexed: dict[int, dict[int, pa.RecordBatch]] = {}
        """Rows by segment, for the index files that are not written yet: by the last segment of the file."""
        self._last_segment = 0

    def append(self, dialogues: Sequence[Dialogue]) -> int:
        """``append_table`` for dialogues that are Python objects.

        Raises:
            TypeError: a goal, persona, detail or annotation is not JSON-able.
        """
        return self.append_table(to_table(dialogues))

    def append_table(self, table: pa.Table) -> int:
        """Store the dialogues of ``table`` durably, all or none, and return how many were new.

        Args:
            table: as ``to_table`` makes it, in one chunk or in several. It is kept, not copied: Arrow data do not
                change. A slice keeps its parent table alive, here until 256 MiB more have been appended or read,
                without a folder for good. ``oldest_version`` and ``newest_version`` are not checked.

        Raises:
            UserError: another process writes to the same folder.
            ValueError: it is no table of dialogues.
        """
        table = in_schema(table)
        rows = rows_of(table)
        is_new = self._index.new(rows)
        self._repeated += len(is_new) - int(is_new.sum())
        if not is_new.any():
            return 0
        if not is_new.all():
            table, rows = table.filter(pa.array(is_new)), rows.filter(pa.array(is_new))
        self._index.check(rows)
        number = self._last_segment + 1
        if self.folder is not None:
            write_segment(self.folder, number, table)
        self._add(number, rows)
        self._cache(number, table)
        if self.folder is not None:
            self._write_indices(self.folder)
        return rows.num_rows

    def sample(
        self, groups: int, *, update: int, max_staleness: int, arm: str | None = None, allow_fewer: bool = False
    ) -> list[list[Dialogue]]:
        """``groups`` complete groups, oldest first, none handed out before; or, if not so many are ready, an empty
        list, and then none is handed out, or with ``allow_fewer`` those that are. ``update`` is the learner's current
        weight version. Groups that are too stale are dropped for good and counted. ``arm`` restricts the choice. Its
        cost depends on the number of groups handed out or dropped, not on the number stored.
        """
        while True:
            fresh, stale = self._index.choose(groups, update, max_staleness, arm)
            if len(fresh) < groups and not allow_fewer:
                fresh = []
            if not fresh and not stale:
                return []
            try:
                result = self._dialogues(fresh)
            except RefusedSegment as reason:
                self._refuse(reason)
                continue
            event: Event = {
                "update": update, "delivered": fresh, "stale": stale, "segments": self._last_segment
            }  # fmt: skip
            self._log.record(event)
            self._index.apply(event)
            return result

    def rewind(self, update: int) -> None:
        """Return to the checkpoint taken when ``update`` updates were done.

        Hand-outs (and staleness drops) of update ``update`` and later are taken back; dialogues collected
        during a later update, or with weights newer than ``update``, are removed and may be appended again.
        """
        event: Event = {"rewind": update, "segments": self._last_segment}
        self._log.record(event)
        self._index.apply(event)

    def undelivered(self, arm: str) -> list[str]:
        """Ids of the complete groups of ``arm`` that wait to be handed out."""
        return self._index.undelivered(arm)

    def ready(self, arm: str | None = None) -> int:
        """How many complete groups wait to be handed out (staleness not checked)."""
        return self._index.ready(arm)

    def scan(self, *, kind: str | None = None, arm: str | None = None, update: int | None = None) -> Iterator[pa.Table]:
        """Tables of what is stored, in the order of arrival, one segment at a time; segments without a match are
        not read. One that is found damaged is left out and named in ``refused``."""
        is_match = self._index.matching(kind, arm, update)
        for number, first, stop in list(self._segments):
            is_match_in_segment = is_match[first:stop]
            if not is_match_in_segment.any():
                continue
            try:
                table = self._load(number)
            except RefusedSegment as reason:
                self._refuse(reason)
                continue
            yield table if is_match_in_segment.all() else table.filter(pa.array(is_match_in_segment))

    def table(self, *, kind: str | None = None, arm: str | None = None, update: int | None = None) -> pa.Table:
        """All of ``scan`` as one table."""
        return pa.concat_tables([SCHEMA.empty_table(), *self.scan(kind=kind, arm=arm, update=update)])

    def export_parquet(self, path: Path) -> int:
        """Write everything stored as one Parquet file, segment by segment, and return the number of rows."""
        partial = path.with_name(path.name + ".part")
        rows = 0
        with pq.ParquetWriter(partial, SCHEMA, compression="zstd") as writer:
            for table in self.scan():
                writer.write_table(table)
                rows += table.num_rows
        os.replace(partial, path)
        return rows

    def counts(self) -> dict[str, int]:
        """Dialogues stored, groups by state, and numbers of skipped dialogues and refused files."""
        return self._index.counts() | {"repeated": self._repeated, "refused": len(self.refused)}

    # --- below: opening, which goes over segments and events in the order in which they happened

    def _reopen(self, folder: Path) -> None:
        numbers, self.refused = list_segments(folder)
        events, refused = self._log.read()
        self.refused |= refused
        applied = 0
        for first in range(0, len(numbers), SEGMENTS):
            rows = self._rows(folder, numbers[first : first + SEGMENTS])
            for number in sorted(rows):
                while applied < len(events) and events[applied]["segments"] < number:
                    self._index.apply(events[applied])
                    applied += 1
                self._segments.append(_Segment(number, *self._index.add(rows[number])))
        for event in events[applied:]:
            self._index.apply(event)
        self._last_segment = max([0, *numbers, *(event["segments"] for event in events)])

    def _rows(self, folder: Path, numbers: Sequence[int]) -> dict[int, pa.RecordBatch]:
        """Rows by segment of the segments that one index file covers: from it, or from the segments themselves."""
        last = last_of(numbers[-1])
        rows = read_index(folder, last)
        unread = [number for number in numbers if number not in rows]
        with ThreadPoolExecutor(_READERS) as readers:
            for number, rows_or_refusal in zip(
                unread, readers.map(lambda n: _read_rows(folder, n), unread), strict=True
            ):
                if isinstance(rows_or_refusal, RefusedSegment):
                    self.refused[segment_name(number)] = str(rows_or_refusal)
                else:
                    rows[number] = rows_or_refusal
        damaged = rows.keys() & self._damaged.keys()
        for number in damaged:
            self.refused[segment_name(number)] = self._damaged[number]
            del rows[number]
        if damaged or not rows.keys().isdisjoint(unread):
            self._unindexed[last] = dict(rows)
        return rows

    def _refuse(self, reason: RefusedSegment) -> None:
        """Drop a segment that was not checked on opening: open again, as if it had been refused then."""
        assert self.folder is not None
        self._damaged[reason.number] = str(reason)
        self._clear()
        self._reopen(self.folder)

    # --- below: segments in memory and on disk

    def _add(self, number: int, rows: pa.RecordBatch) -> None:
        self._last_segment = number
        self._segments.append(_Segment(number, *self._index.add(rows)))
        if self.folder is not None:
            self._unindexed.setdefault(last_of(number), {})[number] = _copied(rows)

    def _write_indices(self, folder: Path) -> None:
        for last in [last for last in self._unindexed if last <= self._last_segment]:
            write_index(folder, last, self._unindexed[last])
            del self._unindexed[last]

    def _load(self, number: int) -> pa.Table:
        if number not in self._tables:
            assert self.folder is not None
            self._cache(number, read_segment(self.folder, number))
        self._tables.move_to_end(number)
        return self._tables[number]

    def _cache(self, number: int, table: pa.Table) -> None:
        self._tables[number] = table
        self._cached_bytes += table.nbytes
        while self.folder is not None and self._cached_bytes > CACHE_BYTES and len(self._tables) > 1:
            self._evict(next(iter(self._tables)))

    def _evict(self, number: int) -> None:
        self._cached_bytes -= self._tables.pop(number).nbytes

    def _dialogues(self, keys: Sequence[GroupKey]) -> list[list[Dialogue]]:
        """The dialogues of groups. A segment whose last dialogue is among them is evicted: most likely none of it is
        left to hand out."""
        members = [self._index.members(key) for key in keys]
        slices = [
            piece_of_span for span in _joined(itertools.chain(*members)) for piece_of_span in self._by_segment(span)
        ]
        tables = [self._load(segment.number)[first - segment.first : stop - segment.first]
                  for segment, first, stop in slices]  # fmt: skip
        dialogues = iter(from_table(pa.concat_tables([SCHEMA.empty_table(), *tables])))
        for number in {segment.number for segment, _, stop in slices if stop == segment.stop} & self._tables.keys():
            if self.folder is not None:
                self._evict(number)
        return [list(itertools.islice(dialogues, sum(stop - first for first, stop in spans))) for spans in members]

    def _by_segment(self, span: Span) -> Iterator[tuple[_Segment, int, int]]:
        """``span`` by segment."""
        first, stop = span
        while first < stop:
            segment = self._segments[bisect_right(self._segments, first, key=lambda candidate: candidate.first) - 1]
            yield segment, first, min(stop, segment.stop)
            first = segment.stop


def _joined(spans: Iterable[Span]) -> list[Span]:
    """Adjacent spans merged, in the same order."""
    joined: list[Span] = []
    for first, stop in spans:
        if joined and joined[-1][1] == first:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((first, stop))
    return joined


def _read_rows(folder: Path, number: int) -> pa.RecordBatch | RefusedSegment:
    try:
        return _copied(rows_of(read_segment(folder, number)))
    except RefusedSegment as reason:
        return reason


def _copied(rows: pa.RecordBatch) -> pa.RecordBatch:
    """The same, without the rest of the segment that ``rows`` would keep in memory."""
    return rows.take(pa.array(np.arange(rows.num_rows)))
