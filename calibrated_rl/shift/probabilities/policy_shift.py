"""Policy-induced shift ``eps_t = E_h TV(policy(.|h), logged policy(.|h))``: conditional, and per policy turn.

Where both policies can score a turn, it follows without bias from turns ``a`` that one of them has said on the logged
histories, as in ``exact.py``:

    TV = E_{a ~ logged} [(1 - policy(a|h) / logged(a|h))_+] = E_{a ~ policy} [(1 - logged(a|h) / policy(a|h))_+]

The turns must be draws of the policy in the denominator: with logged turns and a clone's probabilities
it is no total variation. Already decided: the whole turn is scored, end-of-turn token included.

Where the logged policy's probabilities are unknown, draw the policy's turn on each logged history and give the pairs,
``mirrored``, to any two-sample test on matched replies.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from calibrated_rl.data.dialogue import Turn
from calibrated_rl.errors import UserError
from calibrated_rl.settings.fields import Seed
from calibrated_rl.shift.base import Estimate, MatchedReplies
from calibrated_rl.shift.interface import Estimator
from calibrated_rl.shift.probabilities.exact import exact_shift


@dataclass(frozen=True, kw_only=True)
class PolicyLogProbs:
    """One entry for each policy turn on a logged history; all have length N."""

    logged: Sequence[float]
    """Log-prob in nats of the turn under the policy that was logged."""
    policy: Sequence[float]
    """Under the policy in question."""
    turn: Sequence[int]
    """Which policy turn of its dialogue, from 1; the greeting is none."""
    dialogue: Sequence[str]
    drawn_from: Literal["logged", "policy"] = "logged"
    """Who said the turns."""


class PolicyShift(Estimator[PolicyLogProbs]):
    """``policy_tv`` (0 to 1) and ``policy_kl`` (nats; of the policy that said the turns from the other: ``KL(logged ||
    policy)`` or ``KL(policy || logged)``), overall and by turn.

    ``measure`` raises UserError without turns, and ValueError for a turn that the policy that said it cannot say, or a
    log-probability above 0 or not a number.
    """

    @dataclass(frozen=True)
    class Config:
        seed: Seed = 0
        """Of all random draws."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or self.Config()

    def measure(self, data: PolicyLogProbs) -> dict[str, Estimate]:
        if not len(data.logged):
            raise UserError("policy shift: there are no logged policy turns to measure it on")
        speaker_logprobs, other_logprobs = data.logged, data.policy
        if data.drawn_from == "policy":
            speaker_logprobs, other_logprobs = other_logprobs, speaker_logprobs
        shifts = exact_shift(
            speaker_logprobs, other_logprobs, turn=data.turn, dialogue=list(data.dialogue), seed=self.config.seed
        )
        names = {"tv": "policy_tv", "kl": "policy_kl"}
        notes = tuple(n.replace("replies", "turns").replace("simulator", "policy") for n in shifts["kl"].notes)
        return {
            name: replace(shifts[kind], name=name, notes=notes if kind == "kl" else shifts[kind].notes)
            for kind, name in names.items()
        }


def mirrored(matched: MatchedReplies) -> MatchedReplies:
    """The same with the seats swapped, so that tests on user replies score policy turns.

    ``matched`` contains the logged policy's turns as ``human`` and the current policy's as ``simulator``; its histories
    end with a user turn.
    """

    def swap(history: Sequence[Turn]) -> tuple[Turn, ...]:
        return tuple(replace(turn, side=turn.side.other) for turn in history)

    return replace(matched, histories=[swap(history) for history in matched.histories])
