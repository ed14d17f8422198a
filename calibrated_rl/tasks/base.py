"""The protocol of a task. A task knows scenarios, rewards and endings; it knows nothing of engines."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from calibrated_rl.data.dialogue import Outcome, Scenario, Side, Split, Turn
from calibrated_rl.errors import UserError


@runtime_checkable
class Task(Protocol):
    """A kind of conversation. Built as ``TaskClass(TaskClass.Config(...))`` from its import path."""

    name: str
    max_policy_turns: int
    """After this many policy turns (the greeting not counted) the dialogue ends with ``max_turns``."""

    def scenarios(self, split: Split, count: int, population: str = "same") -> list[Scenario]:
        """The first ``count`` scenarios of ``split``: the same ones for every call and every arm.

        Raises:
            UserError: the task has fewer scenarios than that, or does not know ``population``.
        """
        ...

    def ending(self, scenario: Scenario, turns: Sequence[Turn]) -> str | None:
        """Why the dialogue is over after ``turns`` (the policy closed it, the other side left), or None."""
        ...

    def outcome(self, scenario: Scenario, turns: Sequence[Turn], ending: str) -> Outcome:
        """Reward and success of a finished dialogue. Must be defined for every ending, ``max_turns`` too."""
        ...

    def acts(self, scenario: Scenario, turns: Sequence[Turn], index: int) -> tuple[str, ...]:
        """Dialogue acts of ``turns[index]``, such as ``inform:day`` or ``leave``; what is said, not how."""
        ...

    def profile(self, scenario: Scenario, turns: Sequence[Turn]) -> Mapping[str, float]:
        """How the other side behaved in one dialogue, by name; ``goal_kept`` (share of its statements that
        agree with its goal) and ``first_turn_disclosure`` (share of the goal told in its first turn) are
        shown in the report where a task has them."""
        ...


@runtime_checkable
class ScriptedTask(Task, Protocol):
    """A task whose logs can be made on the spot, because it has a scripted policy to log."""

    def logged_turn(self, scenario: Scenario, turns: Sequence[Turn], seed: int) -> str:
        """What the (mediocre) logged policy says next; the same for the same arguments."""
        ...


@runtime_checkable
class UserCheckingTask(Task, Protocol):
    """A task that can tell when a simulated user breaks its part. Without it, whatever the user does is scored."""

    def against_goal(self, scenario: Scenario, turns: Sequence[Turn]) -> bool:
        """Whether the user's turn that ends ``turns`` contradicts the goal of ``scenario``, such as leaving before any
        request. The dialogue is then dropped and run again, never scored. Called for turns of simulators only. What
        human users do now and then, and a simulator more often, is no such thing: that is what calibration and the
            shift metrics are for."""
        ...


@runtime_checkable
class GoalCheckingTask(Task, Protocol):
    """A task that can tell when a user's words do not fit its goal. Nothing is dropped for it: it is counted
    (``health/detectors/goal_drift.py``), for simulators and for people."""

    def contradicts_goal(self, scenario: Scenario, turns: Sequence[Turn]) -> bool | None:
        """Whether the user's turn that ends ``turns`` states something that the goal of ``scenario`` does not have;
        None: it states nothing of it."""
        ...


@runtime_checkable
class LeavingTask(Task, Protocol):
    """A task that knows when its users leave without what they came for, which people do as well. It is counted
    (``health/detectors/early_stop.py``)."""

    def leaves_early(self, scenario: Scenario, turns: Sequence[Turn]) -> bool | None:
        """Whether the user leaves with the turn that ends ``turns``, its matter unsettled; None: it cannot be told."""
        ...


@runtime_checkable
class SecretiveTask(Task, Protocol):
    """A task in which a side can write something down that the other does not see, such as a sealed bid."""

    secret_after: str
    """How such a turn begins. The other side's model gets these words alone; the task, its logs and scripted humans get
    the whole turn, and must not let one side act on what it cannot know."""


@runtime_checkable
class GuidingTask(Task, Protocol):
    """A task in which people have at times no choice of how they go on, such as a form that they must fill in."""

    def must_begin(self, scenario: Scenario, turns: Sequence[Turn]) -> str:
        """How the user's turn after ``turns`` must begin; empty: as it likes. Proxies of people are held to it;
        simulators are not: what they do instead, ``UserCheckingTask`` may refuse."""
        ...


@runtime_checkable
class MeasuringTask(Task, Protocol):
    """A task with metrics of its own beside reward, success and turns, for the held-out evaluation."""

    def metrics(self, scenario: Scenario, turns: Sequence[Turn], outcome: Outcome) -> Mapping[str, float]:
        """Metrics of one evaluated dialogue by name. One that says nothing of a dialogue may be left out; its mean is
        then over the others."""
        ...


@runtime_checkable
class BoundedTask(Task, Protocol):
    """A task that knows how far its rewards can differ; without it, no bound is shown."""

    def reward_range(self) -> tuple[float, float]:
        """Least and largest terminal reward of a dialogue (``Outcome.reward``)."""
        ...


@runtime_checkable
class TurnBoundedTask(BoundedTask, Protocol):
    """A task that rewards turns (``Outcome.turn_rewards``) and knows how far those rewards can differ, too. Without it
    no bound is shown of a task that does."""

    def turn_reward_range(self) -> tuple[float, float]:
        """Least and largest reward after a single policy turn."""
        ...


@runtime_checkable
class ScriptedUser(Protocol):
    """A user that needs no engine: a program, or a proxy in this process."""

    def reply(self, scenario: Scenario, turns: Sequence[Turn]) -> str:
        """What the user of ``scenario`` says next. Randomness is keyed by scenario id and turn index
        alone, so that all arms meet the same user."""
        ...


@runtime_checkable
class ScriptedHuman(ScriptedUser, Protocol):
    """A population of users as a program. Built as ``HumanClass(HumanClass.Config(...), task=task)``."""

    def sample(self, scenario: Scenario, turns: Sequence[Turn], seed: int) -> str:
        """A fresh draw of the reply of *some* user of the population with this history: traits are drawn
        from their posterior given the history."""
        ...

    def log_prob(self, scenario: Scenario, turns: Sequence[Turn], reply: str) -> float:
        """Exact ``log P(reply | turns)`` over the population, traits and typing variants summed out;
        ``-inf`` for a reply that the population never gives."""
        ...


def secret_after(task: Task) -> str:
    """How turns begin that the other side does not see; empty where the task has none."""
    return str(getattr(task, "secret_after", ""))


def refuse_onlookers(task: Task) -> None:
    """Refuse to show a person what the policy says in a task in which a part of it is secret.

    Raises:
        UserError: names the task.
    """
    if secret_after(task):
        raise UserError(
            f"in the task {task.name} each side writes something down that the other must not see, and whoever talks "
            "to a policy sees all that it says: let a simulator or a scripted human talk to it"
        )


def last_turn(turns: Sequence[Turn], side: Side) -> Turn | None:
    """The latest turn of ``side``, or None."""
    return next((turn for turn in reversed(turns) if turn.side is side), None)


def count_policy_turns(turns: Sequence[Turn]) -> int:
    """Policy turns without the greeting."""
    return sum(turn.side is Side.POLICY for turn in turns) - 1


JSON = dict[str, Any]
