"""FrontDesk: a small booking world whose human is a program, for dev mode, tests and exact shifts.

A user wants a table; the goal has three to five slots of one value each. The policy asks for a slot, or for two at once
(``which day ?``, ``which day time ?``), reads back (``so friday seven ?``) or books (``booked friday seven two``),
which closes the dialogue. In some scenarios the user changes its mind about one slot.

The policy that was logged has a habit: it goes through a form, question by question, also for what is not needed. What
pays is another strategy, which its logs hardly show: to ask for what is needed alone, and for two slots at once, before
people lose patience.

Reward: 1 minus ``turn_cost`` for each policy turn if the booking is exactly the effective goal and the user is still
there, else 0: no way of failing is better than another, so that a policy that rarely succeeds gains nothing by giving
up early. The effective goal is the first goal, with the change applied if and only if the user has uttered it before
the booking.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from calibrated_rl.data.dialogue import Outcome, Scenario, Side, Split, Turn
from calibrated_rl.errors import UserError
from calibrated_rl.examples.front_desk.words import (
    CHANGE,
    CLOSED,
    LEFT,
    SLOT_OF,
    SLOTS,
    Goal,
    Move,
    MoveKind,
    canonical,
    change_uttered,
    goal_of,
    heard,
    is_leaving,
    read_move,
    stated_values,
)
from calibrated_rl.settings.fields import Positive, Seed, Share, check_settings
from calibrated_rl.tasks.base import count_policy_turns

POPULATIONS = ("same", "shifted")
_SIMPLE_ACTS = {"yes": "confirm", "no": "deny", "what": "confused", "said": "grumble", "any": "indifferent"}


def keyed_random(*key: object) -> np.random.Generator:
    """A generator that depends on the key's text alone: the same on every machine and in every process."""
    digest = blake2b("|".join(map(str, key)).encode("utf-8", "backslashreplace"), digest_size=8).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))


class FrontDesk:
    """The booking task; see the module's docstring.

    Raises:
        UserError: a probability outside 0..1, or fewer than one policy turn.
    """

    @dataclass(frozen=True)
    class Config:
        seed: Seed = 0
        """Draws the scenarios (goals and changes of mind)."""
        max_policy_turns: Positive = 8
        """Policy turns, the greeting not counted, after which the dialogue ends."""
        turn_cost: Share = 0.02
        """What a booking loses for each policy turn: small, so that asking for everything costs about a tenth."""
        change_share: Share = 0.2
        """Share of scenarios in which the user changes its mind, from its second, third or fourth turn on."""
        logged_early_book: Share = 0.03
        """The logged policy: probability, a turn, of booking with guesses for what it does not know."""
        logged_repeat: Share = 0.03
        """The logged policy: probability of asking for what it was told already."""
        logged_read_back: Share = 0.05
        """The logged policy: probability of reading back once before it books, where it knows all."""
        logged_pair: Share = 0.1
        """The logged policy: probability of asking for two missing slots at once."""
        logged_skip: Share = 0.2
        """The logged policy: probability of passing over what is not needed in its form."""
        logged_slip: Share = 0.05
        """The logged policy: probability that one value of a complete booking or a read-back is a guess."""
        logged_chat: Share = 0.03
        """The logged policy: probability of saying something that human users do not understand."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = config = config or self.Config()
        self.name = "front_desk"
        check_settings(config, "FrontDesk")
        moves = ("logged_early_book", "logged_repeat", "logged_read_back", "logged_pair", "logged_chat")
        if sum(getattr(config, key) for key in moves) > 1.0:
            raise UserError(f"FrontDesk: {' + '.join(moves)} exceed 1")
        self.max_policy_turns = config.max_policy_turns

    def scenarios(self, split: Split, count: int, population: str = "same") -> list[Scenario]:
        """The first ``count`` scenarios of ``split``; any number of them exists."""
        if population not in POPULATIONS:
            raise UserError(f"FrontDesk: unknown population '{population}'; known: {', '.join(POPULATIONS)}")
        infix = "" if population == "same" else f"-{population}"
        return [self._scenario(split, f"{split}{infix}-{i:06d}", population) for i in range(count)]

    def _scenario(self, split: Split, scenario_id: str, population: str) -> Scenario:
        rng = keyed_random("front_desk", self.config.seed, scenario_id)
        goal_slots = set(rng.permutation(list(SLOTS))[: rng.integers(3, 6)].tolist())
        goal = Goal(tuple((slot, str(rng.choice(SLOTS[slot]))) for slot in SLOTS if slot in goal_slots))
        if rng.random() < self.config.change_share:
            slot, value = goal.first[rng.integers(len(goal.first))]
            other_values = [candidate for candidate in SLOTS[slot] if candidate != value]
            goal = Goal(goal.first, int(rng.integers(2, 5)), slot, str(rng.choice(other_values)))
        wish = " ".join(f"{slot} {value}" for slot, value in goal.first)
        change = f" . turn {goal.change_turn} {goal.change_slot} {goal.change_value}" if goal.change_turn else ""
        return Scenario(
            id=scenario_id,
            split=split,
            policy_instructions=f"book : {' '.join(goal.slots)}",
            user_instructions=f"want : {wish}{change}",
            greeting="hello",
            goal=goal.as_json(),
            population=population,
        )

    def _end(self, turns: Sequence[Turn]) -> tuple[str, int] | None:
        """The first ending in ``turns`` and the index of the turn that brought it."""
        for index, turn in enumerate(turns):
            if turn.side is Side.USER and is_leaving(turn.text):
                return LEFT, index
            if index and turn.side is Side.POLICY and read_move(turn.text).kind is MoveKind.BOOK:
                return CLOSED, index
        return None

    def ending(self, scenario: Scenario, turns: Sequence[Turn]) -> str | None:
        """``closed`` once the policy has booked, ``left`` once the user has left."""
        end = self._end(turns)
        return end[0] if end else None

    def against_goal(self, scenario: Scenario, turns: Sequence[Turn]) -> bool:
        """Leaving in the first turn: no goal is met by that."""
        spoken = [turn.text for turn in turns if turn.side is Side.USER]
        return len(spoken) == 1 and is_leaving(spoken[0])

    def contradicts_goal(self, scenario: Scenario, turns: Sequence[Turn]) -> bool | None:
        """A value that is neither the goal's nor, once it is due, the change's; None for a turn without values."""
        fits = _fit_goal(goal_of(scenario), sum(turn.side is Side.USER for turn in turns), turns[-1].text)
        return not all(fits) if fits else None

    def leaves_early(self, scenario: Scenario, turns: Sequence[Turn]) -> bool | None:
        """Whoever leaves has no table."""
        return is_leaving(turns[-1].text)

    def outcome(self, scenario: Scenario, turns: Sequence[Turn], ending: str) -> Outcome:
        goal, end = goal_of(scenario), self._end(turns)
        closed = ending == CLOSED and end is not None and end[0] == CLOSED
        booked = Move(MoveKind.BOOK)
        uttered = change_uttered(goal, turns)
        if closed and end is not None:
            booked = read_move(turns[end[1]].text)
            uttered = change_uttered(goal, turns[: end[1]])
        success = closed and booked.clean and booked.by_slot == goal.wish(uttered)
        worth = 1.0 - self.config.turn_cost * count_policy_turns(turns)
        return Outcome(
            reward=max(0.0, worth) if success else 0.0,
            success=success,
            details={"booked": booked.by_slot, "goal": goal.wish(uttered), "change_uttered": uttered},
        )

    def reward_range(self) -> tuple[float, float]:
        """From no right booking to one in the first turn."""
        return 0.0, 1.0 - self.config.turn_cost

    def acts(self, scenario: Scenario, turns: Sequence[Turn], index: int) -> tuple[str, ...]:
        """``greet``, ``ask:SLOT``, ``read_back:SLOT``, ``book:SLOT`` or ``other`` for the policy; ``want`` (the
        opening), ``inform:SLOT``, ``change:SLOT``, ``confirm``, ``deny``, ``confused``, ``grumble``,
        ``indifferent``, ``leave`` or ``other`` for the user. Values and spelling are left out."""
        turn = turns[index]
        if turn.side is Side.USER:
            return self._user_acts(turn.text)
        if index == 0:
            return ("greet",)
        move = read_move(turn.text)
        if move.kind is MoveKind.ASK:
            return tuple(f"ask:{slot}" for slot in move.slots)
        return tuple(f"{move.kind}:{SLOT_OF[value]}" for value in move.values) or (str(move.kind),)

    @staticmethod
    def _user_acts(text: str) -> tuple[str, ...]:
        if is_leaving(text):
            return ("leave",)
        words = canonical(text)
        verb = "change" if words[: len(CHANGE)] == CHANGE else "inform"
        acts = ["want"] if words[:1] == ("table",) else []
        for word in words:
            if word in SLOT_OF:
                acts.append(f"{verb}:{SLOT_OF[word]}")
            elif word in _SIMPLE_ACTS:
                acts.append(_SIMPLE_ACTS[word])
        return tuple(dict.fromkeys(acts)) or ("other",)

    def profile(self, scenario: Scenario, turns: Sequence[Turn]) -> Mapping[str, float]:
        """``goal_kept``, ``first_turn_disclosure``, ``words_per_turn``, ``left``; ``change_uttered`` where the
        change was due in this dialogue, ``wrong_confirmed`` where a wrong read-back was answered."""
        goal = goal_of(scenario)
        spoken = [turn.text for turn in turns if turn.side is Side.USER]
        is_consistent = [fits for number, text in enumerate(spoken, start=1) for fits in _fit_goal(goal, number, text)]
        told_first = {SLOT_OF[value] for value in stated_values(spoken[0])} if spoken else set()
        profile = {
            "goal_kept": float(np.mean(is_consistent)) if is_consistent else 1.0,
            "first_turn_disclosure": len(told_first & set(goal.slots)) / max(1, len(goal.slots)),
            "words_per_turn": float(np.mean([len(text.split()) for text in spoken])) if spoken else 0.0,
            "left": float(any(is_leaving(text) for text in spoken)),
        }
        if goal.change_turn and len(spoken) >= goal.change_turn:
            profile["change_uttered"] = float(change_uttered(goal, turns))
        confirmed = self._wrong_confirmed(goal, turns)
        if confirmed:
            profile["wrong_confirmed"] = float(np.mean(confirmed))
        return profile

    @staticmethod
    def _wrong_confirmed(goal: Goal, turns: Sequence[Turn]) -> list[bool]:
        """For each wrong read-back that was answered: whether the answer says yes."""
        confirmed: list[bool] = []
        for index in range(1, len(turns) - 1):
            if turns[index].side is Side.POLICY and turns[index + 1].side is Side.USER:
                move, wish = read_move(turns[index].text), goal.wish(change_uttered(goal, turns[:index]))
                is_wrong = any(wish.get(slot, value) != value for slot, value in move.by_slot.items())
                if move.kind is MoveKind.READ_BACK and is_wrong:
                    confirmed.append("yes" in canonical(turns[index + 1].text))
        return confirmed

    def logged_turn(self, scenario: Scenario, turns: Sequence[Turn], seed: int) -> str:
        """The policy that was logged. Its habit: it goes through its form, one question a turn, what is not needed
        included, and books without reading back. Now and then it does otherwise: passes over what is not needed, asks
        for two slots at once, reads back, asks again, books too early, slips. It knows what a policy can know: the
        slots of its instructions and the turns so far."""
        config = self.config
        rng = keyed_random("front_desk_logged", seed, scenario.id, len(turns))
        slots = goal_of(scenario).slots
        heard_values = {slot: value for slot, value in heard(turns).items() if slot in slots}
        missing_slots = [slot for slot in slots if slot not in heard_values]
        own_moves = [read_move(turn.text) for turn in turns if turn.side is Side.POLICY]
        has_read_back = any(each.kind is MoveKind.READ_BACK for each in own_moves)
        shares = {
            "early": config.logged_early_book if missing_slots else 0.0,
            "repeat": config.logged_repeat if heard_values else 0.0,
            "read_back": config.logged_read_back if not missing_slots and not has_read_back else 0.0,
            "pair": config.logged_pair if len(missing_slots) > 1 else 0.0,
            "chat": config.logged_chat,
        }
        chance, bounds = rng.random(), np.cumsum(list(shares.values()))
        move = next((name for name, bound in zip(shares, bounds, strict=True) if chance < bound), "")
        slip = rng.random() < config.logged_slip
        if move == "early":
            return f"booked {self._values(slots, heard_values, missing_slots, rng)}"
        if move == "repeat":
            return f"which {rng.choice(list(heard_values))} ?"
        if move == "pair":
            return f"which {' '.join(missing_slots[:2])} ?"
        if move == "read_back":
            return f"so {self._values(slots, heard_values, [str(rng.choice(slots))] if slip else [], rng)} ?"
        if move == "chat":
            return "one moment"
        slots_asked = {slot for each in own_moves for slot in each.slots}
        form = [slot for slot in SLOTS if slot in missing_slots or (slot not in slots and slot not in slots_asked)]
        if missing_slots:
            return f"which {missing_slots[0] if rng.random() < config.logged_skip else form[0]} ?"
        return f"booked {self._values(slots, heard_values, [str(rng.choice(slots))] if slip else [], rng)}"

    @staticmethod
    def _values(
        slots: Sequence[str], heard_values: Mapping[str, str], guessed: Sequence[str], rng: np.random.Generator
    ) -> str:
        guesses = {slot: str(rng.choice(SLOTS[slot])) for slot in guessed}
        return " ".join(guesses.get(slot) or heard_values[slot] for slot in slots)


def _fit_goal(goal: Goal, number: int, text: str) -> list[bool]:
    """For each value that the user's ``number``-th turn states: whether it is one that the user wants by then."""
    first, final = goal.wish(False), goal.wish(bool(goal.change_turn) and number >= goal.change_turn)
    return [value in (first.get(SLOT_OF[value]), final.get(SLOT_OF[value])) for value in stated_values(text)]
