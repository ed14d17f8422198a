"""A model behind an endpoint as the judge: a rubric of criteria, several votes, a strict form of the answer.

Each vote scores every criterion with a whole number of the scale. A criterion's mean over the votes, taken to 0..1 of
the scale and weighted, makes the score. Votes that cannot be read are asked for again with other seeds, up to
``extra_votes`` of them; with fewer than ``fewest_votes`` there is no verdict.

Votes are found again by their request and their number (``endpoints/answers.py``): the same dialogue has the same
verdict in every run that shares the answers, and is paid for once.
"""

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar
from weakref import WeakKeyDictionary

from calibrated_rl.data.dialogue import Dialogue, Outcome, Scenario, Turn
from calibrated_rl.endpoints.config import PREFIX, endpoint_name
from calibrated_rl.endpoints.requests import ChatRequest
from calibrated_rl.errors import Party, RolloutFailure, UserError
from calibrated_rl.judges.answers import (
    Unreadable,
    preference_schema,
    read_preference,
    read_scores,
    scores_schema,
)
from calibrated_rl.judges.base import NoVerdict, RewardRange, Verdict
from calibrated_rl.judges.prompt import comparing_messages, framed, scoring_messages
from calibrated_rl.settings.fields import Name, NotNegative, Pattern, Positive, Range, Share, check_settings

if TYPE_CHECKING:
    from calibrated_rl.endpoints.registry import Endpoints

V = TypeVar("V")


@dataclass(frozen=True, slots=True, kw_only=True)
class Criterion:
    """One question of the rubric."""

    name: Annotated[str, Pattern(r"\w[\w -]{0,63}", "a name of letters, digits, spaces, - and _")]
    """Under which its score is reported."""
    question: Name
    """What the judge is asked."""
    weight: Annotated[float, Range(above=0)] = 1.0
    """Of its score, relative to the others."""


class RubricJudge:
    """Scores dialogues by a rubric."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        """Of the rubric, the votes and the reward."""

        model: Name
        """The model that judges: `endpoint:NAME`, one of `endpoints`."""
        rubric: list[Criterion]
        """The criteria, at least one."""
        instructions: Name = "You judge how well an assistant has served a user in a dialogue."
        """What the judge is told first."""
        lowest: Annotated[int, Range(at_least=-1000, at_most=1000)] = 1
        """The worst score of a criterion."""
        highest: Annotated[int, Range(at_least=-1000, at_most=1000)] = 5
        """The best one."""
        votes: Positive = 3
        """Votes on a dialogue, each with a seed of its own."""
        extra_votes: NotNegative = 2
        """At most so many more, in place of those that cannot be read or are not answered."""
        fewest_votes: Positive = 2
        """With fewer votes there is no verdict."""
        temperature: Annotated[float, Range(at_least=0, at_most=2)] = 0.7
        """At which votes are drawn; 0 gives the same one again, and is for a single vote."""
        max_tokens: Positive = 512
        """Of one vote, reasoning included."""
        output: Literal["json_schema", "json_object", "text"] = "json_schema"
        """How the server is held to the form: by a schema, to any JSON, or not at all. It is read strictly in any
        case."""
        longest_reason: NotNegative = 0
        """Characters of a reason, where `output` is `json_schema` and the server knows `maxLength`; 0: no limit."""
        deadline: Annotated[float, Range(above=0)] = 300.0
        """Seconds for the verdict on one dialogue, from its first vote; the waits that the server asks for count."""
        at_once: Positive = 8
        """Dialogues that are judged at once; the others wait, and their deadline has not begun."""
        share: Share = 1.0
        """Of the judge's score in the reward; the rest is the task's own reward."""
        success_from: Share | None = 0.75
        """A dialogue with this score or a better one is a success; `null`: the task decides."""

        def __post_init__(self) -> None:
            check_settings(self, "judge_config")
            if endpoint_name(self.model) is None:
                raise UserError(f"model is '{self.model}': write {PREFIX}NAME, one of `endpoints`")
            if not self.rubric:
                raise UserError("rubric is empty: write at least one {name: ..., question: ...}")
            names = [criterion.name for criterion in self.rubric]
            if twice := [name for index, name in enumerate(names) if name in names[:index]]:
                raise UserError(f"rubric has '{twice[0]}' twice")
            if self.lowest >= self.highest:
                raise UserError(f"lowest is {self.lowest}, highest {self.highest}: the scale has no two scores")
            if self.highest - self.lowest > MOST_STEPS:
                raise UserError(f"the scale has more than {MOST_STEPS} steps: no model tells so many apart")
            if self.fewest_votes > self.votes:
                raise UserError(f"fewest_votes is {self.fewest_votes}, of {self.votes} votes")
            if not self.share:
                raise UserError("share is 0: the judge would be paid for nothing; leave `judge` empty")
            if self.temperature == 0 and self.votes + self.extra_votes > 1:
                raise UserError(
                    "temperature is 0: each vote would be the same; write votes: 1, extra_votes: 0, fewest_votes: 1, "
                    "or a temperature above 0"
                )

    def __init__(self, config: Config, *, endpoints: "Endpoints") -> None:
        self.config = config
        self._client = endpoints.client(str(endpoint_name(config.model)))
        self._criteria = [(criterion.name, criterion.question) for criterion in config.rubric]
        self._names = [criterion.name for criterion in config.rubric]
        total = sum(criterion.weight for criterion in config.rubric)
        self._weights = {criterion.name: criterion.weight / total for criterion in config.rubric}
        self._places: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()
        self._lock = threading.Lock()

    async def outcome(self, scenario: Scenario, turns: Sequence[Turn], ending: str, outcome: Outcome | None) -> Outcome:
        """``share`` of the score and the rest of the task's rewards; its return is the same mixture of score and
        return.

        Raises:
            RolloutFailure: too few votes in time; or the task's outcome is needed, and there is none.
        """
        share, success_from = self.config.share, self.config.success_from
        if outcome is None and (share < 1 or success_from is None):
            raise NoVerdict("no outcome of the task, of which reward or success are to be")
        verdict = await self.verdict(scenario, turns, ending)
        success = verdict.score >= success_from if success_from is not None else bool(outcome and outcome.success)
        judgement = {"score": verdict.score, "criteria": dict(verdict.criteria), "votes": list(verdict.votes)}
        of_task = outcome or Outcome(reward=0.0, success=False)
        return Outcome(
            reward=share * verdict.score + (1 - share) * of_task.reward,
            success=success,
            turn_rewards=tuple((1 - share) * reward for reward in of_task.turn_rewards) if share < 1 else (),
            details={"judge": judgement},
        )

    def ranges(
        self, terminal: RewardRange | None, per_turn: RewardRange | None
    ) -> tuple[RewardRange | None, RewardRange | None]:
        share = self.config.share
        if share == 1:
            return (0.0, 1.0), None
        scaled = [
            None if each is None else tuple((1 - share) * limit for limit in each) for each in (terminal, per_turn)
        ]
        low_high, of_turns = scaled
        whole = None if low_high is None else (low_high[0], share + low_high[1])
        return whole, None if of_turns is None else (of_turns[0], of_turns[1])

    async def verdict(self, scenario: Scenario, turns: Sequence[Turn], ending: str) -> Verdict:
        config = self.config
        messages = scoring_messages(
            config.instructions, self._criteria, config.lowest, config.highest, framed(scenario, turns, ending)
        )
        schema = scores_schema(self._names, config.lowest, config.highest, config.longest_reason)
        votes = await self._votes(
            messages, schema, lambda answer: read_scores(answer, self._names, config.lowest, config.highest)
        )
        criteria = {name: sum(vote[name] for vote in votes) / len(votes) for name in self._names}
        return Verdict(score=self._score(criteria), criteria=criteria, votes=tuple(self._score(vote) for vote in votes))

    async def preference(self, first: Dialogue, second: Dialogue) -> float:
        messages = comparing_messages(
            self.config.instructions, self._criteria, *(framed(d.scenario, d.turns, d.ending) for d in (first, second))
        )
        votes = await self._votes(messages, preference_schema(self.config.longest_reason), read_preference)
        return sum(votes) / len(votes)

    def _score(self, scores: Mapping[str, float]) -> float:
        """Of one vote, or of means of votes, from 0 to 1."""
        lowest, highest = self.config.lowest, self.config.highest
        score = sum(self._weights[name] * (scores[name] - lowest) / (highest - lowest) for name in self._names)
        return min(1.0, max(0.0, score))  # a sum of weights may be 1 + 1e-16

    async def _votes(
        self, messages: list[dict[str, str]], schema: Mapping[str, Any], read: Callable[[Any], V]
    ) -> list[V]:
        """The votes that can be read, in the order of their seeds.

        Raises:
            RolloutFailure: they are too few, or too late.
        """
        config = self.config

        async def vote(seed: int) -> V | Exception:
            request = ChatRequest(
                messages=messages, seed=seed, temperature=config.temperature, max_tokens=config.max_tokens,
                response_format=response_format(config.output, schema),
            )  # fmt: skip
            try:
                return read(await self._client.answer(request))
            except (Unreadable, RolloutFailure) as failure:
                return failure

        async with self._place():
            votes: list[V] = []
            failures: list[Exception] = []
            try:
                async with asyncio.timeout(config.deadline):
                    asked, wanted = 0, config.votes
                    while wanted:
                        results = await asyncio.gather(*(vote(seed) for seed in range(asked, asked + wanted)))
                        asked += wanted
                        failures += [result for result in results if isinstance(result, Exception)]
                        votes += [result for result in results if not isinstance(result, Exception)]
                        wanted = min(config.votes - len(votes), config.votes + config.extra_votes - asked)
            except TimeoutError:
                raise RolloutFailure("judge: past its deadline", Party.JUDGE) from None
        if len(votes) < config.fewest_votes:
            raise _too_few(failures)
        return votes

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        """One of the dialogues that are judged at once in this event loop."""
        loop = asyncio.get_running_loop()
        with self._lock:
            places = self._places.setdefault(loop, asyncio.Semaphore(self.config.at_once))
        async with places:
            yield


MOST_STEPS = 100
"""Of a scale."""


def response_format(output: str, schema: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a request says of the form of its answer."""
    if output == "json_schema":
        return {"type": "json_schema", "json_schema": {"name": "verdict", "schema": dict(schema), "strict": True}}
    return {"type": "json_object"} if output == "json_object" else None


def _too_few(failures: Sequence[Exception]) -> RolloutFailure:
    """The failure whose reason most of the lost votes have. What was not answered may be, when it is asked again."""
    ((reason, _),) = Counter(str(failure) for failure in failures).most_common(1)
    if any(isinstance(failure, RolloutFailure) for failure in failures):
        return RolloutFailure(f"judge: {reason}", Party.JUDGE)
    return NoVerdict(f"judge: {reason}")
