"""The CaSiNo file as checked records: who values what, what was said, and which split a dialogue belongs to.

The data set is CaSiNo (Chawla et al. 2021, CC BY 4.0, github.com/kushalchawla/CaSiNo, ``data/split``). It is
read as published: a JSON array of ``dialogue_id``, ``chat_logs`` (each entry ``text``, ``id``, ``task_data``)
and ``participant_info`` (each with ``value2issue``, and ``value2reason`` and ``outcomes.points_scored`` where
known).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibrated_rl.data.dialogue import Side, Split
from calibrated_rl.errors import UserError
from calibrated_rl.examples.casino.deals import (
    ITEMS,
    PACKAGES,
    POINTS,
    Action,
    deal_line,
    negotiate,
    read_actions,
)
from calibrated_rl.logs.base import LogProblem, json_problem, object_of, refuse_other_files
from calibrated_rl.logs.data_set import draw_splits
from calibrated_rl.settings.fields import Name, NotNegative, Seed

FILE = "casino_train.json"
WANTED = (
    "wanted is the public data set CaSiNo (Chawla et al. 2021, CC BY 4.0, github.com/kushalchawla/CaSiNo): "
    f"its data/split/{FILE}, a JSON array of records with 'dialogue_id', 'chat_logs' (entries with 'text', "
    "'id', 'task_data') and 'participant_info' (with 'value2issue')"
)


@dataclass(frozen=True)
class CasinoSource:
    """Which dialogues there are, and how they are split; task and reader must name the same."""

    path: Name = "../shared/data/casino"
    """Folder with casino_train.json, or a file like it."""
    held_out: NotNegative = 300
    """Dialogues of the held-out split."""
    monitor: NotNegative = 60
    """Dialogues of the monitor split."""
    tuning: NotNegative = 60
    """Dialogues of the tuning split; the rest is for calibration."""
    seed: Seed = 0
    """Draws the splits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CasinoRecord:
    """One logged negotiation, as this project seats its sides: who spoke first is the USER."""

    id: str
    priorities: Mapping[Side, Mapping[str, str]]
    """By side: High, Medium and Low to the item."""
    reasons: Mapping[Side, Mapping[str, str]]
    """By side: High, Medium and Low to the participant's own words; may be empty."""
    logged_points: Mapping[Side, int]
    """Points that the file states, by side; may be empty."""
    turns: Sequence[tuple[Side, str]]
    """Alternating, beginning with USER; a side's consecutive entries are the lines of one turn."""

    def values(self, side: Side) -> dict[str, int]:
        """Points that a package of each item is worth to ``side``."""
        worth = {item: POINTS[level] for level, item in self.priorities[side].items()}
        return {item: worth[item] for item in ITEMS}


class _Refused(Exception):
    """Why a record cannot be used."""


def read_records(path: Path) -> tuple[list[CasinoRecord], list[LogProblem]]:
    """All usable records in the file's order, and what was refused, by record number.

    Raises:
        UserError: there is no such file, it is not a JSON array, or none of its records is usable.
    """
    file = path / FILE if path.is_dir() or not path.suffix else path
    if not file.exists():
        raise UserError(f"{file} does not exist; {WANTED}")
    refuse_other_files(file, WANTED)
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=object_of)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is not readable JSON ({error}); {WANTED}") from error
    if not isinstance(content, list):
        raise UserError(f"{file} is not a JSON array; {WANTED}")
    records: dict[str, CasinoRecord] = {}
    problems: list[LogProblem] = []
    for number, raw in enumerate(content, start=1):
        try:
            record = _record(raw)
            if record.id in records:
                raise _Refused(f"dialogue_id {record.id} occurred before")
            records[record.id] = record
        except _Refused as refusal:
            problems.append(LogProblem(str(file), number, str(refusal)))
    if not records:
        first = f" (first: {problems[0]})" if problems else ""
        raise UserError(f"{file} contains no usable dialogue{first}; {WANTED}")
    return list(records.values()), problems


def split_records(records: Sequence[CasinoRecord], source: CasinoSource) -> dict[Split, list[CasinoRecord]]:
    """The four splits, each in a fixed order that does not depend on the file's.

    Raises:
        UserError: a size is negative, or no record would be left for calibration.
    """
    if min(source.held_out, source.monitor, source.tuning) < 0:
        raise UserError("CaSiNo: 'held_out', 'monitor' and 'tuning' must not be negative")
    return draw_splits("CaSiNo", records, source, lambda record: (record.id, record.id))


def _get(container: Any, key: str, kind: type, place: str) -> Any:
    if not isinstance(container, dict) or key not in container:
        raise _Refused(f"{place} has no '{key}'")
    value = container[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _Refused(f"{place}: '{key}' is {type(value).__name__}, not {kind.__name__}")
    return value


def _record(raw: Any) -> CasinoRecord:
    if not isinstance(raw, dict):
        raise _Refused(f"the record is {type(raw).__name__}, not an object")
    if not isinstance(raw.get("dialogue_id"), int | str) or isinstance(raw.get("dialogue_id"), bool):
        raise _Refused("the record has no 'dialogue_id'")
    if problem := json_problem(raw):
        raise _Refused(problem)
    entries = _get(raw, "chat_logs", list, "the record")
    participants = _get(raw, "participant_info", dict, "the record")
    if len(participants) != 2:
        raise _Refused(f"'participant_info' has {len(participants)} participants, not 2")
    if not entries:
        raise _Refused("'chat_logs' is empty")
    first = _get(entries[0], "id", str, "chat_logs[0]")
    sides = {name: Side.USER if name == first else Side.POLICY for name in participants}
    if first not in sides:
        raise _Refused(f"chat_logs[0]: speaker '{first}' is not in 'participant_info'")
    turns = _turns(entries, sides)
    record = CasinoRecord(
        id=str(raw["dialogue_id"]),
        priorities={sides[name]: _priorities(participant, name) for name, participant in participants.items()},
        reasons={sides[name]: _reasons(participant) for name, participant in participants.items()},
        logged_points={sides[n]: points for n, p in participants.items() if (points := _points(p, n)) is not None},
        turns=turns,
    )
    _check_course(record)
    return record


def _check_course(record: CasinoRecord) -> None:
    """The negotiation must end where the log ends, and be worth what the log says."""
    if negotiate(record.turns[:-1]).ending is not None:
        raise _Refused("the talk continues after the negotiation has ended")
    state = negotiate(record.turns)
    if state.ending is None:
        raise _Refused("the dialogue does not end in an accepted deal or in Walk-Away")
    for side, logged in record.logged_points.items():
        points = state.points(side, record.values(side))
        if points != logged:
            raise _Refused(f"points_scored says {logged} where the deal gives {points}")


def _priorities(participant: Any, name: str) -> dict[str, str]:
    values = _get(participant, "value2issue", dict, name)
    if set(values) != set(POINTS) or sorted(map(str, values.values())) != sorted(ITEMS):
        raise _Refused(f"{name}: 'value2issue' does not map High, Medium and Low to {', '.join(ITEMS)}")
    return {level: values[level] for level in POINTS}


def _reasons(participant: Any) -> dict[str, str]:
    reasons = participant.get("value2reason")
    if not isinstance(reasons, dict):
        return {}
    return {level: str(reasons[level]) for level in POINTS if reasons.get(level)}


def _points(participant: Any, name: str) -> int | None:
    if "outcomes" not in participant:
        return None
    return int(_get(_get(participant, "outcomes", dict, name), "points_scored", int, f"{name}.outcomes"))


def _turns(entries: list[Any], sides: Mapping[str, Side]) -> list[tuple[Side, str]]:
    merged: list[tuple[Side, str]] = []
    for index, entry in enumerate(entries):
        place = f"chat_logs[{index}]"
        name = _get(entry, "id", str, place)
        if name not in sides:
            raise _Refused(f"{place}: speaker '{name}' is not in 'participant_info'")
        text = _line(entry, place)
        if merged and merged[-1][0] is sides[name]:
            merged[-1] = (sides[name], f"{merged[-1][1]}\n{text}")
        else:
            merged.append((sides[name], text))
    return merged


def _line(entry: Any, place: str) -> str:
    text = " ".join(_get(entry, "text", str, place).split())
    if not text:
        raise _Refused(f"{place}: the text is empty")
    if text == Action.SUBMIT:
        return _submit(_get(entry, "task_data", dict, place), place)
    if text not in list(Action) and read_actions(text):
        raise _Refused(f"{place}: free text that opens like an action: {text[:40]!r}")
    return text


def _submit(data: Mapping[str, Any], place: str) -> str:
    counts: list[dict[str, int]] = []
    for key in ("issue2youget", "issue2theyget"):
        half = _get(data, key, dict, place)
        try:
            counts.append({item: int(half[item]) for item in ITEMS})
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise _Refused(f"{place}: '{key}' lacks the count of one of {', '.join(ITEMS)}") from error
    speaker_counts, listener_counts = counts
    if any(speaker_counts[i] + listener_counts[i] != PACKAGES or not 0 <= speaker_counts[i] <= PACKAGES for i in ITEMS):
        raise _Refused(f"{place}: the deal does not share out {PACKAGES} packages of each item")
    return deal_line(speaker_counts)
