"""The rules of the campsite negotiation: items, points, deal lines, and what a run of turns amounts to.

Three packages each of Food, Water and Firewood are shared out. To a side, each package of its high, medium
and low item is worth 5, 4 and 3 points; without a deal both sides get 5 (the rules of the CaSiNo study,
Chawla et al. 2021). Four actions exist, each on a line of its own, anything else is talk:

    Submit-Deal: I get 2 Food, 1 Water, 0 Firewood; you get 1 Food, 2 Water, 3 Firewood
    Accept-Deal
    Reject-Deal
    Walk-Away

How lines that models get wrong are read:

- An action counts only at the start of a line; its case and what follows it do not matter.
- A deal may leave out a count that the other half gives. It is malformed, and then no offer at all, if an
  item is in neither half or twice in one, if the two counts of an item do not add up to 3, or if ``I get``
  does not come first. A malformed deal leaves an earlier offer standing.
- An offer stands until the other side rejects it, or anyone submits a well-formed deal. ``Accept-Deal`` with
  no offer of the other side standing does nothing, nor does ``Reject-Deal``.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from calibrated_rl.data.dialogue import Side

ITEMS = ("Food", "Water", "Firewood")
PACKAGES = 3
"""Packages of each item."""
POINTS = {"High": 5, "Medium": 4, "Low": 3}
"""Points a package, by the priority its item has for a side."""
NO_DEAL_POINTS = 5
MOST_POINTS = PACKAGES * sum(POINTS.values())
ACCEPTED, WALKED_AWAY = "accepted", "walked_away"

Share = Mapping[str, int]
"""Packages of each item that one side gets."""


class Action(StrEnum):
    SUBMIT = "Submit-Deal"
    ACCEPT = "Accept-Deal"
    REJECT = "Reject-Deal"
    WALK_AWAY = "Walk-Away"


_BY_NAME = {action.value.lower(): action for action in Action}
_ACTION = re.compile(r"^[ \t]*(submit-deal|accept-deal|reject-deal|walk-away)\b(.*)$", re.I | re.M)
_COUNT = re.compile(r"(?<![\w.-])(\d{1,2})\s+(?:packages?\s+of\s+)?(food|water|firewood)\b", re.I)
_YOU_GET = re.compile(r"\byou\s+get\b", re.I)
_I_GET = re.compile(r"\bi\s+get\b", re.I)


def deal_line(counts: Share) -> str:
    """The line by which a side that would get ``mine`` submits the deal."""
    speaker_gets = ", ".join(f"{counts[item]} {item}" for item in ITEMS)
    listener_gets = ", ".join(f"{PACKAGES - counts[item]} {item}" for item in ITEMS)
    return f"{Action.SUBMIT}: I get {speaker_gets}; you get {listener_gets}"


def read_deal(text: str) -> dict[str, int] | None:
    """What the speaker of a deal line would get; None if the deal is malformed."""
    half = _YOU_GET.search(text)
    speaker_text, listener_text = (text[: half.start()], text[half.end() :]) if half else (text, "")
    if not _I_GET.search(speaker_text):
        return None
    speaker_counts, listener_counts = _counts(speaker_text), _counts(listener_text)
    if speaker_counts is None or listener_counts is None:
        return None
    share: dict[str, int] = {}
    for item in ITEMS:
        count = speaker_counts.get(item, PACKAGES - listener_counts[item] if item in listener_counts else -1)
        if not 0 <= count <= PACKAGES or listener_counts.get(item, PACKAGES - count) != PACKAGES - count:
            return None
        share[item] = count
    return share


def _counts(text: str) -> dict[str, int] | None:
    counts = [(item.capitalize(), int(count)) for count, item in _COUNT.findall(text)]
    return dict(counts) if len(dict(counts)) == len(counts) else None


def read_actions(text: str) -> list[tuple[Action, str]]:
    """The actions of one turn in order, each with the rest of its line."""
    return [(_BY_NAME[name.lower()], arguments) for name, arguments in _ACTION.findall(text)]


def talk_of(text: str) -> str:
    """The turn without its action lines."""
    return _ACTION.sub("", text).strip()


@dataclass(slots=True)
class Negotiation:
    """What turns amount to so far. Feed it turns in order; once ``ending`` is set, the rest is ignored."""

    ending: str | None = None
    """``accepted`` or ``walked_away``."""
    offer: tuple[Side, dict[str, int]] | None = None
    """The standing offer: who made it, and what that side would get."""
    submitted: dict[Side, int] = field(default_factory=lambda: dict.fromkeys(Side, 0))
    """Well-formed deals by side."""
    malformed: dict[Side, int] = field(default_factory=lambda: dict.fromkeys(Side, 0))
    void_accepts: dict[Side, int] = field(default_factory=lambda: dict.fromkeys(Side, 0))
    """``Accept-Deal`` said with nothing to accept."""
    rejected: dict[Side, int] = field(default_factory=lambda: dict.fromkeys(Side, 0))
    """Offers that the side rejected."""
    walked: Side | None = None
    """Who walked away."""

    def hear(self, side: Side, text: str) -> None:
        for action, arguments in read_actions(text):
            if self.ending is not None:
                return
            self._act(side, action, arguments)

    def _act(self, side: Side, action: Action, arguments: str) -> None:
        answerable = self.offer is not None and self.offer[0] is side.other
        if action is Action.WALK_AWAY:
            self.ending, self.walked, self.offer = WALKED_AWAY, side, None
        elif action is Action.SUBMIT:
            share = read_deal(arguments)
            if share is None:
                self.malformed[side] += 1
            else:
                self.submitted[side] += 1
                self.offer = (side, share)
        elif action is Action.ACCEPT and answerable:
            self.ending = ACCEPTED
        elif action is Action.ACCEPT:
            self.void_accepts[side] += 1
        elif answerable:
            self.rejected[side] += 1
            self.offer = None

    def share(self, side: Side) -> dict[str, int] | None:
        """What ``side`` gets by the accepted deal; None without one."""
        if self.ending != ACCEPTED or self.offer is None:
            return None
        proposer, share = self.offer
        return dict(share) if side is proposer else {item: PACKAGES - share[item] for item in ITEMS}

    def points(self, side: Side, values: Mapping[str, int]) -> int:
        """Points of ``side``, to whom a package of each item is worth ``values``."""
        share = self.share(side)
        return NO_DEAL_POINTS if share is None else sum(share[item] * values[item] for item in ITEMS)


def negotiate(turns: Iterable[tuple[Side, str]]) -> Negotiation:
    """What ``turns`` amount to."""
    state = Negotiation()
    for side, text in turns:
        state.hear(side, text)
    return state
