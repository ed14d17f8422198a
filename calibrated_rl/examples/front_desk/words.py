"""The language of the front desk: slots, values, sloppy spellings, and how either side's text is read.

Every value is one word that belongs to one slot, and every sloppy spelling stands for one word, so any text
has exactly one interpretation. Parsing never fails: what is not understood is a move of kind ``OTHER``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from itertools import pairwise
from typing import Any

from calibrated_rl.data.dialogue import Scenario, Side, Turn

SLOTS: dict[str, tuple[str, ...]] = {
    "day": ("monday", "tuesday", "wednesday", "thursday", "friday"),
    "time": ("six", "seven", "eight", "nine", "ten"),
    "people": ("one", "two", "three", "four", "five"),
    "seat": ("window", "garden", "bar", "booth", "terrace"),
    "meal": ("fish", "meat", "pasta", "salad", "soup"),
}
SLOT_OF: dict[str, str] = {value: slot for slot, values in SLOTS.items() for value in values}

SLOPPY: dict[str, str] = {
    "monday": "mon", "tuesday": "tue", "wednesday": "wed", "thursday": "thu", "friday": "fri",
    "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10",
    "one": "1", "two": "2", "three": "3", "four": "4", "five": "5",
    "window": "windw", "garden": "gardn", "bar": "barr", "booth": "boot", "terrace": "terace",
    "fish": "fsh", "meat": "meet", "pasta": "psta", "salad": "salat", "soup": "sop",
    "please": "pls", "sorry": "sry", "yes": "yep", "no": "nope", "what": "wut", "table": "tabel", "said": "sed",
}  # fmt: skip
"""Canonical word to its one sloppy spelling; words that are not here are always typed as they are."""
TIDY: dict[str, str] = {sloppy: word for word, sloppy in SLOPPY.items()}

LEAVE = ("forget", "it", "bye")
"""What a user says who leaves; ``forget it`` anywhere in a user turn is read as leaving."""
CHANGE = ("sorry", "make", "it")
"""How a change of mind begins; the new value follows."""

CLOSED = "closed"
"""Ending: the policy booked."""
LEFT = "left"
"""Ending: the user left."""


class MoveKind(StrEnum):
    """What a policy turn does."""

    ASK = "ask"
    READ_BACK = "read_back"
    BOOK = "book"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Move:
    """A policy turn as it is understood."""

    kind: MoveKind
    slots: tuple[str, ...] = ()
    """Those of an ``ASK``, in the order of the text; no slot twice."""
    values: tuple[str, ...] = ()
    """The values of a ``READ_BACK`` or a ``BOOK``, sorted by slot; no two of one slot."""
    clean: bool = True
    """False for a booking with words that are no values, or with two values for a slot: it fits no goal."""

    @property
    def by_slot(self) -> dict[str, str]:
        return {SLOT_OF[value]: value for value in self.values}


@dataclass(frozen=True, slots=True)
class Goal:
    """What the user wants."""

    first: tuple[tuple[str, str], ...]
    """(slot, value) pairs in the order of ``SLOTS``."""
    change_turn: int = 0
    """User turn (the opening one is 1) from which on the user wants the change; 0 if it never does."""
    change_slot: str = ""
    change_value: str = ""

    @property
    def slots(self) -> tuple[str, ...]:
        return tuple(slot for slot, _ in self.first)

    def wish(self, changed: bool) -> dict[str, str]:
        """Slot to value, with or without the change."""
        wish = dict(self.first)
        if changed and self.change_slot:
            wish[self.change_slot] = self.change_value
        return wish

    def as_json(self) -> dict[str, Any]:
        """The goal as a scenario carries it: first goal, turn of the change, final goal."""
        change = {"turn": self.change_turn, "slot": self.change_slot, "value": self.change_value}
        return {
            "first": self.wish(False),
            "change": change if self.change_turn else None,
            "final": self.wish(True),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Goal":
        first = tuple((slot, str(data["first"][slot])) for slot in SLOTS if slot in data["first"])
        change = data.get("change")
        if not change:
            return cls(first)
        return cls(first, int(change["turn"]), str(change["slot"]), str(change["value"]))


def goal_of(scenario: Scenario) -> Goal:
    return Goal.from_json(scenario.goal)


@lru_cache(maxsize=50_000)
def canonical(text: str) -> tuple[str, ...]:
    """The words of any text, lower-cased, sloppy spellings resolved."""
    return tuple(TIDY.get(word, word) for word in text.lower().split())


@lru_cache(maxsize=50_000)
def read_move(text: str) -> Move:
    """How a policy turn is understood. Anything outside the three forms is ``OTHER``."""
    words = canonical(text)
    if len(words) > 1 and words[-1] == "?":
        words = words[:-1]
    if not words:
        return Move(MoveKind.OTHER)
    head, arguments = words[0], words[1:]
    if head == "which" and arguments and set(arguments) <= SLOTS.keys() and len(set(arguments)) == len(arguments):
        return Move(MoveKind.ASK, slots=arguments)
    values = {SLOT_OF[word]: word for word in arguments if word in SLOT_OF}
    clean = len(values) == len(arguments)
    ordered = tuple(values[slot] for slot in SLOTS if slot in values)
    if head == "booked":
        return Move(MoveKind.BOOK, values=ordered, clean=clean)
    if head == "so" and values and clean:
        return Move(MoveKind.READ_BACK, values=ordered)
    return Move(MoveKind.OTHER)


def stated_values(text: str) -> list[str]:
    """The values that a user turn states, in order."""
    return [word for word in canonical(text) if word in SLOT_OF]


def is_leaving(text: str) -> bool:
    words = canonical(text)
    return any(pair == LEAVE[:2] for pair in pairwise(words))


def states_change(goal: Goal, text: str) -> bool:
    """Whether a user turn states the value that the user changed its mind to."""
    return bool(goal.change_turn) and goal.change_value in canonical(text)


def change_uttered(goal: Goal, turns: Sequence[Turn]) -> bool:
    """Whether the new value was said by the user, in whatever words."""
    return any(turn.side is Side.USER and states_change(goal, turn.text) for turn in turns)


def heard(turns: Sequence[Turn]) -> dict[str, str]:
    """Slot to the value that the user stated last."""
    values = (value for turn in turns if turn.side is Side.USER for value in stated_values(turn.text))
    return {SLOT_OF[value]: value for value in values}
