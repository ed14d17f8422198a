"""What breaks a dialogue, and whose fault it is: the one place that decides what may be scored.

Contract 5 of docs/architecture.md is kept here.

A dialogue that the *policy* breaks ends, and is scored. One that any other party breaks (the user model, a judge, a
tool, an engine) says nothing about the policy: that try is dropped, counted by party, and retried, with another seed
where the draws are at fault. ``party_of`` says whose fault an ending is, ``broken_by`` checks a simulator's turn, and
all other failures raise ``RolloutFailure``. Tasks and users of other packages may raise it
too, such as for a judge that does not answer; nothing here needs Ray or an engine.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from calibrated_rl.data.dialogue import Scenario, Side, Source, Turn
from calibrated_rl.errors import Party, RolloutFailure, UserError
from calibrated_rl.tasks.base import Task, UserCheckingTask

T = TypeVar("T")

MAX_TRIES = 3
"""A dialogue that fails this often has a cause that a further try does not repair."""

MOST_BROKEN = 0.75
"""A user model, judge or tool that breaks a larger share of the tries ends the run: the rest is a selection, nearly
all that is sampled is thrown away, and hardly a group of four is complete."""

FEWEST_TRIES = 20
"""Of fewer tries the share says little."""

WHOLE = "whole"
"""Under this name, tries that did not fail are counted beside the parties."""


class MostlyBroken(UserError):
    """A user model, judge or tool breaks so many dialogues that the rest says little."""


CONTEXT = {Side.POLICY: "policy_context", Side.USER: "user_context"}
"""The dialogue and one more turn no longer fit into the context of this side's model."""
DEGENERATE = {Side.POLICY: "policy_degenerate", Side.USER: "user_degenerate"}
"""This side sampled a control token other than its end of turn."""
OVERLONG = "user_overlong"
"""The user's opening left the policy no context for a single turn: it has not done anything yet. Where its own
instructions and greeting leave none, that is no fault of a turn, and refused (``check_context_for_first_turn``)."""
AGAINST_GOAL = "user_against_goal"
"""The task says that no user with this goal would have said the simulator's last turn (``UserCheckingTask``)."""

_BROKEN_BY_FLAW = {
    "control_token": DEGENERATE[Side.USER],
    "empty": "user_empty",
    "role_confusion": "user_role_confusion",
    "unfinished_reasoning": "user_unfinished_reasoning",
}
"""Flaws of a simulator's turn after which the dialogue is none. Repeating oneself and being cut at the token limit are
not among them: humans repeat themselves, and what was said until the limit can be answered."""

_PARTY = {
    CONTEXT[Side.POLICY]: Party.POLICY,
    DEGENERATE[Side.POLICY]: Party.POLICY,
    CONTEXT[Side.USER]: Party.USER,
    OVERLONG: Party.USER,
    AGAINST_GOAL: Party.USER,
    **dict.fromkeys(_BROKEN_BY_FLAW.values(), Party.USER),
}

_OPENS_WITH_A_ROLE = re.compile(r"(user|assistant|system|policy):", re.I)
_LATER_LINE_OF_A_ROLE = re.compile(r"^\s*(user|assistant)\s*:", re.I | re.M)
"""Whoever writes a further line for a role plays both. ``system:`` and ``policy:`` may stand in a text of several
lines that quotes something."""


def confuses_roles(text: str) -> bool:
    """Whether ``text`` opens with the name of a role, or writes a later line for one side of a chat."""
    return bool(_OPENS_WITH_A_ROLE.match(text) or _LATER_LINE_OF_A_ROLE.search(text))


def party_of(ending: str) -> Party | None:
    """Whose fault an ending is. None: nobody's; the task's own word, ``max_turns``, or one of an old store
    (``context``, ``degenerate``), which does not say."""
    return _PARTY.get(ending)


def is_scored(ending: str) -> bool:
    """Whether a dialogue that ended this way says something about the policy."""
    return party_of(ending) in (None, Party.POLICY)


def broken_by(task: Task, scenario: Scenario, turns: Sequence[Turn]) -> str | None:
    """The ending of a dialogue whose last turn a simulator has said and broken it with; None where it did not.
    Real and scripted humans break nothing, whatever they say."""
    turn = turns[-1]
    if turn.source is not Source.SIMULATOR:
        return None
    if turn.flaw in _BROKEN_BY_FLAW:
        return _BROKEN_BY_FLAW[turn.flaw]
    return AGAINST_GOAL if isinstance(task, UserCheckingTask) and task.against_goal(scenario, turns) else None


def ending_of(task: Task, scenario: Scenario, turns: Sequence[Turn]) -> str | None:
    """``task.ending``.

    Raises:
        UserError: it is one of the words of this module, so that it would be ambiguous who ended the dialogue.
    """
    ending = task.ending(scenario, turns)
    if ending is not None and party_of(ending) is not None:
        raise UserError(
            f"task {task.name}: 'ending' returned '{ending}' (scenario {scenario.id}), which means that the dialogue "
            "broke; return another word, or raise RolloutFailure"
        )
    return ending


def score_with_retries(score: Callable[[], T], on_failure: Callable[[RolloutFailure], None]) -> T:
    """The result of ``score`` for a complete dialogue. If it fails, it is called for the same dialogue again.

    Args:
        on_failure: called with each failure but the last.

    Raises:
        RolloutFailure: the last of ``MAX_TRIES``.
    """
    for _ in range(MAX_TRIES - 1):
        try:
            return score()
        except RolloutFailure as failure:
            on_failure(failure)
    return score()


def refuse_mostly_broken(tries: Mapping[str, int], reasons: Mapping[str, int], *, nothing_left: bool = False) -> None:
    """End a run whose user model (or judge, or tool) breaks most of the dialogues, with a message.

    Args:
        tries: by party at fault, and ``WHOLE``: dialogues, without openings that did not break.
        reasons: what was dropped so far, by reason, for the message.
        nothing_left: not one group came about; then it is enough that most of what failed is the fault of one of them.

    Raises:
        MostlyBroken: more than ``MOST_BROKEN`` of at least ``FEWEST_TRIES`` tries were broken by one of these parties.
    """
    total = sum(tries.values())
    failed = total - tries.get(WHOLE, 0)
    for party in (Party.USER, Party.JUDGE, Party.TOOL):
        broken = tries.get(party, 0)
        mostly = total >= FEWEST_TRIES and broken > MOST_BROKEN * total
        if not mostly and not (nothing_left and broken > failed / 2):
            continue
        # Groups are dropped as a consequence, so they are no reason.
        dropped = ", ".join(
            f"{reason} {count}" for reason, count in sorted(reasons.items()) if reason not in ("group", "opening")
        )
        culprit = "user model" if party is Party.USER else party
        remedy = _ADVICE if party is Party.USER else f"Repair the {party}, and start the run again"
        raise MostlyBroken(
            f"the {culprit} broke {broken} of {total} tries to run a dialogue ({dropped}): what is left would be a "
            f"selection, if anything. {remedy}"
        )


_ADVICE = (
    "Look at what it says (jobs/chat.py RUN --with simulator); a better start or alignment (simulator.warm_start, "
    "calibration.sft), more context (simulator.sampling.max_turn_tokens, simulator.engine.max_model_len) or another "
    "simulator.model (where a proxy stands for humans: proxy.model, proxy.sft) may help"
)
