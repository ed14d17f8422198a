"""A store's index of its dialogues: which are stored, which groups they form, which groups are ready.

Pure data: no files, no clock. Dialogues are *rows*, numbered from 0 in order of arrival and never renumbered;
``rewind`` only marks some as removed. A group is a list of runs of rows, since its dialogues mostly arrive one after
the other. Columns are processed as arrays; Python loops go over runs, and over ids, which are compared exactly.
"""

import heapq
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from calibrated_rl.replay.deliveries import Event

GroupKey = tuple[str, str]
"""Arm and group id."""
Origin = tuple[str, str, int]
"""Kind, arm and update, which dialogues of one batch mostly have in common."""
Span = tuple[int, int]
"""Rows from the first to the one before the second."""

ROWS = pa.schema(
    [
        pa.field(name, kind, nullable=name == "simulator_version")
        for name, kind in {
            "id": pa.string(), "kind": pa.string(), "arm": pa.string(), "update": pa.int32(),
            "group_id": pa.string(), "group_size": pa.int32(), "scenario": pa.string(),
            "simulator_version": pa.int32(), "oldest_version": pa.int32(), "newest_version": pa.int32(),
        }.items()
    ]
)  # fmt: skip
"""The columns that the index is built from; ``scenario`` is the scenario's id."""
_SAME_IN_GROUP = ("arm", "group_id", "group_size", "scenario", "simulator_version")


def rows_of(table: pa.Table) -> pa.RecordBatch:
    """The columns ``ROWS`` of dialogues, without copying where ``table`` has a single chunk."""
    columns = [
        pc.struct_field(table.column(name), "id") if name == "scenario" else table.column(name) for name in ROWS.names
    ]
    return pa.RecordBatch.from_arrays([_single_chunk(column) for column in columns], schema=ROWS)


def _single_chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


@dataclass(slots=True)
class _Group:
    size: int
    scenario: str
    simulator_version: int | None
    runs: list[Span] = field(default_factory=list)
    """Rows in order of arrival; those after the first ``size`` are surplus."""
    count: int = 0
    state: str = "waiting"
    """``waiting`` for members, ``ready``, ``delivered`` or ``stale``."""
    update: int = -1
    """The update it was delivered to or dropped at."""

    @property
    def members(self) -> list[Span]:
        spans, remaining = [], self.size
        for first, stop in self.runs:
            if remaining > 0:
                spans.append((first, min(stop, first + remaining)))
                remaining -= stop - first
        return spans


class _Run(NamedTuple):
    """Adjacent rows of one batch that belong to one group."""

    first: int
    stop: int
    key: GroupKey
    group_fields: tuple[int, str, int | None]
    """Size, scenario and simulator version of the group."""


class _Column:
    """An array that grows: amortised, so that adding takes constant time."""

    def __init__(self, dtype: Any) -> None:
        self._buffer, self._length = np.empty(1024, dtype), 0

    def extend(self, values: Any) -> None:
        stop = self._length + len(values)
        if stop > len(self._buffer):
            larger_buffer = np.empty(max(stop, 2 * len(self._buffer)), self._buffer.dtype)
            larger_buffer[: self._length] = self._buffer[: self._length]
            self._buffer = larger_buffer
        self._buffer[self._length : stop] = values
        self._length = stop

    @property
    def values(self) -> NDArray[Any]:
        return self._buffer[: self._length]


class Index:
    """Rows, identities and groups of one store."""

    def __init__(self) -> None:
        self._is_valid, self._latest, self._newest = _Column(np.bool_), _Column(np.int32), _Column(np.int32)
        """Per row: whether it is valid; the later of its update and its newest weights; its newest weights, -1 where
        the policy said nothing."""
        self._row_of_id: dict[Origin, dict[str, int]] = {}
        """Id to row of all valid rows."""
        self._groups: dict[GroupKey, _Group] = {}
        self._ready: dict[str, OrderedDict[GroupKey, int]] = {}
        """Per arm, ready groups in the order in which they became complete, with the row that completed them."""
        self._surplus = 0

    def __len__(self) -> int:
        return len(self._is_valid.values)

    # --- adding dialogues

    def new(self, rows: pa.RecordBatch) -> NDArray[np.bool_]:
        """Which of ``rows`` are neither stored already nor repeated within ``rows``: [rows]."""
        is_new = np.ones(rows.num_rows, np.bool_)
        for origin, ids, positions in _by_origin(rows):
            stored, batch_ids = self._row_of_id.get(origin, {}), set(ids)
            if len(batch_ids) == len(ids) and stored.keys().isdisjoint(batch_ids):
                continue
            batch_ids.clear()
            for position, dialogue_id in zip(positions, ids, strict=True):
                is_new[position] = dialogue_id not in stored and dialogue_id not in batch_ids
                batch_ids.add(dialogue_id)
        return is_new

    def check(self, rows: pa.RecordBatch) -> None:
        """Contract 4: members of a group share scenario and simulator version."""
        fields_of_group: dict[GroupKey, tuple[int, str, int | None]] = {}
        for run in _runs(rows):
            group = self._groups.get(run.key)
            expected = (group.size, group.scenario, group.simulator_version) if group else run.group_fields
            assert fields_of_group.setdefault(run.key, expected) == run.group_fields, (
                f"group {run.key}: {run.group_fields} does not fit {fields_of_group[run.key]}"
            )

    def add(self, rows: pa.RecordBatch) -> Span:
        """Add ``rows``, none of which is stored yet, and return their span."""
        first, stop = len(self), len(self) + rows.num_rows
        newest = _numbers(rows, "newest_version")
        self._is_valid.extend(np.ones(rows.num_rows, np.bool_))
        self._latest.extend(np.maximum(_numbers(rows, "update"), newest))
        self._newest.extend(newest)
        for origin, ids, positions in _by_origin(rows):
            self._row_of_id.setdefault(origin, {}).update(
                zip(ids, (first + position for position in positions), strict=True)
            )
        for run in _runs(rows):
            group = self._groups.get(run.key)
            if group is None:
                group = self._groups[run.key] = _Group(*run.group_fields)
            self._extend(run.key, group, (first + run.first, first + run.stop))
        return first, stop

    def _extend(self, key: GroupKey, group: _Group, rows: Span) -> None:
        length = rows[1] - rows[0]
        if group.runs and group.runs[-1][1] == rows[0]:
            group.runs[-1] = (group.runs[-1][0], rows[1])
        else:
            group.runs.append(rows)
        group.count += length
        self._surplus += length if group.state != "waiting" else max(0, group.count - group.size)
        if group.state == "waiting" and group.count >= group.size:
            group.state = "ready"
            self._ready.setdefault(key[0], OrderedDict())[key] = group.members[-1][1] - 1

    # --- handing out groups

    def choose(
        self, groups: int, update: int, max_staleness: int, arm: str | None
    ) -> tuple[list[GroupKey], list[GroupKey]]:
        """Up to ``groups`` ready groups in the order in which they became complete, and those found too stale on
        the way. Nothing changes."""
        fresh: list[GroupKey] = []
        stale: list[GroupKey] = []
        for key in self._in_order(arm):
            if len(fresh) == groups:
                break
            newest = max(int(self._newest.values[first:stop].max()) for first, stop in self._groups[key].members)
            assert newest <= update, f"group {key} has tokens of version {newest} > {update}: rewind first"
            (stale if 0 <= newest < update - max_staleness else fresh).append(key)
        return fresh, stale

    def _in_order(self, arm: str | None) -> Iterable[GroupKey]:
        if arm is not None:
            return self._ready.get(arm, {})
        arms = [ready_groups.items() for ready_groups in self._ready.values()]
        return (key for key, _ in heapq.merge(*arms, key=lambda item: item[1]))

    def members(self, key: GroupKey) -> list[Span]:
        """The rows of the dialogues of a complete group."""
        return self._groups[key].members

    def apply(self, event: Event) -> None:
        """Apply an event of the log of deliveries; groups that are not stored are skipped."""
        if "rewind" in event:
            self._rewind(event["rewind"])
            return
        for state in ("delivered", "stale"):
            for arm, group_id in event[state]:
                group = self._groups.get((arm, group_id))
                if group is not None:
                    group.state, group.update = state, event["update"]
                    if arm in self._ready:
                        self._ready[arm].pop((arm, group_id), None)

    def _rewind(self, update: int) -> None:
        is_valid = self._is_valid.values
        is_removed = is_valid & (self._latest.values > update)
        for key, group in list(self._groups.items()):
            settled = group.state in ("delivered", "stale") and group.update < update
            if settled:  # also where it was begun for a later update and was complete earlier
                for first, stop in group.runs:
                    is_removed[first:stop] = False
            elif any(is_removed[first:stop].any() for first, stop in group.runs):
                # Remove the whole group: its rerun need not begin with the same words.
                for first, stop in group.runs:
                    is_removed[first:stop] = is_valid[first:stop]
                del self._groups[key]
        is_valid[is_removed] = False
        self._forget(update, int(is_removed.sum()))
        self._ready.clear()
        self._surplus = 0
        completed: list[tuple[int, GroupKey]] = []
        for key, group in self._groups.items():
            self._surplus += max(0, group.count - group.size)
            if group.state in ("delivered", "stale") and group.update < update:
                continue
            group.state = "ready" if group.count >= group.size else "waiting"
            if group.state == "ready":
                completed.append((group.members[-1][1] - 1, key))
        for row, key in sorted(completed):
            self._ready.setdefault(key[0], OrderedDict())[key] = row

    def _forget(self, update: int, n_removed: int) -> None:
        """Remove the ids of the ``n_removed`` rows. Nearly all belong to later updates."""
        is_valid = self._is_valid.values
        for later in (True, False):
            if not n_removed:
                return
            for origin in [origin for origin in self._row_of_id if (origin[2] > update) is later]:
                ids = self._row_of_id.pop(origin)
                if remaining := {name: row for name, row in ids.items() if is_valid[row]}:
                    self._row_of_id[origin] = remaining
                n_removed -= len(ids) - len(remaining)

    # --- queries

    def undelivered(self, arm: str) -> list[str]:
        return [group_id for _, group_id in self._ready.get(arm, ())]

    def ready(self, arm: str | None) -> int:
        return sum(len(keys) for ready_arm, keys in self._ready.items() if arm in (None, ready_arm))

    def matching(self, kind: str | None, arm: str | None, update: int | None) -> NDArray[np.bool_]:
        """Which rows are of this kind, arm and update, where these are given: [rows]."""
        if kind is None and arm is None and update is None:
            return self._is_valid.values.copy()
        is_match = np.zeros(len(self), np.bool_)
        for origin, ids in self._row_of_id.items():
            if all(requested in (None, value) for requested, value in zip((kind, arm, update), origin, strict=True)):
                is_match[np.fromiter(ids.values(), np.int64, len(ids))] = True
        return is_match

    def counts(self) -> dict[str, int]:
        states = Counter(group.state for group in self._groups.values())
        return {
            "dialogues": int(self._is_valid.values.sum()),
            **{f"groups_{state}": states[state] for state in ("waiting", "ready", "delivered", "stale")},
            "surplus": self._surplus,
        }


def _numbers(rows: pa.RecordBatch, name: str) -> NDArray[np.int32]:
    return rows.column(name).to_numpy()  # type: ignore[no-any-return]


def _by_origin(rows: pa.RecordBatch) -> Iterator[tuple[Origin, list[str], Sequence[int]]]:
    """Ids by kind, arm and update, and their positions in ``rows``."""
    if not rows.num_rows:
        return
    kinds, arms = (rows.column(name).dictionary_encode() for name in ("kind", "arm"))
    codes = np.stack([kinds.indices.to_numpy(), arms.indices.to_numpy(), _numbers(rows, "update")])
    ids = rows.column("id").to_pylist()
    if (codes == codes[:, :1]).all():
        yield _origin(kinds, arms, codes[:, 0]), ids, range(len(ids))
        return
    distinct, origin_of_row = np.unique(codes, axis=1, return_inverse=True)
    for number in range(distinct.shape[1]):
        positions = np.flatnonzero(origin_of_row == number).tolist()
        yield _origin(kinds, arms, distinct[:, number]), [ids[position] for position in positions], positions


def _origin(kinds: pa.DictionaryArray, arms: pa.DictionaryArray, codes: NDArray[np.int32]) -> Origin:
    return kinds.dictionary[codes[0]].as_py(), arms.dictionary[codes[1]].as_py(), int(codes[2])


def _runs(rows: pa.RecordBatch) -> list[_Run]:
    """Neighbours of one group, in order; only rollouts have groups."""
    if not rows.num_rows:
        return []
    grouped = pc.and_(pc.equal(rows.column("kind"), "rollout"), pc.not_equal(rows.column("group_id"), ""))
    grouped = grouped.to_numpy(zero_copy_only=False)
    begins = np.ones(rows.num_rows, np.bool_)
    begins[1:] = grouped[1:] != grouped[:-1]
    for name in _SAME_IN_GROUP:
        column = rows.column(name)
        if column.null_count:  # a missing version is lower than any real one
            column = pc.fill_null(column.cast(pa.int64()), -(2**40))
        begins[1:] |= pc.not_equal(column[1:], column[:-1]).to_numpy(zero_copy_only=False)
    firsts = np.flatnonzero(begins)
    stops = np.append(firsts[1:], rows.num_rows)
    firsts, stops = firsts[grouped[firsts]], stops[grouped[firsts]]
    values = (rows.column(name).take(pa.array(firsts)).to_pylist() for name in _SAME_IN_GROUP)
    return [
        _Run(first, stop, (arm, group_id), (size, scenario, version))
        for first, stop, arm, group_id, size, scenario, version in zip(
            firsts.tolist(), stops.tolist(), *values, strict=True
        )
    ]
