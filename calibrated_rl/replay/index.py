"""What a store knows of its dialogues without reading them: which are there, which groups they make, what is ready.

Pure data: no files, no clock. Dialogues are *rows*, numbered from 0 in the order in which they came and never
renumbered; ``rewind`` only marks some as gone. A group is a list of runs of rows, since its dialogues mostly come one
after the other. Columns are looked at as arrays; Python goes over runs, and over identities, which are kept exactly.
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
"""Kind, arm and update: what dialogues mostly have in common with those that came beside them."""
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
"""The columns that the index is made of; ``scenario`` is the scenario's id."""
_SAME_IN_GROUP = ("arm", "group_id", "group_size", "scenario", "simulator_version")


def rows_of(table: pa.Table) -> pa.RecordBatch:
    """The columns ``ROWS`` of dialogues, without copying where ``table`` is in one piece."""
    columns = [
        pc.struct_field(table.column(name), "id") if name == "scenario" else table.column(name) for name in ROWS.names
    ]
    return pa.RecordBatch.from_arrays([_in_one_piece(column) for column in columns], schema=ROWS)


def _in_one_piece(column: pa.ChunkedArray) -> pa.Array:
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
        spans, left = [], self.size
        for first, stop in self.runs:
            if left > 0:
                spans.append((first, min(stop, first + left)))
                left -= stop - first
        return spans


class _Run(NamedTuple):
    """Rows of one batch that stand together and belong to one group."""

    first: int
    stop: int
    key: GroupKey
    nature: tuple[int, str, int | None]
    """Size, scenario and simulator version of the group."""


class _Column:
    """An array that grows: amortised, so that adding costs the same however much is there."""

    def __init__(self, dtype: Any) -> None:
        self._room, self._length = np.empty(1024, dtype), 0

    def extend(self, values: Any) -> None:
        stop = self._length + len(values)
        if stop > len(self._room):
            room = np.empty(max(stop, 2 * len(self._room)), self._room.dtype)
            room[: self._length] = self._room[: self._length]
            self._room = room
        self._room[self._length : stop] = values
        self._length = stop

    @property
    def values(self) -> NDArray[Any]:
        return self._room[: self._length]


class Index:
    """Rows, identities and groups of one store."""

    def __init__(self) -> None:
        self._kept, self._latest, self._newest = _Column(np.bool_), _Column(np.int32), _Column(np.int32)
        """Per row: whether it counts; the later of its update and its newest weights; its newest weights, -1 where the
        policy said nothing."""
        self._known: dict[Origin, dict[str, int]] = {}
        """Id to row of all that count."""
        self._groups: dict[GroupKey, _Group] = {}
        self._ready: dict[str, OrderedDict[GroupKey, int]] = {}
        """Per arm, ready groups in the order in which they became complete, with the row that completed them."""
        self._surplus = 0

    def __len__(self) -> int:
        return len(self._kept.values)

    # --- dialogues come in

    def new(self, rows: pa.RecordBatch) -> NDArray[np.bool_]:
        """Which of ``rows`` are neither known nor the repetition of one before: [rows]."""
        new = np.ones(rows.num_rows, np.bool_)
        for origin, ids, places in _by_origin(rows):
            known, seen = self._known.get(origin, {}), set(ids)
            if len(seen) == len(ids) and known.keys().isdisjoint(seen):
                continue
            seen.clear()
            for place, each in zip(places, ids, strict=True):
                new[place] = each not in known and each not in seen
                seen.add(each)
        return new

    def check(self, rows: pa.RecordBatch) -> None:
        """Contract 4: members of a group share scenario and simulator version."""
        seen: dict[GroupKey, tuple[int, str, int | None]] = {}
        for run in _runs(rows):
            group = self._groups.get(run.key)
            first = (group.size, group.scenario, group.simulator_version) if group else run.nature
            assert seen.setdefault(run.key, first) == run.nature, (
                f"group {run.key}: {run.nature} does not fit {seen[run.key]}"
            )

    def add(self, rows: pa.RecordBatch) -> Span:
        """Take in ``rows``, none of which is known, and return where they are."""
        first, stop = len(self), len(self) + rows.num_rows
        newest = _numbers(rows, "newest_version")
        self._kept.extend(np.ones(rows.num_rows, np.bool_))
        self._latest.extend(np.maximum(_numbers(rows, "update"), newest))
        self._newest.extend(newest)
        for origin, ids, places in _by_origin(rows):
            self._known.setdefault(origin, {}).update(zip(ids, (first + place for place in places), strict=True))
        for run in _runs(rows):
            group = self._groups.get(run.key)
            if group is None:
                group = self._groups[run.key] = _Group(*run.nature)
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

    # --- groups go out

    def choose(
        self, groups: int, update: int, max_staleness: int, arm: str | None
    ) -> tuple[list[GroupKey], list[GroupKey]]:
        """Up to ``groups`` ready groups in the order in which they became complete, and those too stale met on the
        way. Nothing changes."""
        chosen: list[GroupKey] = []
        stale: list[GroupKey] = []
        for key in self._in_order(arm):
            if len(chosen) == groups:
                break
            newest = max(int(self._newest.values[first:stop].max()) for first, stop in self._groups[key].members)
            assert newest <= update, f"group {key} has tokens of version {newest} > {update}: rewind first"
            (stale if 0 <= newest < update - max_staleness else chosen).append(key)
        return chosen, stale

    def _in_order(self, arm: str | None) -> Iterable[GroupKey]:
        if arm is not None:
            return self._ready.get(arm, {})
        arms = [ready.items() for ready in self._ready.values()]
        return (key for key, _ in heapq.merge(*arms, key=lambda item: item[1]))

    def members(self, key: GroupKey) -> list[Span]:
        """Where the dialogues of a complete group are."""
        return self._groups[key].members

    def apply(self, event: Event) -> None:
        """What an event of the log of deliveries changes; groups that are not there are passed over."""
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
        kept = self._kept.values
        gone = kept & (self._latest.values > update)
        for key, group in list(self._groups.items()):
            settled = group.state in ("delivered", "stale") and group.update < update
            if settled:  # also where it was begun for a later update and was complete before its turn
                for first, stop in group.runs:
                    gone[first:stop] = False
            elif any(gone[first:stop].any() for first, stop in group.runs):
                # As a whole: what is held anew need not begin with the same words.
                for first, stop in group.runs:
                    gone[first:stop] = kept[first:stop]
                del self._groups[key]
        kept[gone] = False
        self._forget(update, int(gone.sum()))
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

    def _forget(self, update: int, gone: int) -> None:
        """Identities of the ``gone`` rows. Nearly all belong to later updates."""
        kept = self._kept.values
        for later in (True, False):
            if not gone:
                return
            for origin in [origin for origin in self._known if (origin[2] > update) is later]:
                ids = self._known.pop(origin)
                if left := {each: row for each, row in ids.items() if kept[row]}:
                    self._known[origin] = left
                gone -= len(ids) - len(left)

    # --- questions

    def ready(self, arm: str | None) -> int:
        return sum(len(keys) for own, keys in self._ready.items() if arm in (None, own))

    def wanted(self, kind: str | None, arm: str | None, update: int | None) -> NDArray[np.bool_]:
        """Which rows are of this kind, arm and update, where these are given: [rows]."""
        if kind is None and arm is None and update is None:
            return self._kept.values.copy()
        wanted = np.zeros(len(self), np.bool_)
        for origin, ids in self._known.items():
            if all(asked in (None, own) for asked, own in zip((kind, arm, update), origin, strict=True)):
                wanted[np.fromiter(ids.values(), np.int64, len(ids))] = True
        return wanted

    def counts(self) -> dict[str, int]:
        states = Counter(group.state for group in self._groups.values())
        return {
            "dialogues": int(self._kept.values.sum()),
            **{f"groups_{state}": states[state] for state in ("waiting", "ready", "delivered", "stale")},
            "surplus": self._surplus,
        }


def _numbers(rows: pa.RecordBatch, name: str) -> NDArray[np.int32]:
    return rows.column(name).to_numpy()  # type: ignore[no-any-return]


def _by_origin(rows: pa.RecordBatch) -> Iterator[tuple[Origin, list[str], Sequence[int]]]:
    """Ids by kind, arm and update, and where in ``rows`` they stand."""
    if not rows.num_rows:
        return
    kinds, arms = (rows.column(name).dictionary_encode() for name in ("kind", "arm"))
    codes = np.stack([kinds.indices.to_numpy(), arms.indices.to_numpy(), _numbers(rows, "update")])
    ids = rows.column("id").to_pylist()
    if (codes == codes[:, :1]).all():
        yield _origin(kinds, arms, codes[:, 0]), ids, range(len(ids))
        return
    distinct, which = np.unique(codes, axis=1, return_inverse=True)
    for number in range(distinct.shape[1]):
        places = np.flatnonzero(which == number).tolist()
        yield _origin(kinds, arms, distinct[:, number]), [ids[place] for place in places], places


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
        if column.null_count:  # no version is lower than any that there is
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
