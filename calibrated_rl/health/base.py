"""What a detector of simulator health gets and gives.

A detector looks at one user turn and says whether it shows one mistake: ``True``, ``False``, or ``None`` where the
question does not arise (a turn of two letters has no language). It sees the turn and those before it, nothing
later, so that a turn of a running dialogue is judged as one of a log. Rates are over the turns that it judged. The same
turn gets the same judgement in every process: no draws, no clock, no state but what it learned from the logs.

A detector is a component (``Class(Class.Config(...))``), known by the name of its module in ``health/detectors/``, or
by an import path; its ``name`` is what its metrics are called. It judges human turns, too: their rate is the
reference.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from calibrated_rl.data.dialogue import Dialogue, Scenario, Side, Turn
from calibrated_rl.tasks.base import Task, last_turn, secret_after


@dataclass(frozen=True, slots=True, kw_only=True)
class UserTurn:
    """A turn of the user, with all turns before it."""

    scenario: Scenario
    turns: Sequence[Turn]
    """From the greeting to the turn itself, which is the last one."""
    task: Task | None = None
    """The task, which may know more (``tasks/base.py``: ``GoalCheckingTask``, ``LeavingTask``)."""

    @property
    def turn(self) -> Turn:
        return self.turns[-1]

    @property
    def text(self) -> str:
        """Of the turn itself."""
        return self.turns[-1].text

    @property
    def history(self) -> Sequence[Turn]:
        """The turns before it."""
        return self.turns[:-1]

    @property
    def answered(self) -> Turn | None:
        """The latest turn of the policy before it."""
        return last_turn(self.history, Side.POLICY)

    def earlier(self, side: Side) -> list[Turn]:
        """What ``side`` said before, in order."""
        return [turn for turn in self.history if turn.side is side]


@runtime_checkable
class Detector(Protocol):
    """Finds one mistake of simulators."""

    name: str
    """Letters, digits and ``_``; metrics are called ``health_NAME``."""

    def detect(self, turn: UserTurn) -> bool | None:
        """Whether ``turn`` shows the mistake; None: it cannot be told of this turn, which then does not count."""
        ...


class NothingToSet:
    """Base of detectors without settings."""

    @dataclass(frozen=True)
    class Config:
        """Nothing to set."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or self.Config()


@runtime_checkable
class LearningDetector(Detector, Protocol):
    """A detector that needs to know how people of this task talk."""

    def learn(self, logs: Sequence[Dialogue]) -> None:
        """Called once, before any judgement, with the calibration logs: human users with the logged policy. The same
        logs must give the same detector."""
        ...


def is_secret(task: Task | None, text: str) -> bool:
    """Whether a turn is something that the other side does not see, such as a sealed bid."""
    opening = "" if task is None else secret_after(task)
    return bool(opening) and text.startswith(opening)
