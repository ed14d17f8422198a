"""Personal data in texts: e-mail addresses, phone numbers and payment cards, found, counted and masked.

- An **e-mail address** is ``local@domain.tld``.
- A **card** is 13 to 19 digits, together or in groups of at least three, that begin with 2 to 6 and satisfy the check
  of Luhn (ISO/IEC 7812-1).
- A **phone number** is international (``+`` or ``00``, then 7 to 15 digits: ITU-T E.164), national with a trunk zero
  (9 to 12 digits, ``01223 358966``), or North American (``(555) 210-4477`` in its usual spellings, or ten digits that
  can be one).

Local numbers of 7 digits or fewer are not found, because amounts and times look the same; names and addresses are not
looked for at all. One in ten numbers of 16 digits satisfies the check by chance: a reference number may be masked as a
card.

A mask says the kind, and a number that is the same for the same value within a dialogue: ``[phone 1]``.
"""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

EMAIL, PHONE, CARD = "email", "phone", "card"
TITLES = {EMAIL: "e-mail addresses", PHONE: "phone numbers", CARD: "card numbers"}

_EMAIL = re.compile(r"(?<![\w.%+-])[\w.%+-][\w.%+'-]{0,63}@(?:[^\W_](?:[\w-]{0,62})\.){1,8}[^\W\d_]{2,24}(?!\w)")
_GAP = r"[ \u00a0.\-]"
_DIGITS = re.compile(rf"(?<![\w])\d+(?:{_GAP}\d+)*(?!\w)", re.ASCII)
_PHONE = re.compile(
    rf"""(?<![\w.+$€£#])(?:
    (?:\+|00)\(?[1-9](?:(?:[ ]?\(|\)[ -]?|{_GAP}|/)?\d){{6,14}}             # international
    | (?<!\d-)(?:                                                      # no date, as in 2026-01-02 10.00.30
        \(?0[1-9]\d{{1,3}}\)?(?:(?:{_GAP}|/)\d{{2,8}}){{1,3}}             # national, with a trunk zero
        | 0[1-9](?:{_GAP}\d\d){{4}}                                     # the same in pairs
        | 0[1-9]\d{{8,9}}                                               # the same without gaps
      )
    | (?:1{_GAP}?)?(?:\([2-9]\d\d\){_GAP}?|[2-9]\d\d{_GAP})\d{{3}}{_GAP}\d{{4}}   # North American
    | [2-9]\d\d[2-9]\d{{6}}
    )(?![\w])""",
    re.VERBOSE | re.ASCII,
)
_AFTER = re.compile(rf"(?<=\d\d\d)(?:{_GAP}|/)\d{{1,2}}\Z", re.ASCII)
"""A short group after a long one, which is rather the sentence's next number, as in ``7946 0958 10 am``."""
_LEAST_LEFT = 9
"""Digits of a number without its short last group."""
_NATIONAL, _INTERNATIONAL = range(9, 13), range(7, 16)
"""Numbers of digits."""
_NAMES = ("id", "split_group")
"""Keys of a line that are ids."""
_NOT_TEXT = (*_NAMES, "split", "turns")
"""Keys of a line whose own value is no text of anybody's."""


@dataclass(kw_only=True)
class PersonalData:
    """How much was found."""

    counts: Counter[str] = field(default_factory=Counter)
    """Finds by kind."""
    dialogues: int = 0
    """Dialogues with at least one."""

    def add(self, other: "PersonalData") -> None:
        self.counts.update(other.counts)
        self.dialogues += other.dialogues


@dataclass(frozen=True, slots=True)
class Find:
    """One piece of personal data in a text."""

    kind: str
    start: int
    end: int
    value: str
    """The same for all spellings of the same."""


def find(text: str) -> list[Find]:
    """All personal data of ``text``, from left to right, none inside another."""
    found: list[Find] = []
    if "@" in text:
        found = [Find(EMAIL, *match.span(), match[0].lower()) for match in _EMAIL.finditer(text)]
    if sum(map(str.isdigit, text)) < _INTERNATIONAL.start:
        return found
    cards = [Find(CARD, *span, _digits(text[slice(*span)])) for span in _cards(text)]
    found = _together(found, cards)
    phones = [
        Find(PHONE, match.start(), match.start() + len(number), digits)
        for match in _PHONE.finditer(text)
        for number in [_without_next(match[0])]
        if len(digits := _digits(number)) in (_INTERNATIONAL if number.startswith(("+", "00")) else _NATIONAL)
    ]
    return _together(found, phones)


def _together(found: list[Find], more: list[Find]) -> list[Find]:
    """``found`` and those of ``more`` that overlap none of it; each is in order and free of overlaps."""
    starts = [each.start for each in found]
    free = []
    for each in more:
        index = bisect_left(starts, each.end)
        if not index or found[index - 1].end <= each.start:
            free.append(each)
    return sorted([*found, *free], key=lambda each: each.start)


def _without_next(number: str) -> str:
    shorter = _AFTER.sub("", number)
    return shorter if len(_digits(shorter)) >= _LEAST_LEFT else number


def _digits(text: str) -> str:
    return "".join(filter(str.isdigit, text))


def luhn(digits: str) -> bool:
    """Whether the digits satisfy the check of Luhn (ISO/IEC 7812-1, annex B): from the right, every second digit
    doubled, and the digits of all summed up, the sum ends in 0."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 * (value > 9)
    return total % 10 == 0


def _cards(text: str) -> Iterator[tuple[int, int]]:
    """Start and end of each card: groups of digits that follow each other, the longest card from each group on."""
    for run in _DIGITS.finditer(text):
        groups = [(run.start() + match.start(), run.start() + match.end()) for match in re.finditer(r"\d+", run[0])]
        first = 0
        while first < len(groups):
            last = _card_from(text, groups, first)
            if last is not None:
                yield groups[first][0], groups[last][1]
            first = first + 1 if last is None else last + 1


def _card_from(text: str, groups: list[tuple[int, int]], first: int) -> int | None:
    """The last group of the longest card that begins with group ``first``."""
    digits, best = "", None
    if text[groups[first][0]] not in "23456":
        return None
    for last in range(first, len(groups)):
        digits += text[slice(*groups[last])]
        if len(digits) > 19 or groups[last][1] - groups[last][0] < 3:
            break
        if len(digits) >= 13 and luhn(digits):
            best = last
    return best


class _Masks:
    """Masks of one dialogue: the same value gets the same number."""

    def __init__(self, mask: bool) -> None:
        self.mask = mask
        self.counts: Counter[str] = Counter()
        self._numbers: dict[tuple[str, str], int] = {}

    def text(self, text: str) -> str:
        parts, end = [], 0
        for each in find(text):
            self.counts[each.kind] += 1
            same_kind = sum(kind == each.kind for kind, _ in self._numbers)
            number = self._numbers.setdefault((each.kind, each.value), same_kind + 1)
            parts += [text[end : each.start], f"[{each.kind} {number}]"]
            end = each.end
        return "".join([*parts, text[end:]]) if self.mask and parts else text

    def anything(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list | tuple):
            return [self.anything(each) for each in value]
        if isinstance(value, dict):
            return self.object(value)
        return value

    def object(self, content: dict[str, Any], *untouched: str) -> dict[str, Any]:
        """Values and keys, which may be names as well; keys with the same mask are told apart by a number."""
        masked: dict[str, Any] = {}
        for key, value in content.items():
            new = own = self.text(key)
            number = 1
            while new in masked:
                number += 1
                new = f"{own} ({number})"
            masked[new] = value if key in untouched else self.anything(value)
        return masked

    def name(self, name: Any) -> Any:
        """An id that contains personal data is named by its digest: equal ids stay equal, others stay apart."""
        found = find(name) if isinstance(name, str) else []
        self.counts.update(each.kind for each in found)
        is_masked = self.mask and bool(found)
        return blake2b(name.encode("utf-8", "backslashreplace"), digest_size=8).hexdigest() if is_masked else name


def in_words(text: str, *, mask: bool) -> str:
    """A text of no dialogue, such as a complaint that quotes one, masked if ``mask``."""
    return _Masks(mask).text(text)


def in_line(line: Any, *, mask: bool) -> tuple[PersonalData, Any]:
    """What a dialogue's line (``record.py``) has of it, in turns, goal, instructions, metadata and ids, and the line,
    masked if ``mask``: an id as a whole."""
    if not isinstance(line, dict):
        return PersonalData(), line
    masks = _Masks(mask)
    turns = line.get("turns")
    masked = masks.object(line, *_NOT_TEXT)
    if isinstance(turns, list):
        masked["turns"] = [
            masks.object(turn, "side") if isinstance(turn, dict) else turn
            for turn in turns
        ]  # fmt: skip
    masked |= {key: masks.name(line[key]) for key in _NAMES if key in line}
    return PersonalData(counts=masks.counts, dialogues=int(bool(masks.counts))), masked
