"""Inputs and results of the estimators of simulator-induced shift.

The shift ``delta_t = E TV(human(.|h,a), simulator(.|h,a))`` is conditional, so both replies must be drawn on the
*same* history, one that ends with a policy turn. ``MatchedReplies`` is that, and nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibrated_rl.data.dialogue import Turn
from calibrated_rl.errors import UserError
from calibrated_rl.statistics.intervals import Interval, ratio_interval

Far = Literal["above", "below", "either"]


@dataclass(frozen=True, kw_only=True)
class MatchedReplies:
    """Human and simulator replies on the same histories; all sequences have one entry for each history."""

    histories: Sequence[Sequence[Turn]]
    """What both were replying to, greeting first; the last turn is the policy's."""
    human: Sequence[str]
    simulator: Sequence[str]
    turn: Sequence[int]
    """Which user turn of its dialogue the reply is: 1 for the first."""
    dialogue: Sequence[str]
    """Id of the human dialogue that the history comes from."""
    human_acts: Sequence[Sequence[str]] = ()
    """Dialogue acts of the human replies, in the words of ``Task.acts``; empty where they are not needed."""
    simulator_acts: Sequence[Sequence[str]] = ()

    def __post_init__(self) -> None:
        required = (self.histories, self.human, self.simulator, self.turn, self.dialogue)
        acts = [a for a in (self.human_acts, self.simulator_acts) if len(a)]
        lengths = {len(replies) for replies in (*required, *acts)}
        assert len(lengths) == 1 and len(acts) in (0, 2), f"replies are not matched: {lengths}"

    def __len__(self) -> int:
        return len(self.human)


@dataclass(frozen=True, kw_only=True)
class TurnEstimate:
    """An estimate at one user turn."""

    turn: int
    value: float
    low: float
    high: float
    count: int
    """On how many histories it was measured."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A metric with its 95 % interval, overall and by user turn."""

    name: str
    value: float
    low: float
    high: float
    by_turn: tuple[TurnEstimate, ...] = ()
    null_low: float | None = None
    null_high: float | None = None
    """Where the metric lies when nothing but chance separates the two sides; None if that was not measured."""
    far: Far = "either"
    """On which side of the null band the two sides are further apart than chance takes them."""
    notes: tuple[str, ...] = field(default=())

    def as_dict(self) -> Mapping[str, Any]:
        """For JSON and the report; metrics that are not finite become None."""
        overall = Interval(self.value, self.low, self.high).as_dict()
        return {
            "name": self.name,
            **overall,
            "by_turn": [
                {"turn": t.turn, "count": t.count, **Interval(t.value, t.low, t.high).as_dict()} for t in self.by_turn
            ],
            "null_band": None if self.null_low is None else [self.null_low, self.null_high],
            "far": self.far,
            "notes": list(self.notes),
        }


def ratio_estimate(
    name: str,
    numerators: ArrayLike,
    denominators: ArrayLike,
    turns: ArrayLike,
    dialogues: Sequence[str] | NDArray[Any],
    *,
    seed: int = 0,
    notes: tuple[str, ...] = (),
) -> Estimate:
    """``sum(numerators) / sum(denominators)`` overall and by turn, dialogues being resampled. All are [N].

    Raises:
        UserError: there is nothing to measure.
    """
    numerator_N, denominator_N, turn_N, dialogue_N = (
        np.asarray(a) for a in (numerators, denominators, turns, dialogues)
    )
    if not len(numerator_N):
        raise UserError(f"{name}: there are no human turns to measure it on")
    by_turn = []
    for turn in np.unique(turn_N):
        at_turn = turn_N == turn
        if denominator_N[at_turn].sum() > 0:
            interval = ratio_interval(numerator_N[at_turn], denominator_N[at_turn], dialogue_N[at_turn], seed)
            count = int(at_turn.sum())
            by_turn.append(
                TurnEstimate(turn=int(turn), value=interval.mean, low=interval.low, high=interval.high, count=count)
            )
    overall = ratio_interval(numerator_N, denominator_N, dialogue_N, seed)
    return Estimate(
        name=name, value=overall.mean, low=overall.low, high=overall.high, by_turn=tuple(by_turn), notes=notes
    )
