"""The files of Persuasion for Good as checked records: the turns, the donation, and which split a dialogue is in.

The data set is that of Wang et al. 2019 (Persuasion for Good, ACL; Apache-2.0; ``data/FullData``), read as published:
of ``full_dialog.csv`` the columns ``B2`` (dialogue), ``B4`` (0: who persuades, 1: who is to give), ``Turn`` and
``Unit`` (the text), and of ``full_info.csv`` ``B2``, ``B4`` and ``B6``, what the participant gave in the end.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

from calibrated_rl.data.dialogue import Split
from calibrated_rl.errors import UserError
from calibrated_rl.logs.base import LogProblem, refuse_other_files
from calibrated_rl.logs.data_set import draw_splits
from calibrated_rl.settings.fields import Name, NotNegative, Seed

DIALOGUES, PARTICIPANTS = "full_dialog.csv", "full_info.csv"
WANTED = (
    f"wanted is the public data set Persuasion for Good (Wang et al. 2019, Apache-2.0): a folder with {DIALOGUES} "
    f"(columns B2, B4, Turn, Unit) and {PARTICIPANTS} (columns B2, B4, B6)"
)
MOST_CENTS = 200
"""What participants were paid, and could give."""
_PERSUADER, _PERSUADEE = "0", "1"


@dataclass(frozen=True)
class PersuasionSource:
    """Which dialogues there are, and how they are split; task and reader must name the same."""

    path: Name = "../shared/data/persuasionforgood"
    """Folder with full_dialog.csv and full_info.csv."""
    held_out: NotNegative = 300
    """Dialogues of the held-out split."""
    monitor: NotNegative = 60
    """Dialogues of the monitor split."""
    tuning: NotNegative = 60
    """Dialogues of the tuning split; the rest is for calibration."""
    seed: Seed = 0
    """Draws the splits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PersuasionRecord:
    """One dialogue."""

    id: str
    talk: tuple[str, ...]
    """Alternating, who persuades first; at least two turns."""
    cents: int
    """What the other gave in the end."""


class _Refused(Exception):
    """Why a dialogue cannot be used."""


def read_records(folder: Path) -> tuple[list[PersuasionRecord], list[LogProblem]]:
    """All usable dialogues in the file's order, and what was refused, by the line on which a dialogue begins.

    Raises:
        UserError: there are no such files, they lack a column, or no dialogue is usable.
    """
    dialogues, participants = folder / DIALOGUES, folder / PARTICIPANTS
    given = {row["B2"]: row["B6"] for _, row in _rows(participants, ("B2", "B4", "B6")) if row["B4"] == _PERSUADEE}
    turns: dict[str, list[tuple[int, dict[str, str]]]] = {}
    for line, row in _rows(dialogues, ("B2", "B4", "Turn", "Unit")):
        turns.setdefault(row["B2"], []).append((line, row))
    records, problems = [], []
    for name, lines in turns.items():
        try:
            records.append(_record(name, [row for _, row in lines], given.get(name)))
        except _Refused as refusal:
            problems.append(LogProblem(str(dialogues), lines[0][0], str(refusal)))
    if not records:
        first = f" (first: {problems[0]})" if problems else ""
        raise UserError(f"{dialogues} contains no usable dialogue{first}; {WANTED}")
    return records, problems


def split_records(records: Sequence[PersuasionRecord], source: PersuasionSource) -> dict[Split, list[PersuasionRecord]]:
    """The four splits, each in a fixed order that does not depend on the file's.

    Raises:
        UserError: no record would be left for calibration.
    """
    return draw_splits("Persuasion for Good", records, source, lambda record: (record.id, record.id))


def _rows(file: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    refuse_other_files(file, WANTED)
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, restval="")
            if missing := [name for name in columns if name not in (reader.fieldnames or ())]:
                raise UserError(f"{file} has no column {', '.join(missing)}; {WANTED}")
            for row in reader:
                yield reader.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} is not a readable CSV file ({error}); {WANTED}") from error


def _record(name: str, rows: Sequence[dict[str, str]], given: str | None) -> PersuasionRecord:
    if not name.strip():
        raise _Refused("B2 is empty: the dialogue has no name")
    talk = []
    for number, row in enumerate(rows):
        if row["B4"] != (_PERSUADER, _PERSUADEE)[number % 2]:
            raise _Refused(f"turn {number} has the role {row['B4']!r}: the two do not take turns, who persuades first")
        text = " ".join(row["Unit"].split())
        if not text:
            raise _Refused(f"turn {number} is empty")
        talk.append(text)
    if len(talk) < 2:
        raise _Refused("nobody answered")
    if given is None:
        raise _Refused(f"{PARTICIPANTS} does not say what was given")
    return PersuasionRecord(id=name, talk=tuple(talk), cents=_cents(given))


def _cents(given: str) -> int:
    try:
        cents = Decimal(given.strip()) * 100
    except InvalidOperation:
        raise _Refused(f"B6 is {given!r}, which is no amount") from None
    if not cents.is_finite() or cents < 0 or cents != int(cents):
        raise _Refused(f"B6 is {given!r}, which is no amount in dollars and cents")
    if cents > MOST_CENTS:
        raise _Refused(f"B6 is {given}: more than the {MOST_CENTS / 100:g} dollars that participants had to give")
    return int(cents)
