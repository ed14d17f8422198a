"""The rules of Deal or No Deal: items, entries, offers, and what a run of turns amounts to.

A few books, hats and balls are shared out. To each side an item is worth 0 to 10 points, all items together 10 (the
rules of the study, Lewis et al. 2017, arXiv 1706.05125, section 2). When one side ends the talk, both enter, unseen by
the other, what they get:

    selection : book 1 hat 0 ball 2
    selection : no agreement
    selection : disconnect

If the two entries of items add up to what there is, each side has the points of its own entry; else both have 0.

How turns that models get wrong are read:

- A turn that opens with ``selection :`` is an entry, whatever follows. Anything else is talk.
- An entry that names no count of each item, in this order, or more of one than there is, fits nothing.
- After the first entry the other side has one turn to enter; talk instead of it counts as no entry.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from calibrated_rl.data.dialogue import Side

ITEMS = ("book", "hat", "ball")
MOST_POINTS = 10
"""What all items together are worth to a side."""
ENTRY = "selection :"
"""How an entry begins; the other side hears no more of it. Nobody says these words in the logs."""

Counts = tuple[int, int, int]
"""Of each item, in the order of ``ITEMS``."""
Values = tuple[int, int, int]
"""Points of one item of each kind."""

AGREED, DISAGREED, NO_AGREEMENT, NOT_ENTERED = "agreed", "disagreed", "no_agreement", "not_entered"
"""Why a dialogue is over: the entries fit; they do not; both entered that there is no agreement (or one left and the
other did not enter items either); the second side talked on."""


class Refusal(StrEnum):
    """An entry without items."""

    NO_AGREEMENT = "no agreement"
    DISCONNECT = "disconnect"
    """One side left the study."""


Entry = Counts | Refusal


def entry_text(entry: Entry) -> str:
    """The turn by which a side enters what it gets."""
    if isinstance(entry, Refusal):
        return f"{ENTRY} {entry.value}"
    return f"{ENTRY} " + " ".join(f"{item} {count}" for item, count in zip(ITEMS, entry, strict=True))


_ITEMS_ENTERED = re.compile(r"book (\d{1,2}) hat (\d{1,2}) ball (\d{1,2})")


def is_entry(text: str) -> bool:
    """Whether a turn is an entry, well formed or not."""
    return text.startswith(ENTRY)


def read_entry(text: str) -> Entry | None:
    """What is entered by a turn that is an entry; None if it is malformed."""
    entered = " ".join(text.removeprefix(ENTRY).split())
    if entered in list(Refusal):
        return Refusal(entered)
    if match := _ITEMS_ENTERED.fullmatch(entered):
        book, hat, ball = map(int, match.groups())
        return book, hat, ball
    return None


def fits(entry: Entry | None, other: Entry | None, counts: Counts) -> bool:
    """Whether two entries share out exactly what there is."""
    if entry is None or other is None or isinstance(entry, Refusal) or isinstance(other, Refusal):
        return False
    return all(a + b == count for a, b, count in zip(entry, other, counts, strict=True))


def points(entry: Counts, values: Values) -> int:
    """Points of what is entered, to whom an item is worth ``values``."""
    return sum(count * value for count, value in zip(entry, values, strict=True))


def rest_of(share: Counts, counts: Counts) -> Counts:
    """What the other side gets."""
    book, hat, ball = (count - taken for taken, count in zip(share, counts, strict=True))
    return book, hat, ball


@dataclass(slots=True)
class Negotiation:
    """What turns amount to so far. Feed it turns in order; once ``ending`` is set, the rest is ignored."""

    counts: Counts
    ending: str | None = None
    entries: dict[Side, Entry | None] = field(default_factory=dict)
    """By side, in the order in which they entered; None: malformed."""

    def hear(self, side: Side, text: str) -> None:
        if self.ending is not None:
            return
        if not is_entry(text):
            self.ending = NOT_ENTERED if self.entries else None
            return
        self.entries[side] = read_entry(text)
        if len(self.entries) == len(Side):
            self.ending = self._ending()

    def _ending(self) -> str:
        first, second = self.entries.values()
        if fits(first, second, self.counts):
            return AGREED
        return NO_AGREEMENT if isinstance(first, Refusal) and isinstance(second, Refusal) else DISAGREED

    def points(self, side: Side, values: Values) -> int:
        """Points of ``side``, to whom an item is worth ``values``; 0 where the entries do not fit."""
        entry = self.entries.get(side)
        if self.ending != AGREED or entry is None or isinstance(entry, Refusal):
            return 0
        return points(entry, values)


def negotiate(turns: Iterable[tuple[Side, str]], counts: Counts) -> Negotiation:
    """What ``turns`` amount to."""
    state = Negotiation(counts)
    for side, text in turns:
        state.hear(side, text)
    return state


# ---- offers in talk ------------------------------------------------------------------------------------------

_NUMBERS = {
    **{"0": 0, "zero": 0, "no": 0, "1": 1, "one": 1, "a": 1, "an": 1, "the": 1, "2": 2, "two": 2, "both": 2},
    **{"3": 3, "three": 3, "4": 4, "four": 4, "5": 5, "five": 5},
}
_ALL = ("all", "every")
_KINDS = {"book": 0, "books": 0, "hat": 1, "hats": 1, "ball": 2, "balls": 2, "basketball": 2, "basketballs": 2}
_SPEAKER = frozenset({"i", "me", "my", "mine", "i'll", "ill", "i'd", "im", "i'm"})
_LISTENER = frozenset({"you", "your", "yours", "u", "you'll", "youll", "ya"})
_REST = frozenset({"rest", "everything", "others", "remaining"})
_WORD = re.compile(r"[a-z0-9']+")
_FOR_WHOM = re.compile(r"([^,.?!;]*)\b(?:for|to|is|are) (me|mine|you|yours)\b")
"""A stretch of a sentence that ends with whom its items go to."""
_AGREES = re.compile(
    r"\b(deal|ok|okay|sure|agreed?|yes|yeah|yep|sounds (good|great|fair)|fine|works|perfect|great|alright)\b"
)
_REFUSES = re.compile(r"\b(no|nope|can't|cant|cannot|won't|need|how about|but|instead|only if|don't|not)\b")


def read_offer(text: str, counts: Counts) -> Counts | None:
    """What the speaker of a sentence would get by the deal in it; None where none is read.

    Read by rule, for scripted negotiators, dialogue acts and profiles; never for points. Items go to whoever was named
    last before them, at first to the speaker; the rest goes to whom the words give it, else to the other side of the
    one that was given something.
    """
    if is_entry(text):
        return None
    shares: dict[bool, dict[int, int]] = {True: {}, False: {}}
    to_speaker, rest_to, count, named = True, None, None, False
    in_order = _FOR_WHOM.sub(r" \2 \1 ", text.lower())  # "the hats for you" as "you the hats"
    for word in _WORD.findall(in_order):
        if word in _SPEAKER or word in _LISTENER:
            to_speaker, count = word in _SPEAKER, None
        elif word in _REST:
            rest_to = to_speaker
        elif word in _ALL:
            count = max(counts)
        elif word in _NUMBERS:
            count = count if word == "the" and count is not None else _NUMBERS[word]
            named = word == "the"
        elif word in _KINDS:
            kind = _KINDS[word]
            plain = count is None or (named and count == 1)  # "books", "the books": all; "book", "the book": one
            given = counts[kind] if plain and word.endswith("s") else min(1 if count is None else count, counts[kind])
            shares[to_speaker][kind] = given
            count, named = None, False
    if not any(shares.values()) and (rest_to is None or "everything" not in in_order):
        return None  # "the rest" alone says nothing
    if rest_to is None:
        rest_to = not shares[True]
    book, hat, ball = (_given(shares, kind, counts[kind], rest_to) for kind in range(len(ITEMS)))
    return book, hat, ball


def _given(shares: Mapping[bool, Mapping[int, int]], kind: int, count: int, rest_to: bool) -> int:
    """How many of one kind the speaker gets."""
    if kind in shares[True]:
        return shares[True][kind]
    if kind in shares[False]:
        return count - shares[False][kind]
    return count if rest_to else 0


def accepts(text: str) -> bool:
    """Whether a turn of talk says yes and asks for nothing else; by rule, as ``read_offer``."""
    words = set(_WORD.findall(text.lower()))
    return bool(_AGREES.search(text.lower())) and not _REFUSES.search(text.lower()) and words.isdisjoint(_KINDS)


def refuses(text: str) -> bool:
    """Whether a turn of talk says no, or asks for something else; by rule."""
    return not is_entry(text) and bool(_REFUSES.search(text.lower()))


def accepted_first_offer(turns: Sequence[tuple[Side, str]], counts: Counts) -> bool:
    """Whether the USER took the first offer that the policy's side made, by saying yes or by entering at once, never
    made one of its own or refused, and the entries fit."""
    talk = [text for side, text in turns if side is Side.USER and not is_entry(text)]
    if any(refuses(text) or read_offer(text, counts) is not None for text in talk):
        return False
    for (side, text), (_, answer) in zip(turns, turns[1:], strict=False):
        if side is Side.POLICY and read_offer(text, counts) is not None:
            return (is_entry(answer) or accepts(answer)) and negotiate(turns, counts).ending == AGREED
    return False
