"""Casino: two camping neighbours share out packages; the scenarios are those of the CaSiNo negotiations.

Each side has private values (``casino_deals`` has the rules). The other side speaks first after the greeting,
as the first speaker of the log did. Either side submits, accepts or rejects a deal, or walks away. Reward:
the policy side's points over 36, the most that anyone could get; without a deal its 5 points count, whatever
the reason. Success is an accepted deal.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from calibrated_rl.data.dialogue import Outcome, Scenario, Side, Split, Turn
from calibrated_rl.errors import UserError
from calibrated_rl.examples.casino.deals import (
    ACCEPTED,
    ITEMS,
    MOST_POINTS,
    NO_DEAL_POINTS,
    PACKAGES,
    Action,
    Negotiation,
    deal_line,
    negotiate,
    read_actions,
    read_deal,
    talk_of,
)
from calibrated_rl.examples.casino.records import CasinoRecord, CasinoSource, read_records, split_records
from calibrated_rl.logs.base import LogProblem
from calibrated_rl.settings.fields import Positive, check_settings

GREETING = "Hi! Let us talk about how we share the extra camping supplies."
_REASON_LENGTH = 100
"""Characters kept of a participant's reason, so that three of them leave space for the talk in 1k tokens."""

_ACT_WORDS = {
    "greet": re.compile(r"\b(hi|hello|hey|good (morning|afternoon|evening))\b", re.I),
    "thank": re.compile(r"\b(thanks|thank you)\b", re.I),
    "agree": re.compile(r"\b(yes|yeah|sure|ok|okay|deal|agree|agreed|sounds good|works for me)\b", re.I),
    "refuse": re.compile(r"\b(no|nope|can't|cannot|won't|not fair|unfair|disagree)\b", re.I),
    "need": re.compile(r"\b(need|needs|want|must have|important|priority|prefer)\b", re.I),
    "give": re.compile(r"\b(you can (have|take|get)|give you|let you have|offer you)\b", re.I),
    "count": re.compile(r"\b([0-3]|one|two|three|all)\b", re.I),
}
_TOP_CLAIM = re.compile(
    r"\b(most important|top|highest|main|first|biggest|number one)\s+(thing|priority|need|choice|item)?"
    r"|\bneed\b[^.!?]*\bthe most\b|\bmost important\b",
    re.I,
)
_ITEM = re.compile(r"\b(food|water|firewood|wood)\b", re.I)


class Casino:
    """The negotiation task; see the module's docstring.

    Raises:
        UserError: the data is missing or unusable, or fewer than one policy turn is allowed.
    """

    @dataclass(frozen=True)
    class Config(CasinoSource):
        max_policy_turns: Positive = 10
        """Policy turns, the greeting not counted; 95 % of the logged negotiations need no more."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = config = config or self.Config()
        self.name = "casino"
        check_settings(config, "Casino")
        self.max_policy_turns = config.max_policy_turns
        records, self.problems = _read(config)
        self.records: dict[Split, list[CasinoRecord]] = split_records(records, config)

    def scenarios(self, split: Split, count: int, population: str = "same") -> list[Scenario]:
        """The first ``count`` scenarios of ``split``, one for each of its logged dialogues."""
        if population != "same":
            raise UserError(f"Casino: unknown population '{population}'; the logs have one, 'same'")
        records = self.records[split]
        if count > len(records):
            raise UserError(f"Casino: {count} scenarios requested of the {split} split, which has {len(records)}")
        return [scenario_of(record, split) for record in records[:count]]

    def ending(self, scenario: Scenario, turns: Sequence[Turn]) -> str | None:
        """``accepted`` or ``walked_away``."""
        return _negotiation(turns).ending

    def against_goal(self, scenario: Scenario, turns: Sequence[Turn]) -> bool:
        """Walking away in the first turn, before the neighbour has said a word: most deals are worth more than none,
        and no logged negotiation does it."""
        spoken = [turn.text for turn in turns if turn.side is Side.USER]
        return len(spoken) == 1 and any(action is Action.WALK_AWAY for action, _ in read_actions(spoken[0]))

    def contradicts_goal(self, scenario: Scenario, turns: Sequence[Turn]) -> bool | None:
        """Whether a sentence calls another item than its own best the most important one; None where none does."""
        claims = _top_claims(turns[-1].text)
        return any(claim != _best(scenario) for claim in claims) if claims else None

    def leaves_early(self, scenario: Scenario, turns: Sequence[Turn]) -> bool | None:
        """Walking away from the deal."""
        return any(action is Action.WALK_AWAY for action, _ in read_actions(turns[-1].text))

    def outcome(self, scenario: Scenario, turns: Sequence[Turn], ending: str) -> Outcome:
        """Points over 36. An ending other than ``accepted`` is worth the points of no deal."""
        state = _negotiation(turns)
        accepted = ending == ACCEPTED and state.ending == ACCEPTED
        points = {side: state.points(side, scenario.goal[side.value]) if accepted else NO_DEAL_POINTS for side in Side}
        return Outcome(
            reward=points[Side.POLICY] / MOST_POINTS,
            success=accepted,
            details={
                "policy_points": points[Side.POLICY],
                "user_points": points[Side.USER],
                "policy_gets": state.share(Side.POLICY) if accepted else None,
                "malformed_deals": state.malformed[Side.POLICY],
                "void_accepts": state.void_accepts[Side.POLICY],
            },
        )

    def reward_range(self) -> tuple[float, float]:
        """From nothing to everything; no deal is worth a little."""
        return 0.0, 1.0

    def acts(self, scenario: Scenario, turns: Sequence[Turn], index: int) -> tuple[str, ...]:
        """``submit``, ``malformed_deal``, ``accept``, ``reject``, ``walk_away`` for actions; for talk, by
        keywords, ``greet``, ``thank``, ``agree``, ``refuse``, ``need``, ``give``, ``count``, ``ask`` and
        ``mention:ITEM``; ``other`` where none is found."""
        text = turns[index].text
        acts: list[str] = []
        for action, arguments in read_actions(text):
            if action is Action.SUBMIT:
                acts.append("malformed_deal" if read_deal(arguments) is None else "submit")
            else:
                acts.append({Action.ACCEPT: "accept", Action.REJECT: "reject"}.get(action, "walk_away"))
        talk = talk_of(text)
        acts += [act for act, words in _ACT_WORDS.items() if words.search(talk)]
        acts += ["ask"] if "?" in talk else []
        acts += [f"mention:{item.lower()}" for item in _items(talk)]
        return tuple(dict.fromkeys(acts)) or ("other",)

    def profile(self, scenario: Scenario, turns: Sequence[Turn]) -> Mapping[str, float]:
        """``goal_kept`` (of its sentences that call one item its most important, the share naming the right
        one; absent if there is none), ``first_turn_disclosure`` (share of the items named in its first turn),
        ``words_per_turn``, ``deals`` and ``malformed_deals`` a dialogue, ``rejects``, ``walked_away``."""
        spoken = [turn.text for turn in turns if turn.side is Side.USER]
        claims = [claim for text in spoken for claim in _top_claims(text)]
        state = _negotiation(turns)
        profile = {
            "first_turn_disclosure": len(_items(spoken[0])) / len(ITEMS) if spoken else 0.0,
            "words_per_turn": sum(len(t.split()) for t in spoken) / max(1, len(spoken)),
            "deals": float(state.submitted[Side.USER]),
            "malformed_deals": float(state.malformed[Side.USER]),
            "rejects": float(state.rejected[Side.USER]),
            "walked_away": float(state.walked is Side.USER),
        }
        if claims:
            profile["goal_kept"] = sum(claim == _best(scenario) for claim in claims) / len(claims)
        return profile


def _best(scenario: Scenario) -> str:
    """The item that is worth most to the user's side."""
    values = scenario.goal[Side.USER.value]
    return str(max(values, key=lambda item: values[item]))


def scenario_of(record: CasinoRecord, split: Split) -> Scenario:
    """The scenario that a logged negotiation had."""
    return Scenario(
        id=f"casino-{record.id}",
        split=split,
        policy_instructions=instructions(record, Side.POLICY),
        user_instructions=instructions(record, Side.USER),
        greeting=GREETING,
        goal={side.value: record.values(side) for side in Side},
    )


def instructions(record: CasinoRecord, side: Side) -> str:
    """What a side is told: the rules, its private values with the participant's reasons, the four actions."""
    values, priorities = record.values(side), record.priorities[side]
    worth = ", ".join(f"each {item} {values[item]}" for item in priorities.values())
    reasons = record.reasons.get(side, {})
    stated_reasons = [(item, reasons[level]) for level, item in priorities.items() if level in reasons]
    why = "".join(f"{item}: {_shorten(reason)}\n" for item, reason in stated_reasons)
    example = dict(zip(ITEMS, (2, 1, 1), strict=True))
    return (
        "You are camping. You and your neighbour share out extra packages: "
        f"{PACKAGES} Food, {PACKAGES} Water, {PACKAGES} Firewood. "
        f"Points for you: {worth}. Your neighbour does not know this and has other needs. "
        f"Get many points; without a deal you get {NO_DEAL_POINTS}. Write one short message at a time.\n"
        f"{why}"
        "When you agree, one of you writes the deal on a line of its own, like this:\n"
        f"{deal_line(example)}\n"
        f"The other answers {Action.ACCEPT} or {Action.REJECT}. "
        f"To stop without a deal write {Action.WALK_AWAY}."
    )


def _shorten(reason: str) -> str:
    text = " ".join(reason.split())
    if len(text) <= _REASON_LENGTH:
        return text
    return text[:_REASON_LENGTH].rsplit(" ", 1)[0] + " ..."


def _read(config: CasinoSource) -> tuple[list[CasinoRecord], list[LogProblem]]:
    return read_records(Path(config.path).expanduser())


def _negotiation(turns: Sequence[Turn]) -> Negotiation:
    return negotiate((turn.side, turn.text) for turn in turns)


def _items(text: str) -> list[str]:
    """The items that a text names, each once, in the order of ``ITEMS``."""
    mentioned = {"Firewood" if word.lower() == "wood" else word.capitalize() for word in _ITEM.findall(text)}
    return [item for item in ITEMS if item in mentioned]


def _top_claims(text: str) -> list[str]:
    """Items that sentences call the most important one; sentences that name several items are left out."""
    claims = []
    for sentence in re.split(r"[.!?\n]", talk_of(text)):
        items = _items(sentence)
        if len(items) == 1 and _TOP_CLAIM.search(sentence) and not re.search(r"\byour?\b", sentence, re.I):
            claims += items
    return claims
