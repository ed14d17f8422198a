"""What a user at the front desk says next: its state read off the history, and the enumerated distribution.

The behaviour is described in ``front_desk_human``; here it is spelled out for one manner and one history.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import lru_cache

from calibrated_rl.data.dialogue import Side, Turn
from calibrated_rl.examples.front_desk.words import (
    CHANGE,
    LEAVE,
    SLOPPY,
    SLOT_OF,
    SLOTS,
    Goal,
    Move,
    MoveKind,
    is_leaving,
    read_move,
    stated_values,
    states_change,
)

Words = tuple[str, ...]
History = tuple[tuple[bool, str], ...]
"""(is it the user's, text) of each turn, the greeting first."""
LONGEST_REPLY = 6
"""``please`` is only added to replies with fewer words than this."""
MOST_ASKED = 2
"""A question for more slots at once is not understood."""
MAX_HAZARD = 0.9
"""Nobody leaves for certain: so every stay keeps a probability above 0."""


@dataclass(frozen=True, slots=True)
class Manner:
    """What a type does, apart from how it types. Probabilities, unless it says something else."""

    tell_all: float
    """Of telling all that was not told yet, in the first turn and in any answer."""
    tell_one: float
    """Of telling one slot more (one in the first turn), where not all is told."""
    please: float
    """Of ``please`` after an opening or an answer, and of ``sorry what`` instead of ``what``."""
    leave_base: float
    """Of leaving, at each turn after the first."""
    leave_bad: float
    """Added to it for each bad policy turn so far."""
    leave_late: float
    """Added to it for each policy turn beyond ``free_turns``."""
    free_turns: int
    """Policy turns that cost no patience. A number, no probability."""
    answer_both: float
    """Of answering both of two questions at once, instead of one of them."""
    misspeak: float
    """Of saying one wrong value where values are told."""
    grumble: float
    """Of ``i said friday`` instead of ``friday`` when asked again."""
    notice: float
    """Of noticing a wrong read-back."""
    utter_change: float
    """Of speaking the new mind, at each turn from the change's on until it is said."""


@dataclass(frozen=True, slots=True)
class View:
    """All that the next reply depends on, read off the history."""

    number: int
    """Which of the user's turns comes next; 1 is the opening."""
    move: Move
    told_slots: frozenset[str]
    changed: bool
    """The change of mind was uttered."""
    bad: int
    """Bad policy turns so far."""
    over: bool
    """The policy has booked or the user has left."""


def as_history(turns: Sequence[Turn]) -> History:
    return tuple((turn.side is Side.USER, turn.text) for turn in turns)


@lru_cache(maxsize=20_000)
def read_history(goal: Goal, history: History) -> View:
    """The user's state, recomputed from the text of any history."""
    number, bad, changed, over = 1, 0, False, False
    move = Move(MoveKind.OTHER)
    told_slots: set[str] = set()
    read_back: set[Words] = set()
    for index, (is_user, text) in enumerate(history):
        if is_user:
            number += 1
            told_slots |= {SLOT_OF[value] for value in stated_values(text)}
            changed |= states_change(goal, text)
            over |= is_leaving(text)
            move = Move(MoveKind.OTHER)
        elif index:
            move = read_move(text)
            over |= move.kind is MoveKind.BOOK
            bad += (
                move.kind is MoveKind.OTHER
                or (move.kind is MoveKind.ASK and _asks_in_vain(move, goal, told_slots))
                or (move.kind is MoveKind.READ_BACK and move.values in read_back)
            )
            read_back |= {move.values} if move.kind is MoveKind.READ_BACK else set()
    return View(number, move, frozenset(told_slots), changed, bad, over)


def _asks_in_vain(move: Move, goal: Goal, told_slots: Set[str]) -> bool:
    """For too much at once, or for nothing that is needed and was not told."""
    return len(move.slots) > MOST_ASKED or not any(slot in goal.slots and slot not in told_slots for slot in move.slots)


@lru_cache(maxsize=20_000)
def reply_distribution(goal: Goal, view: View, manner: Manner) -> dict[Words, float]:
    """Canonical reply to probability; sums to 1. Leaving comes first, so that common random numbers couple it."""
    if view.over:
        return {("bye",): 1.0}
    replies: dict[Words, float] = {}
    late = max(0, view.number - 1 - manner.free_turns)
    hazard = manner.leave_base + manner.leave_bad * view.bad + manner.leave_late * late
    leave = min(MAX_HAZARD, hazard) if view.number > 1 else 0.0
    if leave:
        replies[LEAVE] = leave
    change_due = bool(goal.change_turn) and not view.changed and view.number >= goal.change_turn
    minds = [(manner.utter_change, True), (1.0 - manner.utter_change, False)] if change_due else [(1.0, view.changed)]
    for weight, changed in minds:
        if change_due and changed and goal.change_slot in view.told_slots:
            content: dict[Words, float] = {(*CHANGE, goal.change_value): 1.0}
        else:
            content = _content(goal.wish(changed), view, manner)
        for words, probability in _misspoken(content, goal, view, manner).items():
            if probability * weight > 0.0:
                replies[words] = replies.get(words, 0.0) + (1.0 - leave) * weight * probability
    return replies


def _content(wish: dict[str, str], view: View, manner: Manner) -> dict[Words, float]:
    """Replies of a user who stays, wants ``wish`` and has no change to announce."""
    move = view.move
    untold = [slot for slot in wish if slot not in view.told_slots]
    if view.number == 1:
        return _polite(_with_more(("table",), [wish[slot] for slot in untold], manner), manner)
    if move.kind is MoveKind.ASK and len(move.slots) <= MOST_ASKED:
        return _answers(move, wish, untold, manner)
    if move.kind is MoveKind.READ_BACK:
        read_back = move.by_slot
        wrong_values = [wish[slot] for slot in read_back if wish.get(slot, read_back[slot]) != read_back[slot]]
        if wrong_values:
            noticed: dict[Words, float] = {("no", value): manner.notice / len(wrong_values) for value in wrong_values}
            return {**noticed, ("yes",): 1.0 - manner.notice}
        return _with_more(("yes",), [wish[slot] for slot in untold if slot not in read_back], manner)
    return {("what",): 1.0 - manner.please, ("sorry", "what"): manner.please}


def _answers(move: Move, wish: dict[str, str], untold: Sequence[str], manner: Manner) -> dict[Words, float]:
    """To one question, or to two at once."""
    needed = [slot for slot in move.slots if slot in wish]
    if not needed:
        return {("any",): 1.0}
    targets = [slot for slot in needed if slot in untold] or needed[:1]
    counts = {1: 1.0 - manner.answer_both, 2: manner.answer_both} if len(targets) > 1 else {1: 1.0}
    answers: dict[Words, float] = {}
    for count, share in counts.items():
        answered = targets[:count]
        extra_values = [wish[slot] for slot in untold if slot not in answered]
        for words, probability in _with_more(tuple(wish[slot] for slot in answered), extra_values, manner).items():
            answers[words] = answers.get(words, 0.0) + share * probability
    replies = _polite(answers, manner)
    if targets[0] in untold:
        return replies
    replies = {words: (1.0 - manner.grumble) * p for words, p in replies.items()}
    replies["i", "said", wish[targets[0]]] = manner.grumble
    return replies


def _misspoken(replies: dict[Words, float], goal: Goal, view: View, manner: Manner) -> dict[Words, float]:
    """``replies``, where one of the values that are told for the first time may be another one of its slot; not that of
    a change of mind, which would announce it."""
    if not manner.misspeak:
        return replies
    mixed: dict[Words, float] = {}
    for words, probability in replies.items():
        places = [i for i, word in enumerate(words) if word in SLOT_OF and SLOT_OF[word] not in view.told_slots]
        if words[: len(CHANGE)] == CHANGE:
            places = []
        mixed[words] = mixed.get(words, 0.0) + probability * (1.0 - manner.misspeak if places else 1.0)
        for place in places:
            wrong = [v for v in SLOTS[SLOT_OF[words[place]]] if v not in (words[place], goal.change_value)]
            for value in wrong:
                other = (*words[:place], value, *words[place + 1 :])
                mixed[other] = mixed.get(other, 0.0) + probability * manner.misspeak / len(places) / len(wrong)
    return mixed


def _with_more(base: Words, extra_values: Sequence[str], manner: Manner) -> dict[Words, float]:
    """``base``, alone or with one or all of the values in ``more``."""
    if not extra_values:
        return {base: 1.0}
    p_one = (1.0 - manner.tell_all) * manner.tell_one
    replies = {base: (1.0 - manner.tell_all) * (1.0 - manner.tell_one)}
    for value in extra_values:
        replies[*base, value] = p_one / len(extra_values)
    replies[*base, *extra_values] = replies.get((*base, *extra_values), 0.0) + manner.tell_all
    return replies


def _polite(replies: dict[Words, float], manner: Manner) -> dict[Words, float]:
    polite: dict[Words, float] = {}
    for words, probability in replies.items():
        share = manner.please if len(words) < LONGEST_REPLY else 0.0
        polite[words] = probability * (1.0 - share)
        if share:
            polite[*words, "please"] = probability * share
    return polite


def typing_probability(typed: Sequence[str], words: Words, typo: float) -> float:
    """Probability that ``words`` are typed as ``typed``, which must be a spelling of them."""
    probability = 1.0
    for spelling, word in zip(typed, words, strict=True):
        if word in SLOPPY:
            probability *= typo if spelling != word else 1.0 - typo
    return probability
