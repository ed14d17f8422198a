"""DealOrNoDeal: two sides share out books, hats and balls; the scenarios are those of the logged negotiations.

Either side may sit in the policy's seat, so that each logged dialogue gives two scenarios: in one the other side opens,
in the other the policy's side has opened as it did in the log (its greeting). Those in which the other side opens come
first in every split. Either side ends the talk by entering what it gets; the other enters then, without having heard
it (``deals.py`` has the rules). Reward: the policy side's points over 10 if the entries fit, else 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibrated_rl.data.dialogue import Outcome, Scenario, Side, Split, Turn
from calibrated_rl.errors import UserError
from calibrated_rl.examples.deal_or_no_deal.deals import (
    AGREED,
    ENTRY,
    ITEMS,
    MOST_POINTS,
    NO_AGREEMENT,
    Counts,
    Negotiation,
    Refusal,
    Values,
    accepted_first_offer,
    accepts,
    entry_text,
    is_entry,
    negotiate,
    read_entry,
    read_offer,
    refuses,
)
from calibrated_rl.examples.deal_or_no_deal.records import DealFile, DealRecord, DealSource, read_file, split_records
from calibrated_rl.settings.fields import Positive, check_settings
from calibrated_rl.tasks.base import count_policy_turns

_GREETS = ("hi", "hello", "hey", "thanks", "thank")


class DealOrNoDeal:
    """The negotiation task; see the module's docstring.

    Raises:
        UserError: the data is missing or unusable, or fewer than one policy turn is allowed.
    """

    secret_after = ENTRY

    @dataclass(frozen=True)
    class Config(DealSource):
        max_policy_turns: Positive = 10
        """Policy turns, the opening not counted; fewer than 1 % of the logged negotiations need more."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = config = config or self.Config()
        self.name = "deal_or_no_deal"
        check_settings(config, "DealOrNoDeal")
        self.max_policy_turns = config.max_policy_turns
        self.file: DealFile = read_file(Path(config.path).expanduser())
        self.records = split_records(self.file.records, config)
        self._seats = {
            scenario_id(record, seat): (record, seat)
            for records in self.records.values() for record in records for seat in (1, 0)
        }  # fmt: skip

    def seats(self, split: Split) -> list[tuple[DealRecord, int]]:
        """Dialogue and the policy's seat of every scenario of ``split``, in order; seat 0 opened the talk."""
        records = self.records[split]
        return [(record, seat) for seat in (1, 0) for record in records]

    def scenarios(self, split: Split, count: int, population: str = "same") -> list[Scenario]:
        """The first ``count`` scenarios of ``split``, two for each of its logged dialogues."""
        if population != "same":
            raise UserError(f"DealOrNoDeal: unknown population '{population}'; the logs have one, 'same'")
        seats = self.seats(split)
        if count > len(seats):
            raise UserError(f"DealOrNoDeal: {count} scenarios requested of the {split} split, which has {len(seats)}")
        return [scenario_of(record, seat, split) for record, seat in seats[:count]]

    def ending(self, scenario: Scenario, turns: Sequence[Turn]) -> str | None:
        """``agreed``, ``disagreed``, ``no_agreement`` or ``not_entered`` (``deals.py``)."""
        return negotiation(scenario, turns).ending

    def against_goal(self, scenario: Scenario, turns: Sequence[Turn]) -> bool:
        """What the study's page made impossible: to enter before anybody has spoken, other than one of the items that
        there are, or to talk on after the other side has entered."""
        spoken = [turn for turn in turns if turn.text]
        if not spoken or spoken[-1].side is not Side.USER:
            return False
        if not is_entry(spoken[-1].text):
            return any(is_entry(turn.text) for turn in spoken[:-1])
        entry = read_entry(spoken[-1].text)
        too_much = not isinstance(entry, Refusal | None) and any(
            entered > count for entered, count in zip(entry, counts_of(scenario), strict=True)
        )
        return entry is None or too_much or len(spoken) == 1

    def must_begin(self, scenario: Scenario, turns: Sequence[Turn]) -> str:
        """After the other side's entry comes one's own."""
        return ENTRY if turns and is_entry(turns[-1].text) else ""

    def outcome(self, scenario: Scenario, turns: Sequence[Turn], ending: str) -> Outcome:
        """Points over 10; any ending but ``agreed`` is worth nothing."""
        state = negotiation(scenario, turns)
        agreed = ending == AGREED and state.ending == AGREED
        points = {side: state.points(side, values_of(scenario, side)) if agreed else 0 for side in Side}
        return Outcome(
            reward=points[Side.POLICY] / MOST_POINTS,
            success=agreed,
            details={
                "policy_points": points[Side.POLICY],
                "user_points": points[Side.USER],
                "malformed_entry": state.entries.get(Side.POLICY, ()) is None,
            },
        )

    def reward_range(self) -> tuple[float, float]:
        """From nothing to everything."""
        return 0.0, 1.0

    def metrics(self, scenario: Scenario, turns: Sequence[Turn], outcome: Outcome) -> Mapping[str, float]:
        """Of one evaluated dialogue: ``joint_points`` of both sides, and ``points_when_agreed`` of the policy's side,
        which only dialogues with a deal have."""
        policy, user = outcome.details["policy_points"], outcome.details["user_points"]
        joint = {"joint_points": float(policy + user)}
        return joint | ({"points_when_agreed": float(policy)} if outcome.success else {})

    def acts(self, scenario: Scenario, turns: Sequence[Turn], index: int) -> tuple[str, ...]:
        """``enter`` or ``enter_nothing`` for entries; for talk, by rule, ``offer``, ``accept``, ``refuse``, ``ask``,
        ``greet`` and ``mention:ITEM``; ``other`` where none is found."""
        text = turns[index].text
        if is_entry(text):
            return ("enter",) if isinstance(read_entry(text), tuple) else ("enter_nothing",)
        words = text.split()
        acts = {
            "offer": read_offer(text, counts_of(scenario)) is not None,
            "accept": accepts(text),
            "refuse": refuses(text),
            "ask": "?" in words,
            "greet": any(word in words for word in _GREETS),
        }
        mentions = [f"mention:{item}" for item in ITEMS if any(word.startswith(item) for word in words)]
        return (*(act for act, applies in acts.items() if applies), *mentions) or ("other",)

    def profile(self, scenario: Scenario, turns: Sequence[Turn]) -> Mapping[str, float]:
        """``first_turn_disclosure`` (share of the items named in its first turn), ``words_per_turn`` of its talk,
        ``first_offer_accepted`` (``deals.py``), ``refusals`` a dialogue, ``entered_first``, ``agreed``,
        ``no_agreement`` and its ``points`` of 10."""
        spoken = [turn.text for turn in turns if turn.side is Side.USER]
        talk = [text for text in spoken if not is_entry(text)]
        state = negotiation(scenario, turns)
        named = [item for item in ITEMS if any(word.startswith(item) for word in spoken[0].split())] if spoken else []
        pairs = [(turn.side, turn.text) for turn in turns]
        return {
            "first_turn_disclosure": len(named) / len(ITEMS),
            "words_per_turn": sum(len(text.split()) for text in talk) / max(1, len(talk)),
            "first_offer_accepted": float(accepted_first_offer(pairs, counts_of(scenario))),
            "refusals": float(sum(map(refuses, talk))),
            "entered_first": float(next(iter(state.entries), None) is Side.USER),
            "agreed": float(state.ending == AGREED),
            "no_agreement": float(state.ending == NO_AGREEMENT),
            "points": float(state.points(Side.USER, values_of(scenario, Side.USER))),
        }

    def logged_turn(self, scenario: Scenario, turns: Sequence[Turn], seed: int) -> str:
        """The person in the policy's seat, who says what the log has, whatever the answers are, and asks for what it
        entered there if it has made no offer by then. It enters its latest offer once that is accepted. For logs with
        scripted users."""
        record, seat = self._seats[scenario.id]
        counts = counts_of(scenario)
        offers = [read_offer(turn.text, counts) for turn in turns if turn.side is Side.POLICY]
        offered = next((offer for offer in reversed(offers) if offer is not None), None)
        if offered is not None and (accepts(turns[-1].text) or is_entry(turns[-1].text)):
            return entry_text(offered)
        lines = [text for number, text in enumerate(record.talk) if number % 2 == seat]
        lines_spoken = count_policy_turns(turns) + (1 if seat == 0 else 0)
        if lines_spoken < len(lines):
            return lines[lines_spoken]
        entry = record.entries[seat]
        return entry_text(entry) if offered is not None or isinstance(entry, Refusal) else request(entry)


def scenario_id(record: DealRecord, seat: int) -> str:
    return f"deal-{record.id}-{'answers' if seat else 'opens'}"


def scenario_of(record: DealRecord, seat: int, split: Split) -> Scenario:
    """The scenario of a logged negotiation with the policy in ``seat`` (0: it opened)."""
    values = {Side.POLICY: record.values[seat], Side.USER: record.values[1 - seat]}
    return Scenario(
        id=scenario_id(record, seat),
        split=split,
        policy_instructions=instructions(record.counts, values[Side.POLICY]),
        user_instructions=instructions(record.counts, values[Side.USER]),
        greeting="" if seat else record.talk[0],
        goal={"counts": list(record.counts)} | {side.value: list(values[side]) for side in Side},
    )


def instructions(counts: Counts, values: Values) -> str:
    """What a side is told: how many there are of each item, and what one is worth to it."""
    return " ".join(f"{item} {count} worth {value}" for item, count, value in zip(ITEMS, counts, values, strict=True))


def request(share: Counts) -> str:
    """Words that ask for ``share``."""
    wanted = [f"{count} {item}{'s' * (count > 1)}" for item, count in zip(ITEMS, share, strict=True) if count]
    return f"i would like {' and '.join(wanted)}" if wanted else "you can have everything"


def counts_of(scenario: Scenario) -> Counts:
    """How many there are of each item."""
    return _triple(scenario.goal["counts"])


def values_of(scenario: Scenario, side: Side) -> Values:
    """What one of each item is worth to ``side``."""
    return _triple(scenario.goal[side.value])


def _triple(numbers: Any) -> tuple[int, int, int]:
    book, hat, ball = numbers
    return int(book), int(hat), int(ball)


def negotiation(scenario: Scenario, turns: Sequence[Turn]) -> Negotiation:
    """What ``turns`` amount to."""
    return negotiate(((turn.side, turn.text) for turn in turns), counts_of(scenario))
