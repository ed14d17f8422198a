"""Pools of replicas without replicas: what is said is up to the test, and hangs on nothing but the request."""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from calibrated_rl.chat.tokens import ChatTokens
from calibrated_rl.data.dialogue import Outcome, Scenario, Side, Split, Turn
from calibrated_rl.inference.lockstep import LockstepScheduler
from calibrated_rl.inference.pool import ReplicaPool
from calibrated_rl.inference.turns import Generated, GenerateRequest
from calibrated_rl.models.tiny import tiny_tokenizer
from calibrated_rl.rollout.collector import Collector
from calibrated_rl.rollout.conversation import SamplingConfig
from calibrated_rl.tasks.base import Task, count_policy_turns

Say = Callable[[GenerateRequest], str | list[int]]
"""What is said to a request: a text, which then ends as it should, or ids as they are."""
WORDS = ["hello i want a table for two on friday", "which day ?", "assistant: user: forget it bye"] * 3
DAYS = ("monday", "friday", "seven", "eight", "two", "four")


@cache
def tokens() -> ChatTokens:
    return ChatTokens(tiny_tokenizer(WORDS, vocab_size=400, context=512), "tiny")


def control_token() -> int:
    """One that is no end of turn."""
    return min(tokens().control_ids - {tokens().end_of_turn})


def by_seed(request: GenerateRequest) -> str:
    """Something harmless, drawn with the request's seed."""
    random = np.random.default_rng(request.seed)
    return " ".join(random.choice(DAYS, size=4))


class MadeUpPool(ReplicaPool):
    """Answers with ``say``, at once or in lockstep."""

    def __init__(
        self, role: str, say: Say = by_seed, *, lockstep: LockstepScheduler | None = None, context: int = 512
    ) -> None:
        self.role, self.say, self.lockstep = role, say, lockstep
        self.tokens, self.max_model_len, self.version = tokens(), context, 0
        self.asked: list[GenerateRequest] = []

    def route(self, key: str) -> int:
        return 0

    def leave(self, key: str) -> None:
        pass

    async def recover(self) -> None:
        pass

    async def generate(self, key: str, request: GenerateRequest) -> Generated:
        return self.answer(request) if self.lockstep is None else await self.lockstep.generate(self, key, request)

    async def generate_lockstep(self, key: str, requests: list[GenerateRequest]) -> list[Generated]:
        return [self.answer(request) for request in requests]

    def answer(self, request: GenerateRequest) -> Generated:
        self.asked.append(request)
        said = self.say(request)
        ids = [*tokens().encode_text(said), tokens().end_of_turn] if isinstance(said, str) else said
        ids = ids[: request.max_tokens]
        return Generated(ids, np.full(len(ids), -0.5, np.float32), np.full(len(ids), self.version, np.int32))


class Chat:
    """A task that ends after ``max_policy_turns`` or where the user says bye, and pays for every turn."""

    name = "chat"
    max_policy_turns = 3

    def scenarios(self, split: Split, count: int, population: str = "same") -> list[Scenario]:
        return [
            Scenario(id=str(n), split=split, policy_instructions="book", user_instructions="table", greeting="hello")
            for n in range(count)
        ]

    def ending(self, scenario: Scenario, turns: Sequence[Turn]) -> str | None:
        return "left" if turns[-1].side is Side.USER and "bye" in turns[-1].text.split() else None

    def outcome(self, scenario: Scenario, turns: Sequence[Turn], ending: str) -> Outcome:
        reward = -1.0 if ending != "max_turns" else float(count_policy_turns(turns))
        return Outcome(reward=reward, success=ending == "max_turns")

    def acts(self, scenario: Scenario, turns: Sequence[Turn], index: int) -> tuple[str, ...]:
        return ("say",)

    def profile(self, scenario: Scenario, turns: Sequence[Turn]) -> dict[str, float]:
        return {}


def collector_of(policy: MadeUpPool, task: Task | None = None, max_turn_tokens: int = 32) -> Collector:
    sampling = SamplingConfig(max_turn_tokens=max_turn_tokens)
    return Collector(task or Chat(), policy, sampling, sampling)
