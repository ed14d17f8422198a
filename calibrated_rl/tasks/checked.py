"""Tasks and scripted humans, wrapped in checks (``components/checked.py``): what each method must return.

Every outcome, ending, scenario, act and reply that a run, an evaluation, a reader or a job gets has passed here.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from calibrated_rl.components.checked import CheckedPart
from calibrated_rl.components.component import build
from calibrated_rl.components.plain_data import NotPlain, flag, kind_of, number, plain, real, words
from calibrated_rl.components.user_code import described
from calibrated_rl.data.dialogue import Outcome, Scenario, Split, Turn
from calibrated_rl.errors import UserError
from calibrated_rl.tasks.base import ScriptedHuman, Task, count_policy_turns

SLACK = 1e-6
"""Share of the range by which a reward may lie outside it: sums are rounded."""
METHODS = ("scenarios", "ending", "outcome", "acts", "profile")


def build_task(path: str, values: Mapping[str, Any] | None, location: str) -> Task:
    """The task at import path ``path``, with checks.

    Raises:
        UserError: it cannot be built, or is no task.
    """
    return checked_task(build(path, values, location))


def build_human(path: str, values: Mapping[str, Any] | None, location: str, task: Task) -> ScriptedHuman:
    """The scripted human at import path ``path``, with checks.

    Raises:
        UserError: it cannot be built, or is no scripted human.
    """
    return checked_human(build(path, values, location, task=unchecked(task)))


def checked_task(task: Task) -> Task:
    """``task`` with checks; a task that has them already stays as it is.

    Raises:
        UserError: it lacks a method, or its name, number of turns or range of rewards cannot be.
    """
    return task if isinstance(task, CheckedTask) else cast("Task", CheckedTask(task))


def checked_human(human: ScriptedHuman) -> ScriptedHuman:
    """The same for a scripted human."""
    return human if isinstance(human, CheckedHuman) else cast("ScriptedHuman", CheckedHuman(human))


def unchecked(part: Any) -> Any:
    """The part without its checks: parts of one author may rely on each other's details."""
    return part._part if isinstance(part, CheckedPart) else part


def refuse_missing(part: Any, kind: str, methods: Sequence[str]) -> None:
    """Refuse an object without ``methods``.

    Raises:
        UserError: names those that it lacks.
    """
    if missing_methods := [name for name in methods if not callable(getattr(part, name, None))]:
        raise UserError(f"{described(type(part), kind)} has no {', '.join(missing_methods)}")


class CheckedTask(CheckedPart):
    """A task of which every returned value is used or refused."""

    _KIND = "task"

    def __init__(self, part: Any) -> None:
        refuse_missing(part, self._KIND, METHODS)
        super().__init__(part)
        self.__dict__["_seen"] = {}
        try:
            for name in ("name", "max_policy_turns"):
                if not hasattr(self, name):
                    raise NotPlain(name, "is missing")
            words(self.name, "name")
            turns = self.max_policy_turns
            if not isinstance(turns, int | np.integer) or isinstance(turns, bool) or turns < 1:
                raise NotPlain("max_policy_turns", f"is {kind_of(turns)}: it must be an integer of at least 1")
        except NotPlain as problem:
            raise UserError(f"{described(type(part), self._KIND)}: {problem}") from None
        for name in ("reward_range", "turn_reward_range"):
            if name in self.__dict__:
                getattr(self, name)()

    def _checks(self) -> Mapping[str, Callable[..., Any]]:
        return {
            "scenarios": self._scenarios, "ending": _ending, "outcome": self._outcome, "acts": _acts,
            "profile": _profile, "logged_turn": _reply_text, "against_goal": _against_goal, "reward_range": _range,
            "turn_reward_range": _range, "metrics": _profile,
            "must_begin": _beginning, "contradicts_goal": _judgement, "leaves_early": _judgement,
        }  # fmt: skip

    def _about(self, name: str, arguments: tuple[Any, ...]) -> str:
        if name == "scenarios":
            return f", {', '.join(map(str, arguments))}" if arguments else ""
        return of_scenario(arguments)

    def _scenarios(self, returned: Any, split: Split, count: int, population: str = "same") -> list[Scenario]:
        if not isinstance(returned, list | tuple):
            raise NotPlain("it", f"is {kind_of(returned)}: it must be a list of scenarios")
        if len(returned) != count:
            raise NotPlain("it", f"has {len(returned)} scenarios, and {count} were requested")
        scenarios = [
            checked_scenario(each, f"scenario {index}", split, population) for index, each in enumerate(returned)
        ]
        names = [scenario.id for scenario in scenarios]
        refuse_duplicates(names, "scenario")
        names_by_split: dict[Split, list[str]] = self.__dict__["_seen"].setdefault(population, {})
        for index, (earlier, current) in enumerate(zip(names_by_split.get(split, ()), names, strict=False)):
            if earlier != current:
                raise NotPlain(f"scenario {index}", f"is '{current}', and was '{earlier}' in an earlier call")
        if len(names) > len(names_by_split.get(split, ())):
            refuse_two_splits(names_by_split, split, names, "scenario")
            names_by_split[split] = names
        return scenarios

    def _outcome(self, returned: Any, scenario: Scenario, turns: Sequence[Turn], ending: str) -> Outcome:
        ranges = [getattr(self, name)() if name in self.__dict__ else None for name in _RANGES]
        return checked_outcome(returned, turns, *ranges)


_RANGES = ("reward_range", "turn_reward_range")


def of_scenario(arguments: Sequence[Any]) -> str:
    """``, scenario 'a'`` for a method that takes a scenario first."""
    return f", scenario '{arguments[0].id}'" if arguments and isinstance(arguments[0], Scenario) else ""


def checked_scenario(scenario: Any, place: str, split: Split, population: str | None) -> Scenario:
    """A scenario of ``split`` that can be stored.

    Raises:
        NotPlain: something of it is of another type, or it belongs to another split or population.
    """
    if not isinstance(scenario, Scenario):
        raise NotPlain(place, f"is {kind_of(scenario)}: it must be a Scenario")
    name = words(scenario.id, f"{place}: id")
    place = f"{place.rpartition('scenario')[0]}scenario '{name}'"
    if scenario.split != split:
        raise NotPlain(f"{place}: split", f"is {kind_of(scenario.split)}, and '{split}' was requested")
    if population is not None and scenario.population != population:
        raise NotPlain(f"{place}: population", f"is {kind_of(scenario.population)}, and '{population}' was requested")
    for field in ("policy_instructions", "user_instructions", "greeting"):
        words(getattr(scenario, field), f"{place}: {field}", blank=True)
    data = {}
    for field in ("goal", "persona"):
        if not isinstance(value := getattr(scenario, field), Mapping):
            raise NotPlain(f"{place}: {field}", f"is {kind_of(value)}: it must be a mapping")
        data[field] = plain(value, f"{place}: {field}")
    return dataclasses.replace(scenario, id=name, split=split, **data)


def refuse_duplicates(names: Sequence[str], kind: str) -> None:
    """Raises ``NotPlain`` where an id occurs twice."""
    if len(set(names)) < len(names):
        duplicate = next(name for index, name in enumerate(names) if name in names[:index])
        raise NotPlain(f"{kind} '{duplicate}'", f"is number {names.index(duplicate)} and another: ids must be unique")


def refuse_two_splits(
    names_by_split: Mapping[Split, Sequence[str]], split: Split, names: Sequence[str], kind: str
) -> None:
    """Raises ``NotPlain`` where one of ``names``, which are of ``split``, is in another split, too."""
    for other_split, other_names in names_by_split.items():
        if other_split is not split and (shared_names := set(other_names).intersection(names)):
            raise NotPlain(f"{kind} '{min(shared_names)}'", f"is in two splits, {other_split} and {split}")


def checked_outcome(
    returned: Any, turns: Sequence[Turn], bounds: tuple[float, float] | None = None,
    turn_bounds: tuple[float, float] | None = None,
) -> Outcome:  # fmt: skip
    """An outcome of a dialogue of ``turns`` that can be learned from and stored; NumPy's types become plain ones.

    Args:
        bounds: within which its terminal reward must lie, with ``SLACK``.
        turn_bounds: the same for each of its turns' rewards.

    Raises:
        NotPlain: names the field.
    """
    if not isinstance(returned, Outcome):
        raise NotPlain("it", f"is {kind_of(returned)}: it must be an Outcome")
    reward = number(returned.reward, "reward")
    _refuse_outside(reward, "reward", bounds, "reward_range()")
    success = flag(returned.success, "success")
    rewards: Any = returned.turn_rewards
    if not isinstance(rewards, tuple | list) and not (hasattr(rewards, "tolist") and getattr(rewards, "ndim", 0) == 1):
        raise NotPlain("turn_rewards", f"is {kind_of(rewards)}: it must be a tuple of numbers")
    turn_rewards = tuple(number(value, f"turn_rewards[{index}]") for index, value in enumerate(rewards))
    if turn_rewards and len(turn_rewards) != (policy_turns := count_policy_turns(turns)):
        raise NotPlain("turn_rewards", f"has {len(turn_rewards)} numbers, and the policy spoke {policy_turns} times")
    for index, value in enumerate(turn_rewards):
        _refuse_outside(value, f"turn_rewards[{index}]", turn_bounds, "turn_reward_range()")
    if not isinstance(returned.details, Mapping):
        raise NotPlain("details", f"is {kind_of(returned.details)}: it must be a mapping")
    return Outcome(
        reward=reward, success=success, turn_rewards=turn_rewards, details=plain(returned.details, "details")
    )


def _refuse_outside(value: float, place: str, bounds: tuple[float, float] | None, name: str) -> None:
    if bounds is None:
        return
    low, high = bounds
    slack = SLACK * max(1.0, high - low)
    if not low - slack <= value <= high + slack:
        raise NotPlain(place, f"is {value:g}: {name} says {low:g} to {high:g}")


def _ending(returned: Any, *_: Any) -> str | None:
    return None if returned is None else words(returned, "it")


def _listed(returned: Any) -> Any:
    """An array of one dimension as a list, everything else as it is."""
    return returned.tolist() if isinstance(returned, np.ndarray) and returned.ndim == 1 else returned


def _acts(returned: Any, *_: Any) -> tuple[str, ...]:
    returned = _listed(returned)
    if not isinstance(returned, tuple | list):
        raise NotPlain("it", f"is {kind_of(returned)}: it must be a tuple of strings")
    return tuple(words(each, f"[{index}]") for index, each in enumerate(returned))


def _profile(returned: Any, *_: Any) -> dict[str, float]:
    if not isinstance(returned, Mapping):
        raise NotPlain("it", f"is {kind_of(returned)}: it must be a mapping from names to numbers")
    return {words(name, "a name"): number(value, f"[{name!r}]") for name, value in returned.items()}


def _reply_text(returned: Any, *_: Any) -> str:
    return words(returned, "it")


def _beginning(returned: Any, *_: Any) -> str:
    return words(returned, "it", blank=True)


def _against_goal(returned: Any, *_: Any) -> bool:
    return flag(returned, "it")


def _judgement(returned: Any, *_: Any) -> bool | None:
    return None if returned is None else flag(returned, "it")


def _range(returned: Any) -> tuple[float, float]:
    returned = _listed(returned)
    if not isinstance(returned, tuple | list) or len(returned) != 2:
        raise NotPlain("it", f"is {kind_of(returned)}: it must be a pair of numbers, least and largest")
    low, high = number(returned[0], "[0]"), number(returned[1], "[1]")
    if low > high:
        raise NotPlain("it", f"is ({low:g}, {high:g}): the least comes first")
    return low, high


class CheckedHuman(CheckedPart):
    """A scripted human of which every returned value is used or refused."""

    _KIND = "human"

    def __init__(self, part: Any) -> None:
        refuse_missing(part, self._KIND, ("reply", "sample", "log_prob"))
        super().__init__(part)

    def _checks(self) -> Mapping[str, Callable[..., Any]]:
        return {"reply": _reply_text, "sample": _reply_text, "log_prob": _log_prob}

    def _about(self, name: str, arguments: tuple[Any, ...]) -> str:
        return of_scenario(arguments)


def _log_prob(returned: Any, *_: Any) -> float:
    value = real(returned, "it")
    if not value <= SLACK:  # NaN, too
        raise NotPlain("it", f"is {value:g}: the log of a probability is at most 0")
    return value
