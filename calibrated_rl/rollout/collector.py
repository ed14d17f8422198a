"""Collects groups of dialogues: comparable within a group, complete or not delivered at all.

All dialogues of a group share scenario, first user turn and simulator version and differ in their sampling
seed alone (contract 4). A dialogue that an engine failed is dropped, counted and held again, never scored
(contract 5).
"""

import asyncio
import gc
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from calibrated_rl.dialogue import Dialogue, Scenario, Side, Turn
from calibrated_rl.rollout.conversation import (
    ModelSpeaker,
    SamplingConfig,
    ScriptedSpeaker,
    Speaker,
    converse,
    finished,
    greeting,
    stable_seed,
    views,
)
from calibrated_rl.rollout.pool import ReplicaPool, RolloutFailure
from calibrated_rl.tasks.base import ScriptedHuman, Task
from calibrated_rl.tokens import SideView, view_of

T = TypeVar("T")

MAX_TRIES = 3
"""A dialogue that fails so often points at something that a further try will not mend."""


def set_aside_what_is_loaded() -> None:
    """Keep Python's garbage collector from looking through what stays until the end anyway.

    While thousands of dialogues are held it looks through everything that lives, again and again, and most of that are
    libraries. To be called when all is loaded; again, if parts are started again: what has ended since is let go.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def run_to_end(coroutine: Coroutine[Any, Any, T]) -> T:
    """``asyncio.run`` for coroutines that return dialogues.

    In the main thread ``asyncio.run`` ends with putting the handler of Ctrl-C back, and ``signal`` asks for the old
    one's ``repr``, which holds that of the main task and so of its result. For an update's dialogues that takes a
    quarter of a second; so the main task has none.
    """
    results: list[T] = []

    async def main() -> None:
        results.append(await coroutine)

    asyncio.run(main())
    return results[0]


@dataclass
class RolloutStatistics:
    """What happened while collecting; nothing here is silent. Several event loops may count at once."""

    dropped: Counter[str] = field(default_factory=Counter)
    """Dialogues dropped and held again, by reason."""
    groups_dropped: dict[str, str] = field(default_factory=dict)
    """Groups that were not delivered, with the reason."""
    flaws: Counter[str] = field(default_factory=Counter)
    """Turns that tripped a guardrail, by ``side/flaw``."""
    endings: Counter[str] = field(default_factory=Counter)
    user_tokens: int = 0
    """Tokens that simulators sampled."""
    policy_tokens: int = 0
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False, compare=False)

    def drop(self, reason: str) -> None:
        """Count a dialogue that was dropped."""
        with self._lock:
            self.dropped[reason] += 1

    def drop_group(self, group_id: str, reason: str) -> None:
        """Count a group that will not be delivered."""
        with self._lock:
            self.groups_dropped[group_id] = reason

    def count_turns(self, turns: Sequence[Turn]) -> None:
        with self._lock:
            self.flaws.update(f"{turn.side.value}/{turn.flaw}" for turn in turns if turn.flaw)

    def count(self, group: Sequence[Dialogue]) -> None:
        """Count a complete group; the opening that all its dialogues share was said once."""
        with self._lock:
            for member, dialogue in enumerate(group):
                self.endings[dialogue.ending] += 1
                self.count_turns(dialogue.turns[2 if member else 0 :])
                if dialogue.user_tokens is not None:
                    self.user_tokens += int(dialogue.user_tokens.mask.sum())
                if dialogue.policy_tokens is not None:
                    self.policy_tokens += int(dialogue.policy_tokens.mask.sum())

    def found(self) -> dict[str, dict[str, Any]]:
        """What was dropped and which flaws there were, as plain data, under the names of the fields."""
        with self._lock:
            return {name: dict(getattr(self, name)) for name in ("dropped", "flaws", "groups_dropped")}


class Collector:
    """Holds dialogues between the policy's replicas and a user model."""

    def __init__(
        self,
        task: Task,
        policy: ReplicaPool,
        policy_sampling: SamplingConfig,
        simulator_sampling: SamplingConfig,
    ) -> None:
        self.task = task
        self.policy = policy
        self.policy_sampling = policy_sampling
        self.simulator_sampling = simulator_sampling
        self.statistics = RolloutStatistics()

    def collect(
        self,
        scenarios: Sequence[Scenario],
        user: ReplicaPool | ScriptedHuman,
        *,
        group_size: int,
        arm: str,
        update: int,
        seed: int,
        kind: str = "rollout",
        temperature: float | None = None,
        on_dialogue: Callable[[], None] | None = None,
    ) -> list[list[Dialogue]]:
        """Hold ``group_size`` dialogues on each scenario and return the complete groups, in order."""
        groups = run_to_end(
            self._collect(
                scenarios, user, group_size=group_size, arm=arm, update=update, seed=seed, kind=kind,
                temperature=temperature, on_dialogue=on_dialogue,
            )
        )  # fmt: skip
        complete = [group for group in groups if group is not None]
        if not complete:
            raise RolloutFailure(f"no group of {len(scenarios)} could be completed: {self.statistics.dropped}")
        return complete

    def collect_turns(
        self,
        histories: Sequence[tuple[Scenario, tuple[Turn, ...]]],
        *,
        group_size: int,
        arm: str,
        update: int,
        seed: int,
    ) -> list[list[Dialogue]]:
        """Let the policy say one turn after each logged history, ``group_size`` times; without outcome."""
        groups = run_to_end(
            self.next_turns(self.policy, Side.POLICY, histories, group_size, f"{arm}-{seed}-{update}")
        )
        for number, group in enumerate(groups):
            if not group:
                self.statistics.drop_group(f"{arm}-{seed}-{update}-{number}", "with a turn that was not said")
        return [
            [
                Dialogue(
                    id=f"{arm}-{seed}-{update}-{number}-{member}", task=self.task.name, scenario=scenario,
                    turns=(*turns, turn), ending="one_turn", outcome=None, kind="rollout", arm=arm,
                    group_id=f"{arm}-{seed}-{update}-{number}", group_size=group_size, update=update,
                    policy_tokens=view.sequence(),
                )
                for member, (turn, view) in enumerate(group)
            ]
            for number, ((scenario, turns), group) in enumerate(zip(histories, groups, strict=True))
            if group
        ]  # fmt: skip

    async def next_turns(
        self,
        pool: ReplicaPool,
        side: Side,
        histories: Sequence[tuple[Scenario, tuple[Turn, ...]]],
        count: int,
        seed_key: str,
    ) -> list[list[tuple[Turn, SideView]]]:
        """``count`` fresh next turns of ``side`` after each history; an empty list where an engine failed.

        The view's mask covers the fresh turn alone: the history's own turns were somebody else's.
        """
        sampling = self.policy_sampling if side is Side.POLICY else self.simulator_sampling

        async def one(number: int, member: int) -> tuple[Turn, SideView] | None:
            scenario, turns = histories[number]
            place = f"{number:06d}-{member:03d}"
            key = f"{seed_key}/{place}"
            view = view_of(pool.tokens, scenario, side, turns).without_mask()

            async def say() -> tuple[Turn, SideView] | None:
                speaker = ModelSpeaker(pool, scenario, side, sampling, stable_seed(seed_key, place), key)
                speaker.view = view.copy()
                turn = await speaker.say(turns)
                if turn is None:
                    self.statistics.drop("context")
                    return None
                return turn, speaker.view

            return await self._held(pool, key, say)

        keys = [(n, m) for n in range(len(histories)) for m in range(count)]
        results = await asyncio.gather(*(one(n, m) for n, m in keys))
        groups: list[list[tuple[Turn, SideView]]] = [[] for _ in histories]
        for (number, _), result in zip(keys, results, strict=True):
            if result is not None:
                groups[number].append(result)
                self.statistics.count_turns([result[0]])
        return [group if len(group) == count else [] for group in groups]

    async def _collect(
        self, scenarios: Sequence[Scenario], user: ReplicaPool | ScriptedHuman, **named: Any
    ) -> list[list[Dialogue] | None]:
        return await asyncio.gather(*(self.group(n, s, user, **named) for n, s in enumerate(scenarios)))

    async def group(
        self,
        number: int,
        scenario: Scenario,
        user: ReplicaPool | ScriptedHuman,
        *,
        group_size: int,
        arm: str,
        update: int,
        seed: int,
        kind: str = "rollout",
        temperature: float | None = None,
        on_dialogue: Callable[[], None] | None = None,
    ) -> list[Dialogue] | None:
        """Hold ``group_size`` dialogues on ``scenario``, the ``number``-th group of ``update``. None: it was dropped,
        for a reason that is counted."""
        sampling = self.policy_sampling
        if temperature is not None:
            sampling = SamplingConfig(temperature=temperature, max_turn_tokens=sampling.max_turn_tokens)
        group_id = f"{arm}-{seed}-{update}-{number}"
        version = user.version if isinstance(user, ReplicaPool) else None

        def speaker(key: str, member: int) -> Speaker:
            if isinstance(user, ReplicaPool):
                return ModelSpeaker(
                    user, scenario, Side.USER, self.simulator_sampling, stable_seed(group_id, member), key
                )
            return ScriptedSpeaker(user, scenario)

        # Waves go by the order of the keys; those of other arms and updates, which may run beside, must differ.
        place = f"{arm}/{update:06d}-{number:06d}"
        first = f"{place}-first"
        opener = speaker(first, -1)
        start = greeting(scenario)
        opener.hear(start)
        opening = await self._held(user, first, lambda: opener.say([start]))
        if opening is None:
            self.statistics.drop("opening")
            self.statistics.drop_group(group_id, "without an opening turn")
            return None

        async def member_dialogue(member: int) -> Dialogue | None:
            return await self._dialogue(
                scenario, user, speaker, opener, opening, sampling, f"{place}-{member:03d}",
                member, arm=arm, update=update, group_id=group_id, group_size=group_size, kind=kind,
                simulator_version=version, on_dialogue=on_dialogue,
            )  # fmt: skip

        members = await asyncio.gather(*(member_dialogue(m) for m in range(group_size)))
        group = [member for member in members if member is not None]
        if len(group) < group_size:
            self.statistics.drop("group")
            self.statistics.drop_group(group_id, "with a dialogue that could not be held")
            return None
        self.statistics.count(group)
        return group

    async def _held(
        self, user: ReplicaPool | ScriptedHuman, key: str, say: Callable[[], Awaitable[T | None]]
    ) -> T | None:
        """Run ``say`` as one running dialogue of the wave gate, trying again if a replica fails."""
        gate, pools = self.policy.gate, [pool for pool in (self.policy, user) if isinstance(pool, ReplicaPool)]
        for _ in range(MAX_TRIES):
            if gate is not None:
                gate.enter()
            try:
                return await say()
            except RolloutFailure as failure:
                self.statistics.drop(failure.reason)
                for pool in pools:
                    await pool.recover()
            finally:
                for pool in pools:
                    pool.leave(key)
                if gate is not None:
                    gate.leave()
        return None

    async def _dialogue(
        self,
        scenario: Scenario,
        user: ReplicaPool | ScriptedHuman,
        speaker: Callable[[str, int], Speaker],
        opener: Speaker,
        opening: Turn,
        sampling: SamplingConfig,
        key: str,
        member: int,
        *,
        on_dialogue: Callable[[], None] | None,
        group_id: str,
        **fields: object,
    ) -> Dialogue | None:
        seed = stable_seed(group_id, member)

        async def attempt() -> tuple[Speaker, Speaker, list[Turn], str]:
            policy = ModelSpeaker(self.policy, scenario, Side.POLICY, sampling, seed, key)
            other = speaker(key, member)
            if isinstance(other, ModelSpeaker) and isinstance(opener, ModelSpeaker):
                other.repeat(opener)
            turns, ending = await converse(self.task, scenario, policy, other, opening)
            return policy, other, turns, ending

        held = await self._held(user, key, attempt)
        if held is None:
            return None
        policy, other, turns, ending = held
        if on_dialogue is not None:
            on_dialogue()
        return finished(
            self.task, scenario, turns, ending,
            id=f"{group_id}-{member}", group_id=group_id, sampling_seed=seed,
            **views(policy, other), **fields,
        )  # fmt: skip
