"""PersuasionForGood: the policy asks for a donation to a charity; the scenarios are those of the logged dialogues.

The policy's side has opened as it did in the log (its greeting). The other side ends the talk, with a line that says
how much of its two dollars it gives: ``Donate: $0.50``. Reward: what is given over two dollars, 0 if the talk does not
come to that. Success is a donation.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from calibrated_rl.data.dialogue import Outcome, Scenario, Side, Split, Turn
from calibrated_rl.errors import UserError
from calibrated_rl.examples.persuasion_for_good.records import (
    MOST_CENTS,
    PersuasionRecord,
    PersuasionSource,
    read_records,
    split_records,
)
from calibrated_rl.logs.base import LogProblem
from calibrated_rl.settings.fields import Positive, check_settings

DECIDED = "decided"
POLICY_INSTRUCTIONS = (
    "You are paid for an online task, and so is the person you talk with, who may give any part of $2.00 to the "
    "charity Save the Children. Persuade them to give. Write one short message at a time. They end the talk and say "
    "what they give."
)
USER_INSTRUCTIONS = (
    "You are paid $2.00 for an online task. Somebody talks with you about the charity Save the Children. You may give "
    "any part of your payment, or nothing. Write one short message at a time. When the talk is over, end your last "
    "message with a line that says what you give, such as\nDonate: $0.00"
)
_DECISION = re.compile(r"(?<!\S)donate:\s*\$\s*(\d{1,6}(?:\.\d{1,2})?)\s*\Z", re.I)
"""At the end, if not on a line of its own: proxies know words, and no lines."""
_AMOUNT = re.compile(r"\$\s*\d|\d\s*(\$|dollars?\b|cents?\b|bucks?\b)|\b(a|one|two) dollars?\b|\bcents\b", re.I)
_ACT_WORDS = {
    "greet": re.compile(r"\b(hi|hello|hey|good (morning|afternoon|evening))\b", re.I),
    "thank": re.compile(r"\b(thanks|thank you)\b", re.I),
    "charity": re.compile(r"\b(charity|charities|save the children|organi[sz]ation)\b", re.I),
    "children": re.compile(r"\b(child|children|kids?)\b", re.I),
    "donate": re.compile(r"\b(donat\w*|give|giving|contribut\w*)\b", re.I),
    "agree": re.compile(r"\b(yes|yeah|sure|ok|okay|of course|definitely|absolutely|i will|i would)\b", re.I),
    "refuse": re.compile(r"\b(no|not|can't|cannot|won't|don't|unable|afford)\b", re.I),
    "trust": re.compile(r"\b(trust|legit\w*|scam|website|where does|how do i know|percent\w*)\b", re.I),
}


class PersuasionForGood:
    """The persuasion task; see the module's docstring.

    Raises:
        UserError: the data is missing or unusable, or fewer than one policy turn is allowed.
    """

    @dataclass(frozen=True)
    class Config(PersuasionSource):
        max_policy_turns: Positive = 12
        """Policy turns, the opening not counted; all but 4 of the 982 logged dialogues need no more."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = config = config or self.Config()
        self.name = "persuasion_for_good"
        check_settings(config, "PersuasionForGood")
        self.max_policy_turns = config.max_policy_turns
        records, self.problems = _read(config)
        self.records: dict[Split, list[PersuasionRecord]] = split_records(records, config)

    def scenarios(self, split: Split, count: int, population: str = "same") -> list[Scenario]:
        """The first ``count`` scenarios of ``split``, one for each of its logged dialogues."""
        if population != "same":
            raise UserError(f"PersuasionForGood: unknown population '{population}'; the logs have one, 'same'")
        records = self.records[split]
        if count > len(records):
            raise UserError(
                f"PersuasionForGood: {count} scenarios requested of the {split} split, which has {len(records)}"
            )
        return [scenario_of(record, split) for record in records[:count]]

    def ending(self, scenario: Scenario, turns: Sequence[Turn]) -> str | None:
        """``decided``, once the user has said what it gives."""
        return None if _decision(turns) is None else DECIDED

    def against_goal(self, scenario: Scenario, turns: Sequence[Turn]) -> bool:
        """To decide in the first turn, which nobody did, or to give more than there is."""
        cents = _decision(turns)
        return cents is not None and (cents > MOST_CENTS or sum(turn.side is Side.USER for turn in turns) == 1)

    def outcome(self, scenario: Scenario, turns: Sequence[Turn], ending: str) -> Outcome:
        """What is given over two dollars; any ending but ``decided`` is worth nothing."""
        cents = (_decision(turns) or 0) if ending == DECIDED else 0
        cents = min(cents, MOST_CENTS)
        return Outcome(reward=cents / MOST_CENTS, success=cents > 0, details={"cents": cents})

    def reward_range(self) -> tuple[float, float]:
        """From nothing to everything."""
        return 0.0, 1.0

    def metrics(self, scenario: Scenario, turns: Sequence[Turn], outcome: Outcome) -> Mapping[str, float]:
        """``dollars`` given, and ``dollars_if_any`` where something was."""
        dollars = outcome.details["cents"] / 100
        return {"dollars": dollars} | ({"dollars_if_any": dollars} if outcome.success else {})

    def acts(self, scenario: Scenario, turns: Sequence[Turn], index: int) -> tuple[str, ...]:
        """``decide:nothing`` or ``decide:something`` for the last line; for talk, by keywords, ``greet``, ``thank``,
        ``charity``, ``children``, ``donate``, ``agree``, ``refuse``, ``trust``, ``amount`` and ``ask``; ``other`` where
        none is found."""
        turn = turns[index]
        decided = decision_of(turn.text) if turn.side is Side.USER else None
        acts = [] if decided is None else [f"decide:{'something' if decided else 'nothing'}"]
        talk = _DECISION.sub("", turn.text)
        acts += [act for act, words in _ACT_WORDS.items() if words.search(talk)]
        acts += ["amount"] if _AMOUNT.search(talk) else []
        acts += ["ask"] if "?" in talk else []
        return tuple(acts) or ("other",)

    def profile(self, scenario: Scenario, turns: Sequence[Turn]) -> Mapping[str, float]:
        """``words_per_turn``, ``amounts`` (share of its turns that name one), ``questions`` (share that ask),
        ``decided`` and ``gave``."""
        spoken = [_DECISION.sub("", turn.text) for turn in turns if turn.side is Side.USER]
        count = max(1, len(spoken))
        cents = _decision(turns)
        return {
            "words_per_turn": sum(len(text.split()) for text in spoken) / count,
            "amounts": sum(bool(_AMOUNT.search(text)) for text in spoken) / count,
            "questions": sum("?" in text for text in spoken) / count,
            "decided": float(cents is not None),
            "gave": float(bool(cents)),
        }


def scenario_of(record: PersuasionRecord, split: Split) -> Scenario:
    """The scenario that a logged dialogue had."""
    return Scenario(
        id=f"persuasion-{record.id}", split=split, policy_instructions=POLICY_INSTRUCTIONS,
        user_instructions=USER_INSTRUCTIONS, greeting=record.talk[0],
    )  # fmt: skip


def decision_line(cents: int) -> str:
    """How the user says what it gives."""
    return f"Donate: ${cents / 100:.2f}"


def decision_of(text: str) -> int | None:
    """The cents that ``text`` says are given, in the words that it ends with; None: it does not say."""
    decision = _DECISION.search(text)
    return None if decision is None else round(float(decision[1]) * 100)


def _decision(turns: Sequence[Turn]) -> int | None:
    return decision_of(turns[-1].text) if turns and turns[-1].side is Side.USER else None


def _read(config: PersuasionSource) -> tuple[list[PersuasionRecord], list[LogProblem]]:
    return read_records(Path(config.path).expanduser())
