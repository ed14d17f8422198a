"""Dialogues whose turns are records of their own: grouped, put in order, and given their sides."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from calibrated_rl.components.plain_data import kind_of
from calibrated_rl.errors import printable
from calibrated_rl.logs.base import LogProblem, Refused
from calibrated_rl.logs.chat_messages import INSTRUCTIONS
from calibrated_rl.logs.found import Found, line_of
from calibrated_rl.logs.record import METADATA
from calibrated_rl.logs.row import Row
from calibrated_rl.logs.sides import Sides

UNORDERED = "dialogues with times or numbers of turns that cannot all be read: not ordered by these"
REORDERED = "dialogues whose turns were put in the order of their times or numbers"


@dataclass(frozen=True, slots=True)
class Utterance:
    """One turn, as its record has it."""

    row: Row
    dialogue: str
    speaker: str
    text: str
    beside: Mapping[str, Any]
    """Everything else of the record."""
    problem: str = ""
    """Why its dialogue cannot be used."""


def utterance(
    row: Row, dialogue: str, speaker_and_text: Callable[[], tuple[str, str]], beside: Mapping[str, Any]
) -> Utterance:
    """A turn of ``dialogue``, or the problem of its speaker or its text: the dialogue is not whole without it."""
    try:
        return Utterance(row, dialogue, *speaker_and_text(), beside)
    except Refused as refusal:
        return Utterance(row, dialogue, "", "", beside, str(refusal))


def grouped(
    rows: Iterator[Row],
    utterance_of: Callable[[Row], Utterance],
    dialogue_of: Callable[[list[Utterance]], Found],
    sides: Sides,
) -> Iterator[Found | LogProblem]:
    """The dialogues of all utterances, in the order of their first ones; those of one dialogue need not be together.

    With a record that cannot be used its dialogue is refused. Only a record that does not say whose it is, is refused
    alone.

    Raises:
        UserError: no turn is of a speaker that the settings name as the policy's.
    """
    file = ""
    dialogues: dict[str, list[Utterance]] = {}
    for row in rows:
        file = row.file
        try:
            if row.problem is not None:
                raise Refused(row.problem)
            utterance = utterance_of(row)
        except Refused as refusal:
            yield LogProblem(row.file, row.number, str(refusal))
        else:
            dialogues.setdefault(utterance.dialogue, []).append(utterance)
    for utterances in dialogues.values():
        at_fault = next((each for each in utterances if each.problem), utterances[0])
        try:
            if at_fault.problem:
                raise Refused(at_fault.problem)
            yield dialogue_of(utterances)
        except Refused as refusal:
            name = printable(repr(at_fault.dialogue), 40)
            yield LogProblem(at_fault.row.file, at_fault.row.number, f"dialogue {name}: {refusal}")
    sides.refuse_unmatched(file)


def spoken(
    utterances: Sequence[Utterance], sides: Sides, metadata: Mapping[str, Any], counts: Counter[str]
) -> dict[str, Any]:
    """The line of a dialogue, its id included.

    Args:
        utterances: in their order.
        metadata: of the dialogue.
        counts: what is decided is counted here.

    Raises:
        Refused: a speaker is of neither side.
    """
    instructions = [u.text for u in utterances if _instructs(u, sides)]
    talking = [u for u in utterances if not _instructs(u, sides)]
    own_sides, decided = sides.of_all([(u.speaker, _record(u)) for u in talking])
    counts.update(decided)
    turns = [
        {"side": side.value, "text": u.text, METADATA: {"speaker": u.speaker, **u.beside}}
        for side, u in zip(own_sides, talking, strict=True)
    ]
    line, _ = line_of(metadata, turns, used=())
    if instructions:
        line.setdefault("policy_instructions", "\n\n".join(instructions))
    return {"id": utterances[0].dialogue, **line}


def _instructs(utterance: Utterance, sides: Sides) -> bool:
    return utterance.speaker.strip().lower() in INSTRUCTIONS and sides.of(utterance.speaker, _record(utterance)) is None


def _record(utterance: Utterance) -> Mapping[str, Any]:
    """All that its record says, that of inner objects which the format has unpacked too."""
    return {**utterance.row.content, **utterance.beside}


def in_order(
    utterances: Sequence[Utterance], keys_of: Sequence[Callable[[Utterance], Any]], counts: Counter[str]
) -> list[Utterance]:
    """Sorted by the first numbers or times that every utterance has; as they are without such. One that is there and
    cannot be read everywhere is counted.

    Args:
        keys_of: each gives a number, a text with a number or a time by ISO 8601, or None.
    """
    given = [[key_of(each) for each in utterances] for key_of in keys_of]
    read = [[_number(value) for value in values] for values in given if any(value is not None for value in values)]
    whole = [[number for number in numbers if number is not None] for numbers in read if None not in numbers]
    counts[UNORDERED] += len(whole) < len(read)
    if not whole:
        return list(utterances)
    keys = whole[0]
    order = sorted(range(len(keys)), key=lambda index: keys[index])
    if order != list(range(len(keys))):
        counts[REORDERED] += 1
    return [utterances[index] for index in order]


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(value)
        return number if math.isfinite(number) else None
    except (ValueError, TypeError, OverflowError):
        pass
    try:
        return datetime.fromisoformat(value).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def text_of(value: Any, name: str) -> str:
    """A text, blank where there is none.

    Raises:
        Refused: it is of another type.
    """
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):  # somebody says a number
        return str(value)
    if not isinstance(value, str):
        raise Refused(f"'{name}' is {kind_of(value)}, not a text")
    return value


def name_of(value: Any, name: str) -> str:
    """An id or a speaker's name.

    Raises:
        Refused: there is none, or it is of another type.
    """
    if isinstance(value, float) and value.is_integer():  # a column with missing numbers
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise Refused(f"'{name}' is {kind_of(value)}, neither a text nor a whole number")
    return str(value)
