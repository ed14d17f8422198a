"""A made-up task, and what its methods are called with."""

from collections.abc import Mapping, Sequence
from typing import Any

from calibrated_rl.data.dialogue import Outcome, Scenario, Side, Source, Split, Turn
from calibrated_rl.tasks.checked import checked_task

TURNS = (
    Turn(side=Side.POLICY, text="hello", source=Source.GREETING),
    Turn(side=Side.USER, text="hi", source=Source.LOG),
    Turn(side=Side.POLICY, text="which day?", source=Source.LOG),
)


def scenario(name: str = "s1", **changes: Any) -> Scenario:
    fields = {"split": Split.CALIBRATION, "policy_instructions": "p", "user_instructions": "u", "greeting": "hello"}
    return Scenario(**{"id": name, **fields, **changes})


class Shop:
    """A task whose methods return what they are told to."""

    name = "shop"
    max_policy_turns = 3

    def __init__(self, **returned: Any) -> None:
        self.returned = returned

    def _give(self, name: str, otherwise: Any) -> Any:
        value = self.returned.get(name, otherwise)
        if isinstance(value, BaseException):
            raise value
        return value() if callable(value) else value

    def scenarios(self, split: Split, count: int, population: str = "same") -> list[Scenario]:
        return self._give("scenarios", [scenario(f"{split}{i}", split=split) for i in range(count)])

    def ending(self, scenario: Scenario, turns: Sequence[Turn]) -> str | None:
        return self._give("ending", None)

    def outcome(self, scenario: Scenario, turns: Sequence[Turn], ending: str) -> Outcome:
        return self._give("outcome", Outcome(reward=0.5, success=True))

    def acts(self, scenario: Scenario, turns: Sequence[Turn], index: int) -> tuple[str, ...]:
        return self._give("acts", ("ask",))

    def profile(self, scenario: Scenario, turns: Sequence[Turn]) -> Mapping[str, float]:
        return self._give("profile", {"goal_kept": 1.0})


class BoundedShop(Shop):
    def reward_range(self) -> tuple[float, float]:
        return self._give("reward_range", (0.0, 1.0))


def asked(name: str, value: Any, task: type[Shop] = Shop) -> Any:
    """What the system gets where ``name`` returned ``value``."""
    checked = checked_task(task(**{name: value}))
    arguments = {
        "scenarios": (Split.CALIBRATION, 2), "outcome": (scenario(), TURNS, "left"), "acts": (scenario(), TURNS, 1)
    }  # fmt: skip
    return getattr(checked, name)(*arguments.get(name, (scenario(), TURNS)))
