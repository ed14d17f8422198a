"""Judges, wrapped in checks: what they return is used or refused, and whatever fails is the judge's fault."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from calibrated_rl.components.component import build
from calibrated_rl.components.plain_data import NotPlain, kind_of, number, words
from calibrated_rl.components.user_code import UserCodeError, call, call_async, described
from calibrated_rl.data.dialogue import Dialogue, Outcome, Scenario, Turn
from calibrated_rl.endpoints.registry import Endpoints
from calibrated_rl.errors import Party, RolloutFailure
from calibrated_rl.judges.base import NoVerdict, RewardRange, Verdict
from calibrated_rl.tasks.base import BoundedTask, Task, TurnBoundedTask
from calibrated_rl.tasks.checked import checked_outcome, refuse_missing

T = TypeVar("T")
KIND = "judge"
TASK_REWARD, TASK_SUCCESS = "task_reward", "task_success"
"""Where the details of a judged outcome have what the task's own one said, its return and its success; None without."""


def build_judge(path: str, values: Mapping[str, Any] | None, location: str, endpoints: Endpoints) -> "CheckedJudge":
    """The judge at import path ``path``, with checks.

    Raises:
        UserError: it cannot be built, or is no judge.
    """
    return CheckedJudge(build(path, values, location, endpoints=endpoints))


class CheckedJudge:
    """A judge of which every answer is used or refused.

    Raises:
        UserError: when made: ``part`` is no judge.
    """

    def __init__(self, part: Any) -> None:
        refuse_missing(part, KIND, ("outcome",))
        self._part = part

    @property
    def scores(self) -> bool:
        """Whether it is a ``ScoringJudge``."""
        return callable(getattr(self._part, "verdict", None))

    @property
    def compares(self) -> bool:
        """Whether it is a ``ComparingJudge``."""
        return callable(getattr(self._part, "preference", None))

    async def outcome(self, task: Task, dialogue: Dialogue) -> Outcome:
        """The outcome of ``dialogue`` that counts. Its details have those of the task's own, too, and what that said.

        Raises:
            RolloutFailure: the judge failed; always its own fault.
            UserCodeError: it is wrong.
        """
        scored = dialogue.outcome
        ranges = self.ranges(task)
        arguments = (dialogue.scenario, dialogue.turns, dialogue.ending, scored)
        judged = await self._asked(
            "outcome", arguments, dialogue, lambda it: checked_outcome(it, dialogue.turns, *ranges)
        )
        of_task = {
            TASK_REWARD: None if scored is None else scored.episode_return,
            TASK_SUCCESS: None if scored is None else scored.success,
        }
        return replace(judged, details={**({} if scored is None else scored.details), **judged.details, **of_task})

    async def verdict(self, scenario: Scenario, turns: Sequence[Turn], ending: str) -> Verdict:
        """As ``ScoringJudge.verdict``; raises as ``outcome``."""
        return await self._asked("verdict", (scenario, turns, ending), scenario, _checked_verdict)

    async def preference(self, first: Dialogue, second: Dialogue) -> float:
        """As ``ComparingJudge.preference``; raises as ``outcome``."""
        return await self._asked("preference", (first, second), first, lambda it: _share(it, "it"))

    def ranges(self, task: Task) -> tuple[RewardRange | None, RewardRange | None]:
        """Ranges of the terminal reward and of that after a policy turn in outcomes that count; None: unknown, or turns
        are not rewarded."""
        if not callable(getattr(self._part, "ranges", None)):
            return None, None
        terminal = task.reward_range() if isinstance(task, BoundedTask) else None
        per_turn = task.turn_reward_range() if isinstance(task, TurnBoundedTask) else None
        owner = type(self._part)

        def description() -> str:
            return described(owner, KIND, "ranges")

        returned = call(owner, description, self._part.ranges, terminal, per_turn)
        try:
            if not isinstance(returned, tuple) or len(returned) != 2:
                raise NotPlain("it", f"is {kind_of(returned)}: it must be a pair of ranges")
            return _checked_range(returned[0], "[0]"), _checked_range(returned[1], "[1]")
        except NotPlain as problem:
            raise UserCodeError(f"{description()}: {problem}") from None

    async def _asked(
        self, name: str, arguments: tuple[Any, ...], about: Dialogue | Scenario, check: Callable[[Any], T]
    ) -> T:
        owner, method = type(self._part), getattr(self._part, name)

        def description() -> str:
            return f"{described(owner, KIND, name)}, '{about.id}'"

        try:
            if not inspect.iscoroutinefunction(method):
                raise NotPlain("it", "is no 'async def', and it is awaited: other dialogues go on meanwhile")
            returned = await call_async(owner, description, method, *arguments)
            return call(owner, description, check, returned)
        except NotPlain as problem:
            raise UserCodeError(f"{description()}: {problem}") from None
        except NoVerdict as failure:
            raise NoVerdict(_reason(failure)) from failure
        except RolloutFailure as failure:
            raise RolloutFailure(_reason(failure), Party.JUDGE) from failure


def scored_by_task(outcome: Outcome) -> bool:
    """Whether the task had an outcome of its own, judged or not: of a log without one it has not."""
    return outcome.details.get(TASK_REWARD, 0.0) is not None


def criteria_of(outcome: Outcome) -> dict[str, float]:
    """The judge's criteria by name, where it has such (``details["judge"]["criteria"]``)."""
    judgement = outcome.details.get(KIND)
    criteria = judgement.get("criteria") if isinstance(judgement, Mapping) else None
    if not isinstance(criteria, Mapping):
        return {}
    return {name: float(value) for name, value in criteria.items() if isinstance(value, int | float)}


def _reason(failure: RolloutFailure) -> str:
    return failure.reason if failure.reason.startswith(f"{KIND}: ") else f"{KIND}: {failure.reason}"


def _share(value: Any, place: str) -> float:
    share = number(value, place)
    if not 0.0 <= share <= 1.0:
        raise NotPlain(place, f"is {share:g}: it must be from 0 to 1")
    return share


def _checked_verdict(returned: Any) -> Verdict:
    if not isinstance(returned, Verdict):
        raise NotPlain("it", f"is {kind_of(returned)}: it must be a Verdict")
    if not isinstance(returned.criteria, Mapping):
        raise NotPlain("criteria", f"is {kind_of(returned.criteria)}: it must be a mapping")
    criteria = {words(name, "a criterion"): number(value, f"[{name!r}]") for name, value in returned.criteria.items()}
    votes = tuple(_share(vote, f"votes[{index}]") for index, vote in enumerate(returned.votes))
    return Verdict(score=_share(returned.score, "score"), criteria=criteria, votes=votes)


def _checked_range(value: Any, place: str) -> RewardRange | None:
    if value is None:
        return None
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise NotPlain(place, f"is {kind_of(value)}: it must be a pair of numbers, least and largest, or None")
    low, high = number(value[0], f"{place}[0]"), number(value[1], f"{place}[1]")
    if low > high:
        raise NotPlain(place, f"is ({low:g}, {high:g}): the least comes first")
    return low, high
