"""What a reply of the other side can cost or bring: the factor of its total variation in a bound.

With one terminal reward of range ``R`` the user turn ``t`` has ``R``; with a reward of range ``r`` after each of at
most ``H`` policy turns it has ``r (H − t + 1)``, since it comes before the rewards ``t`` to ``H`` (``bounds.py``). A
return is their sum, and so is the bound. A dialogue that is over gets no more rewards, so each range has 0 in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibrated_rl.data.dialogue import Dialogue
from calibrated_rl.errors import UserError
from calibrated_rl.judges.checked import CheckedJudge
from calibrated_rl.tasks.base import BoundedTask, Task, TurnBoundedTask


@dataclass(frozen=True, slots=True, kw_only=True)
class Stakes:
    """Ranges of a task's rewards."""

    terminal: float
    """Largest minus least terminal reward."""
    per_turn: float = 0.0
    """The same of the reward after a policy turn, 0 among them; 0: turns are not rewarded."""
    horizon: int = 0
    """Policy turns of a dialogue, at most."""

    def __post_init__(self) -> None:
        assert not self.per_turn or self.horizon, "rewards of turns need a horizon"

    def of(self, turn: ArrayLike) -> NDArray[np.float64]:
        """[N] factors of the user turns ``turn`` [N], from 1."""
        rewards_left = np.maximum(self.horizon - np.asarray(turn, np.float64) + 1, 0.0)
        return self.terminal + self.per_turn * rewards_left

    @property
    def case(self) -> str:
        """Which rewards there are: ``terminal``, ``per turn`` or ``terminal and per turn``."""
        kinds = [name for name, size in (("terminal", self.terminal), ("per turn", self.per_turn)) if size]
        return " and ".join(kinds) or "terminal"


def stakes_of(task: Task, dialogues: Sequence[Dialogue], judge: CheckedJudge | None = None) -> Stakes | str | None:
    """The stakes of ``task``, or of ``judge`` where it decides outcomes; None where they do not tell their ranges. If
    ``dialogues`` contradict what they tell, a bound would be wrong: then what contradicts it, in words."""
    if judge is not None:
        terminal, turn_range = judge.ranges(task)
        if terminal is None:
            return None
    elif isinstance(task, BoundedTask):
        terminal = _range(task, "reward_range")
        turn_range = _range(task, "turn_reward_range") if isinstance(task, TurnBoundedTask) else None
    else:
        return None
    ranges = {"reward_range": terminal, "turn_reward_range": turn_range}
    for dialogue in dialogues:
        if (outcome := dialogue.outcome) is None:
            continue
        for name, rewards in (("reward_range", (outcome.reward,)), ("turn_reward_range", outcome.turn_rewards)):
            if rewards and (allowed := ranges[name]) is None:
                return f"{task.name} rewards turns and has no {name}()"
            for reward in rewards:
                assert allowed is not None
                if not allowed[0] - 1e-9 <= reward <= allowed[1] + 1e-9:
                    limits = f"{allowed[0]:g} to {allowed[1]:g}"
                    return f"{task.name} gave {reward:g} in {dialogue.id}, and its {name}() says {limits}"
    low, high = terminal
    lowest, highest = turn_range or (0.0, 0.0)
    per_turn = max(highest, 0.0) - min(lowest, 0.0)
    return Stakes(terminal=high - low, per_turn=per_turn, horizon=task.max_policy_turns)


def _range(task: Task, name: str) -> tuple[float, float]:
    low, high = getattr(task, name)()
    if not -np.inf < low <= high < np.inf:
        raise UserError(f"{name}() of the task {task.name} gives ({low}, {high}): two finite numbers, the least first")
    return float(low), float(high)
