"""The file of Deal or No Deal as checked records: who values what, the turns, and which split a dialogue is in.

The data set is that of Lewis et al. 2017 (arXiv 1706.05125; CC BY-NC 4.0;
github.com/facebookresearch/end-to-end-negotiator, ``src/data/negotiate``), read as published: a line has six numbers
``count value`` of YOU, turns ``YOU: ...`` and ``THEM: ...`` separated by ``<eos>``, the last one ``<selection>`` with
YOUR entry, ``reward=`` YOUR points, ``agree`` or ``disagree``, and the six numbers of THEM.

As a rule a dialogue stands twice, once from either side's view. Both lines make one record, so that no dialogue is in
two splits. Where only one line is there, the other entry follows from it if the two agree; if they do not, nobody
knows it, and the dialogue is left out and counted.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from calibrated_rl.data.dialogue import Split
from calibrated_rl.errors import UserError
from calibrated_rl.examples.deal_or_no_deal.deals import (
    ITEMS,
    MOST_POINTS,
    Counts,
    Entry,
    Refusal,
    Values,
    fits,
    is_entry,
    points,
    rest_of,
)
from calibrated_rl.logs.base import LogProblem, refuse_other_files
from calibrated_rl.logs.data_set import draw_splits
from calibrated_rl.settings.fields import Name, NotNegative, Seed

FILE = "dialogues.txt"
WANTED = (
    "wanted is the public data set Deal or No Deal (Lewis et al. 2017, CC BY-NC 4.0, "
    f"github.com/facebookresearch/end-to-end-negotiator): a file {FILE} (its src/data/negotiate/data.txt) with lines "
    "of six numbers, turns 'YOU: ...' and 'THEM: ...' separated by <eos>, '<selection> item0=... ', 'reward=...', "
    "agree or disagree, and six numbers"
)
YOU, THEM = "YOU", "THEM"
_LINE = re.compile(r"((?:\d+ ){6})(.*) <eos> reward=(\d+|[a-z ]+) (agree|disagree) ((?:\d+ ){5}\d+)")
_SELECTION = re.compile(r"<selection> (.+)")
_ENTERED = re.compile(r"item0=(\d+) item1=(\d+) item2=(\d+)")


@dataclass(frozen=True)
class DealSource:
    """Which dialogues there are, and how they are split; task and reader must name the same."""

    path: Name = "../shared/data/dealornodeal"
    """Folder with dialogues.txt, or a file like it."""
    held_out: NotNegative = 2700
    """Dialogues of the held-out split, half of all: they belong to the proxies and to evaluation alone."""
    monitor: NotNegative = 200
    """Dialogues of the monitor split."""
    tuning: NotNegative = 200
    """Dialogues of the tuning split; the rest is for calibration."""
    seed: Seed = 0
    """Draws the splits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DealRecord:
    """One dialogue. Sides are numbered by who spoke first."""

    id: str
    counts: Counts
    values: tuple[Values, Values]
    talk: tuple[str, ...]
    """Alternating, the side 0 first; at least one turn."""
    entries: tuple[Entry, Entry]
    logged_points: dict[int, int] = field(default_factory=dict)
    """Points of the entries that the file states, by side; some lines have none."""


@dataclass(frozen=True, slots=True)
class _View:
    """One line: the dialogue as YOU saw it."""

    line: int
    counts: Counts
    values: tuple[Values, Values]
    """Of YOU and of THEM."""
    first: str
    """Who speaks first."""
    talk: tuple[str, ...]
    entry: Entry
    logged_points: int | None
    agree: bool

    def key(self, swapped: bool) -> tuple[object, ...]:
        """What both lines of a dialogue have in common: that of the one is the other's, swapped."""
        first = {YOU: THEM, THEM: YOU}[self.first] if swapped else self.first
        return self.counts, self.values[::-1] if swapped else self.values, first, self.talk


class _Refused(Exception):
    """Why a line cannot be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DealFile:
    """What a file has."""

    records: list[DealRecord]
    """In the file's order."""
    problems: list[LogProblem]
    """Lines that cannot be used."""
    left_out: int
    """Dialogues with one line alone, whose entries do not fit, so that the other entry is not known."""


def read_file(path: Path) -> DealFile:
    """All dialogues of ``path``.

    Raises:
        UserError: there is no such file, or none of its lines is usable.
    """
    file = path / FILE if path.is_dir() or not path.suffix else path
    if not file.exists():
        raise UserError(f"{file} does not exist; {WANTED}")
    refuse_other_files(file, WANTED)
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not readable text ({error}); {WANTED}") from error
    views: list[_View] = []
    problems: list[LogProblem] = []
    for number, line in enumerate(lines, start=1):
        try:
            views.append(_view(line, number))
        except _Refused as refusal:
            problems.append(LogProblem(str(file), number, str(refusal)))
    records: list[DealRecord] = []
    left_out = 0
    for view, other in _paired(views):
        try:
            record = _record(view, other)
        except _Refused as refusal:
            problems.append(LogProblem(str(file), view.line, str(refusal)))
            continue
        if record is None:
            left_out += 1
        else:
            records.append(record)
    if not records:
        first = f" (first: {problems[0]})" if problems else ""
        raise UserError(f"{file} contains no usable dialogue{first}; {WANTED}")
    return DealFile(records=records, problems=sorted(problems, key=lambda p: p.line), left_out=left_out)


def _paired(views: Sequence[_View]) -> Iterator[tuple[_View, _View | None]]:
    """Each dialogue once: its first line, and the other if it is there."""
    open_views: dict[tuple[object, ...], list[int]] = {}
    partner: dict[int, int] = {}
    for number, view in enumerate(views):
        waiting = open_views.get(view.key(swapped=True))
        if waiting:
            partner[waiting.pop(0)] = number
        else:
            open_views.setdefault(view.key(swapped=False), []).append(number)
    second = set(partner.values())
    for number, view in enumerate(views):
        if number not in second:
            yield view, views[partner[number]] if number in partner else None


def _view(line: str, number: int) -> _View:
    match = _LINE.fullmatch(line.strip())
    if match is None:
        raise _Refused("the line is not: six numbers, turns, '<eos> reward=', agree or disagree, six numbers")
    own_numbers, talk, reward, agree, other_numbers = match.groups()
    counts, own_values = _numbers(own_numbers, YOU)
    other_counts, other_values = _numbers(other_numbers, THEM)
    if counts != other_counts:
        raise _Refused(f"YOU have {counts} items and THEM {other_counts}")
    *turns, selection = [_turn(text, index) for index, text in enumerate(talk.split("<eos>"))]
    if not turns:
        raise _Refused("nobody says a word before the selection")
    speakers = [speaker for speaker, _ in (*turns, selection)]
    if any(a == b for a, b in zip(speakers, speakers[1:], strict=False)):
        raise _Refused("one side speaks twice in a row")
    for index, (_, text) in enumerate(turns):
        if "<selection>" in text or is_entry(text):
            raise _Refused(f"turn {index}: talk that is a selection: {text[:40]!r}")
    entry = _entry(selection[1])
    stated = None if reward in list(Refusal) else int(reward) if reward.isdigit() else -1
    if stated == -1 or (stated is None) is not isinstance(entry, Refusal):
        raise _Refused(f"reward={reward} is not the reward of {selection[1]!r}")
    if not isinstance(entry, Refusal):
        if any(a > b for a, b in zip(entry, counts, strict=True)):
            raise _Refused(f"{entry} of the items {counts} cannot be entered")
        if (own_points := points(entry, own_values)) != stated:
            raise _Refused(f"reward={reward} where the entry is worth {own_points}")
    return _View(
        line=number, counts=counts, values=(own_values, other_values), first=turns[0][0],
        talk=tuple(text for _, text in turns), entry=entry, logged_points=stated, agree=agree == "agree",
    )  # fmt: skip


def _numbers(text: str, whose: str) -> tuple[Counts, Values]:
    numbers = [int(number) for number in text.split()]
    (a, b, c), (x, y, z) = numbers[0::2], numbers[1::2]
    if points((a, b, c), (x, y, z)) != MOST_POINTS:
        raise _Refused(f"the items are worth {points((a, b, c), (x, y, z))} to {whose}, not {MOST_POINTS}")
    return (a, b, c), (x, y, z)


def _turn(text: str, index: int) -> tuple[str, str]:
    speaker, colon, spoken = text.strip().partition(":")
    spoken = " ".join(spoken.split())
    if speaker not in (YOU, THEM) or not colon or not spoken:
        raise _Refused(f"turn {index} is not 'YOU: words' or 'THEM: words': {text.strip()[:40]!r}")
    return speaker, spoken


def _entry(text: str) -> Entry:
    selected = _SELECTION.fullmatch(text)
    if selected is None:
        raise _Refused(f"the last turn is no <selection>: {text[:40]!r}")
    if selected[1] in list(Refusal):
        return Refusal(selected[1])
    match = _ENTERED.fullmatch(selected[1])
    if match is None:
        raise _Refused(f"the selection is not 'item0=1 item1=0 item2=2', 'no agreement' or 'disconnect': {text[:60]!r}")
    book, hat, ball = map(int, match.groups())
    return book, hat, ball


def _record(view: _View, other: _View | None) -> DealRecord | None:
    """One dialogue of its line and, if it is there, the other side's; None where an entry is not known."""
    if other is not None:
        other_entry = other.entry
    elif not view.agree:
        return None
    else:
        other_entry = view.entry if isinstance(view.entry, Refusal) else rest_of(view.entry, view.counts)
    both_refuse = isinstance(view.entry, Refusal) and view.entry == other_entry
    if view.agree is not (both_refuse or fits(view.entry, other_entry, view.counts)):
        raise _Refused(f"'{'agree' if view.agree else 'disagree'}' of the entries {view.entry} and {other_entry}")
    values, entries = view.values, (view.entry, other_entry)
    logged = (view.logged_points, None if other is None else other.logged_points)
    if view.first == THEM:
        values, entries, logged = (values[1], values[0]), (entries[1], entries[0]), (logged[1], logged[0])
    return DealRecord(
        id=str(view.line), counts=view.counts, values=values, talk=view.talk, entries=entries,
        logged_points={side: stated for side, stated in enumerate(logged) if stated is not None},
    )  # fmt: skip


def split_records(records: Sequence[DealRecord], source: DealSource) -> dict[Split, list[DealRecord]]:
    """The four splits, each in a fixed order that does not depend on the file's.

    Raises:
        UserError: no record would be left for calibration.
    """
    return draw_splits(
        "Deal or No Deal", records, source,
        lambda record: (f"{record.counts}|{record.values}|{'|'.join(record.talk)}", int(record.id)),
    )  # fmt: skip


assert len(ITEMS) == 3, "the file numbers three items"
