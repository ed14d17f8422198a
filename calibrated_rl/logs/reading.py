"""Reads files of logs of any known kind: bytes, records, dialogues, each checked, none left out silently.

A file's container (``containers/``) and its records' format (``formats/``) are found out. What a format finds is put
into the project's own form here, with the same decisions for all formats, each counted:

- empty turns are left out; their metadata is kept beside the dialogue (``metadata.empty_turns``);
- a side's consecutive turns stay as they are; what reads them joins them by a line break;
- a dialogue in which the policy does not reply is kept; one in which no user speaks is refused;
- a dialogue without an id gets one of its own words, so that it stays in its split wherever it is moved;
- ids that occur twice: the same once more, in words, instructions, goal and result, is a repetition, left out; any
  other dialogue gets an id of its own.

Personal data are masked last: dialogues that differ in nothing else stay apart.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import chain, islice
from typing import Any

from calibrated_rl.components.plain_data import NotPlain, plain
from calibrated_rl.data.dialogue import Side
from calibrated_rl.errors import UserError, printable
from calibrated_rl.logs.base import DuplicateKey, LogProblem, Refused, json_problem
from calibrated_rl.logs.containers.base import Container, container_of
from calibrated_rl.logs.formats.base import Format, described, fits, format_of, formats
from calibrated_rl.logs.found import Found
from calibrated_rl.logs.options import FileSettings
from calibrated_rl.logs.personal import PersonalData, in_line, in_words
from calibrated_rl.logs.places import Place, places_of
from calibrated_rl.logs.record import METADATA, WANTED, JsonlRecord, record_of
from calibrated_rl.logs.row import Row
from calibrated_rl.logs.streams import LogFile

SNIFFED = 50
"""Records of a file by which its format is found."""
OWN = "runs"
"""The name of the project's own format."""
EMPTY = "empty turns, left out"
JOINED = "consecutive turns of one side, read as one"
NO_REPLY = "dialogues in which the policy does not reply, kept"
GREETED = "dialogues that the policy opens: its first turn is the greeting"
REPEATED = "dialogues that are word for word another one of the same id, left out"
DESCRIBES = ("policy_instructions", "user_instructions", "goal", "reward", "success", "ending")
"""Keys of a line in which two dialogues of the same words may differ."""
RENAMED = "dialogues whose id another one has: renamed"
WITHOUT_ID = "dialogues without an id: named by their words"
BESIDE_LIST = "keys beside the list of records, not kept"


@dataclass(kw_only=True)
class FileReport:
    """What was found in one file."""

    name: str
    container: str
    format: str
    """Its title."""
    dialogues: int = 0
    turns: int = 0
    refused: int = 0


@dataclass(kw_only=True)
class ReadingReport:
    """What was found in all files, and what had to be decided."""

    files: list[FileReport] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    """By what it is called."""
    metadata: Counter[str] = field(default_factory=Counter)
    """Dialogues that have a key in their metadata or in that of a turn, by key."""
    personal: PersonalData = field(default_factory=PersonalData)
    masked: bool = False


class LogReading:
    """The dialogues of files, one after the other; iterate once.

    Raises:
        UserError: when made: a name means no file. While it is iterated: a file is torn, or of a kind that is not read.
    """

    def __init__(self, names: Sequence[str], settings: FileSettings | None = None) -> None:
        self.settings = settings or FileSettings()
        self.places = places_of(names)
        self.problems: list[LogProblem] = []
        """What was refused so far."""
        self.report = ReadingReport(masked=self.settings.mask_personal_data)
        self._seen: dict[str, tuple[str, int]] = {}
        """Of each id so far, unmasked: file and line."""
        self._said: dict[str, set[bytes]] = {}
        """Digests of the dialogues that had an id first, before some were renamed."""
        self._names = Counter[str]()
        """How often a name was given to several dialogues so far."""

    def __iter__(self) -> Iterator[tuple[JsonlRecord, dict[str, Any]]]:
        """Each dialogue, checked, and as the line of JSON Lines that says the same."""
        for place in self.places:
            yield from self._file(place)

    def _file(self, place: Place) -> Iterator[tuple[JsonlRecord, dict[str, Any]]]:
        file = LogFile.of(place.path)
        container = container_of(file)
        rows = _unwrapped(_mapped(container, file, self.settings), self.report.counts)
        first = list(islice(rows, SNIFFED))
        contents = [row.content for row in first if row.problem is None]
        found_format = format_of(contents, self.settings.format, str(place.path))
        if found_format is None and contents and isinstance(contents[0], dict) and "turns" not in contents[0]:
            raise UserError(_unknown_format(place, container, contents[0]))
        reading_format: Format = found_format or formats()[OWN]
        title = f"{file.compression} {container.title}".strip()
        report = FileReport(name=str(place.path), container=title, format=reading_format.title)
        self.report.files.append(report)
        for found in reading_format.dialogues(_checked(chain(first, rows)), self.settings):
            if isinstance(found, LogProblem):
                self._refuse(found)
                report.refused += 1
                continue
            try:
                accepted = self._accepted(found, place, reading_format)
            except Refused as refusal:
                self._refuse(LogProblem(found.row.file, found.row.number, str(refusal)))
                report.refused += 1
                continue
            if accepted is not None:
                report.dialogues += 1
                report.turns += len(accepted[1]["turns"])
                yield accepted

    def _refuse(self, problem: LogProblem) -> None:
        reason = in_words(problem.reason, mask=self.settings.mask_personal_data)
        self.problems.append(replace(problem, reason=reason))

    def _accepted(self, found: Found, place: Place, read_format: Format) -> tuple[JsonlRecord, dict[str, Any]] | None:
        """The dialogue, if it is no repetition.

        Raises:
            Refused: it does not fit.
        """
        row, line, counts = found.row, found.line, found.counts
        strict, is_own = self.settings.strict, read_format is formats()[OWN]
        if not is_own:
            if strict and found.unknown:
                raise Refused(f"unknown key '{printable(found.unknown[0], 40)}'; without strict it is kept as metadata")
            line = self._own_form(line, place, counts)
        record = record_of(line, file=row.file, line=row.number, strict=strict)
        words = _digest(record.turns, record.optional)
        name = own_name = record.id
        if earlier := self._seen.get(name):
            if is_own:
                file, number = earlier
                where = "" if file == record.file else f" of {file}"
                raise Refused(f"id '{record.id}' occurred before, in line {number}{where}")
            if words in self._said[name]:
                self.report.counts[REPEATED] += 1
                return None
            counts[RENAMED] += 1
            self._said[name].add(words)
            name = self._new_name(name)
        self._seen[name] = row.file, row.number
        self._said[name] = {words}
        personal, line = in_line(line, mask=self.settings.mask_personal_data)
        if name != own_name:
            line["id"] += name.removeprefix(own_name)
        record = record_of(line, file=row.file, line=row.number, strict=strict)
        self._count(record, line, counts, personal)
        return record, line

    def _new_name(self, name: str) -> str:
        """``name`` with a number behind it that no dialogue has so far."""
        while True:
            self._names[name] += 1
            if (new := f"{name}-{self._names[name] + 1}") not in self._seen:
                return new

    def _own_form(self, line: dict[str, Any], place: Place, counts: Counter[str]) -> dict[str, Any]:
        """What a format found, as a line: without empty turns, with an id."""
        turns = [turn for turn in line["turns"] if turn["text"].strip()]
        empty = [turn for turn in line["turns"] if not turn["text"].strip()]
        counts[EMPTY] += len(empty)
        if beside := [{"side": turn["side"], **turn[METADATA]} for turn in empty if turn.get(METADATA)]:
            line[METADATA] = {**line.get(METADATA, {}), "empty_turns": beside}
        if not turns:
            raise Refused("it has no turn with words")
        if place.split:
            line[METADATA] = {"dataset_split": place.split, **line.get(METADATA, {})}
        try:
            checked: dict[str, Any] = plain({"id": "", **line, "turns": turns}, "it")
        except NotPlain as problem:
            raise Refused(f"{problem.place} {problem.reason}") from None
        if "id" not in line:
            counts[WITHOUT_ID] += 1
            checked["id"] = _digest([(turn["side"], turn["text"]) for turn in turns], checked).hex()
        return checked

    def _count(self, record: JsonlRecord, line: Any, counts: Counter[str], personal: PersonalData) -> None:
        n_turns = len(line["turns"])
        counts[JOINED] += n_turns - len(record.turns)
        counts[NO_REPLY] += all(side is Side.USER for side, _ in record.turns[record.turns[0][0] is Side.POLICY :])
        counts[GREETED] += record.turns[0][0] is Side.POLICY
        self.report.counts.update(counts)
        keys = {*record.metadata, *(key for turn in record.turn_metadata for each in turn for key in each)}
        self.report.metadata.update(keys)
        self.report.personal.add(personal)


def _digest(turns: Sequence[tuple[str, str]], line: Mapping[str, Any]) -> bytes:
    """Of the words, and of what else makes a dialogue another one."""
    described_by = {key: line[key] for key in DESCRIBES if line.get(key) is not None}
    content = [*turns, described_by] if described_by else turns
    return blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).digest()


def read_logs(names: Sequence[str], settings: FileSettings | None = None) -> tuple[list[JsonlRecord], LogReading]:
    """All dialogues that fit, in the order of the files, and what is known of the reading: problems and report.

    Raises:
        UserError: there is no such file, one is torn or of a kind that is not read, or no dialogue fits.
    """
    reading = LogReading(names, settings)
    records = [record for record, _ in reading]
    if not records:
        raise nothing_usable(reading)
    return records, reading


def nothing_usable(reading: LogReading) -> UserError:
    """Says that no dialogue fits, and the first reason."""
    first = f"; the first reason: {reading.problems[0]}" if reading.problems else ""
    names = ", ".join(str(place.path) for place in reading.places[:3])
    names += f" and {len(reading.places) - 3} more files" if len(reading.places) > 3 else ""
    is_own = {file.format for file in reading.report.files} <= {formats()[OWN].title}
    wanted = f"; {WANTED}" if is_own else ""
    read_as = "" if is_own else f", read as {reading.report.files[0].format},"
    return UserError(f"{names}{read_as} contains no usable dialogue{first}{wanted}")


def _unknown_format(place: Place, container: Container, content: Any) -> str:
    all_formats = ", ".join(f"{name} ({each.title})" for name, each in formats().items())
    return (
        f"{place.path} is {container.title} of no format that is known: {described(content)}. If a row is a turn, say "
        "which columns are which: calibrated-rl logs convert "
        f"{place.path} --columns dialogue=...,side=...,text=...; if a key has the messages: --columns messages=KEY. "
        f"Known are {all_formats}"
    )


def _mapped(container: Container, file: LogFile, settings: FileSettings) -> Iterator[Row]:
    """The rows with their keys by what they contain, as the column map says.

    Raises:
        UserError: the map names a column that is not there, or whose new name another one has.
    """
    columns: dict[str, str] = {str(what): column for what, column in settings.columns.items()}
    columns_not_seen = set(columns.values())
    keys: dict[str, None] = {}
    for row in _without_duplicates(container.rows(file)):
        if not columns or not isinstance(row.content, dict):
            yield row
            continue
        keys |= dict.fromkeys(row.content)
        columns_not_seen -= row.content.keys()
        if columns_not_seen and container.has_columns:
            break
        names = {column: what for what, column in columns.items()}
        contained = {key: value for key, value in row.content.items() if key in names or key not in columns}
        beside = {f"{key}_column": value for key, value in row.content.items() if key not in contained}
        yield Row(row.file, row.number, {**{names.get(k, k): v for k, v in contained.items()}, **beside}, row.problem)
    if columns_not_seen and keys:
        names_there = ", ".join(printable(repr(key), 40) for key in list(keys)[:20])
        raise UserError(
            f"{file.path} has no column {printable(repr(min(columns_not_seen)), 40)}, which the column map names; it "
            f"has {names_there}"
        )


def _unwrapped(rows: Iterator[Row], counts: Counter[str]) -> Iterator[Row]:
    """The rows; where the first is an object that no format recognises, but what is inside: what is inside, the list
    that it has or its values."""
    for index, row in enumerate(rows):
        content = row.content
        if not index and isinstance(content, dict) and content and not fits(content):
            lists = [(key, value) for key, value in content.items() if _is_list_of_records(value)]
            if len(lists) == 1:
                counts[BESIDE_LIST] += len(content) - 1
                yield from (Row(row.file, number, each) for number, each in enumerate(lists[0][1], start=1))
                continue
            if all(isinstance(value, dict | list) and fits(value) for value in content.values()):
                for number, (key, each) in enumerate(content.items(), start=1):
                    yield Row(row.file, number, {"id": key, **(each if isinstance(each, dict) else {"messages": each})})
                continue
        yield row


def _without_duplicates(rows: Iterator[Row]) -> Iterator[Row]:
    """The rows; of an object with a key twice, such as two dialogues of one id, the first value is lost already."""
    for row in rows:
        if isinstance(row.content, DuplicateKey):
            problem = f"the key {printable(repr(row.content.key), 40)} occurs twice in one object"
            yield Row(row.file, row.number, problem=problem)
        else:
            yield row


def _is_list_of_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict | list) and fits(value[0])


def _checked(rows: Iterator[Row]) -> Iterator[Row]:
    """The rows, those that cannot be stored with their problem."""
    for row in rows:
        problem = None if row.problem is not None else json_problem(row.content)
        yield row if problem is None else Row(row.file, row.number, problem=problem)
