"""The contract of a judge: what a finished dialogue was worth, where no program can tell.

Named as ``judge: package.module:Class`` and built as ``Class(Class.Config(...), endpoints=endpoints)``, where
``endpoints`` are those of the run (``endpoints/registry.py``). One judge is the same for rollouts, evaluation and logs.

A judge that fails raises ``RolloutFailure``: the dialogue is dropped with its group and counted, never scored
(DESIGN.md, contract 5). Where asking again would give the same, it raises ``NoVerdict``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from calibrated_rl.data.dialogue import Dialogue, Outcome, Scenario, Turn
from calibrated_rl.errors import Party, RolloutFailure

RewardRange = tuple[float, float]
"""Least and largest reward."""


class NoVerdict(RolloutFailure):
    """The judge has answered, and what it says is no verdict: to ask again would give the same."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, Party.JUDGE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a judge says of one dialogue."""

    score: float
    """From 0, the worst, to 1, the best."""
    criteria: Mapping[str, float] = field(default_factory=dict)
    """The mean of each criterion over the votes, on the criterion's own scale."""
    votes: tuple[float, ...] = ()
    """The score of each vote."""


@runtime_checkable
class Judge(Protocol):
    """Decides what counts as the outcome of a dialogue."""

    async def outcome(self, scenario: Scenario, turns: Sequence[Turn], ending: str, outcome: Outcome | None) -> Outcome:
        """What a finished dialogue was worth. May run many times at once, in several event loops.

        Args:
            outcome: the task's own; None for a log that has none.

        Raises:
            RolloutFailure: there is no verdict.
        """
        ...


@runtime_checkable
class ScoringJudge(Judge, Protocol):
    """A judge whose scores can be compared with people's ratings (``jobs/judge.py check``)."""

    async def verdict(self, scenario: Scenario, turns: Sequence[Turn], ending: str) -> Verdict:
        """The judge's own score, whatever of it becomes a reward.

        Raises:
            RolloutFailure: there is none.
        """
        ...


@runtime_checkable
class ComparingJudge(Protocol):
    """A judge that can be asked which of two dialogues is the better one, so that a bias for the first or the second
    place shows."""

    async def preference(self, first: Dialogue, second: Dialogue) -> float:
        """The share of its votes for ``first``, from 0 to 1; a tie counts half.

        Raises:
            RolloutFailure: it does not say.
        """
        ...


@runtime_checkable
class BoundedJudge(Judge, Protocol):
    """A judge that knows how far its rewards can differ; without it, no bound is shown."""

    def ranges(
        self, terminal: RewardRange | None, per_turn: RewardRange | None
    ) -> tuple[RewardRange | None, RewardRange | None]:
        """Ranges of the terminal reward and of that after a policy turn in the outcomes that it gives; None where that
        is unknown, or no turn is rewarded.

        Args:
            terminal: of the task's own outcomes; None: unknown.
            per_turn: the same of the rewards of turns.
        """
        ...
