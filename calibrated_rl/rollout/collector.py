"""Runs groups of dialogues: comparable within a group, complete or not delivered at all.

All dialogues of a group share scenario, first user turn and simulator version and differ in their sampling
seed alone (contract 4). Dialogues that another party than the policy broke (``failures.py``) are dropped, counted by
party and retried, never scored (contract 5): with the same draws where an engine failed, with those of another seed
where the draws are at fault. That seed depends on group, member and attempt, so that a run without failures draws as if
retries did not exist.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NoReturn, TypeVar

from calibrated_rl.chat.tokens import SideView, view_of
from calibrated_rl.data.dialogue import Dialogue, Scenario, Side, Turn
from calibrated_rl.endpoints.user import EndpointUser
from calibrated_rl.errors import Party, RolloutFailure
from calibrated_rl.inference.pool import ReplicaPool
from calibrated_rl.judges.checked import CheckedJudge
from calibrated_rl.rollout.context import check_context_for_first_turn
from calibrated_rl.rollout.conversation import (
    ModelSpeaker,
    SamplingConfig,
    Speaker,
    converse,
    finished,
    greeting,
    stable_seed,
    views,
)
from calibrated_rl.rollout.failures import (
    CONTEXT,
    MAX_TRIES,
    OVERLONG,
    broken_by,
    is_scored,
    party_of,
    refuse_mostly_broken,
    score_with_retries,
)
from calibrated_rl.rollout.judging import judged_dialogue
from calibrated_rl.rollout.statistics import BrokenTry, RolloutStatistics
from calibrated_rl.rollout.users import EndpointSpeaker, User, UserModel, draw_seed, user_speaker
from calibrated_rl.runtime.event_loop import run_to_end
from calibrated_rl.tasks.base import Task

T = TypeVar("T")
S = TypeVar("S", bound=Speaker)

Members = list[Dialogue]
"""The dialogues of one complete group."""
History = tuple[Scenario, tuple[Turn, ...]]
"""A scenario, and the turns so far."""


class Collector:
    """Runs dialogues between the policy's replicas and a user model."""

    def __init__(
        self, task: Task, policy: ReplicaPool, policy_sampling: SamplingConfig, simulator_sampling: SamplingConfig, *,
        judge: CheckedJudge | None = None, keep_broken: bool = False,
    ) -> None:  # fmt: skip
        """
        Args:
            judge: decides outcomes in place of the task.
            keep_broken: dialogues that a simulator breaks stay, without an outcome, for benchmarks: turns are turns.
        """
        self.task = task
        self.judge = judge
        self.keep_broken = keep_broken
        self.policy = policy
        self.policy_sampling = policy_sampling
        self.simulator_sampling = simulator_sampling
        self.statistics = RolloutStatistics()

    def collect(self, scenarios: Sequence[Scenario], user: User, **settings: Any) -> list[Members]:
        """The complete groups of those that ``groups`` runs, in order.

        Raises:
            RolloutFailure: there is none.
            UserError: the user model, a judge or a tool breaks most of the tries, or there is none because of it.
        """
        kind = settings.get("kind", "rollout")
        tries_before = self.statistics.tries_of(kind)
        complete = [group for group in self.groups(scenarios, user, **settings) if group is not None]
        if not complete:
            self.refuse_nothing(kind, len(scenarios))
        refuse_mostly_broken(self.statistics.tries_of(kind) - tries_before, self.statistics.dropped)
        return complete

    def refuse_nothing(self, kind: str, groups: int) -> NoReturn:
        """Raise, since not one of ``groups`` groups could be completed.

        Raises:
            UserError: mostly through the user model, a judge or a tool.
            RolloutFailure: else.
        """
        refuse_mostly_broken(self.statistics.tries_of(kind), self.statistics.dropped, nothing_left=True)
        raise RolloutFailure(f"no group of {groups} could be completed: {dict(self.statistics.dropped)}")

    def groups(
        self, scenarios: Sequence[Scenario], user: User, *, group_size: int, arm: str, update: int, seed: int,
        kind: str = "rollout", sampling: SamplingConfig | None = None, on_dialogue: Callable[[], None] | None = None,
        judged: bool = True, first: int = 0,
    ) -> list[Members | None]:  # fmt: skip
        """Run ``group_size`` dialogues on each scenario, in order; None for a group that was dropped.

        Args:
            sampling: how the policy speaks; None: as in training.
            judged: False where nobody looks at outcomes: they are the task's own then, and no judge is paid.
            first: number of the first group within its arm, seed and update.
        """

        async def run() -> list[Members | None]:
            return await asyncio.gather(
                *(
                    self.group(
                        number, scenario, user, group_size=group_size, arm=arm, update=update, seed=seed, kind=kind,
                        sampling=sampling, on_dialogue=on_dialogue, judged=judged,
                    )
                    for number, scenario in enumerate(scenarios, start=first)
                )
            )  # fmt: skip

        return run_to_end(run())

    def turn_groups(
        self, histories: Sequence[History], *, group_size: int, arm: str, update: int, seed: int, first: int = 0
    ) -> list[Members | None]:
        """Sample one turn of the policy after each logged history, ``group_size`` times; without outcome. None for a
        group that was dropped.

        Args:
            first: number of the first group within its arm, seed and update.
        """
        turns = run_to_end(
            self.next_turns(
                self.policy, Side.POLICY, histories, group_size, f"{arm}-{seed}-{update}", kind="rollout", first=first
            )
        )
        groups: list[Members | None] = []
        for number, ((scenario, history), group) in enumerate(zip(histories, turns, strict=True), start=first):
            group_id = f"{arm}-{seed}-{update}-{number}"
            if not group:
                self.statistics.drop_group(group_id, "with a turn that was not said")
                groups.append(None)
                continue
            groups.append(
                [
                    Dialogue(
                        id=f"{group_id}-{member}", task=self.task.name, scenario=scenario, turns=(*history, turn),
                        ending="one_turn", outcome=None, kind="rollout", arm=arm, group_id=group_id,
                        group_size=group_size, update=update, policy_tokens=view.sequence(),
                    )
                    for member, (turn, view) in enumerate(group)
                ]
            )  # fmt: skip
        return groups

    async def next_turns(
        self,
        pool: ReplicaPool,
        side: Side,
        histories: Sequence[History],
        count: int,
        seed_key: str,
        *,
        kind: str = "evaluation",
        first: int = 0,
    ) -> list[list[tuple[Turn, SideView]]]:
        """``count`` fresh next turns of ``side`` after each history; an empty list where that failed: an engine
        failed, the history leaves no context for a turn, or a simulator broke each of its tries. A turn that it broke
        is drawn again, as in whole dialogues, so that the share of broken ones is that of training.

        The view's mask covers the fresh turn alone: the history's own turns are another speaker's.
        """
        sampling = self.policy_sampling if side is Side.POLICY else self.simulator_sampling

        def speaker(history: History, seed: int, key: str) -> ModelSpeaker:
            scenario, turns = history
            model = ModelSpeaker(pool, scenario, side, sampling, seed, key)
            model.view = view_of(pool.tokens, scenario, side, turns).without_mask()
            return model

        draws = await self._draw(pool, side, speaker, histories, count, seed_key, kind=kind, first=first)
        return [[(turn, model.view) for turn, model in of_history] for of_history in draws]

    async def next_replies(
        self, user: UserModel, histories: Sequence[History], count: int, seed_key: str
    ) -> list[list[Turn]]:
        """As ``next_turns``, of a user model, wherever it runs: only what it says."""
        if isinstance(user, ReplicaPool):
            with_views = await self.next_turns(user, Side.USER, histories, count, seed_key)
            return [[turn for turn, _ in of_history] for of_history in with_views]

        def speaker(history: History, seed: int, key: str, endpoint: EndpointUser = user) -> EndpointSpeaker:
            return EndpointSpeaker(endpoint, history[0], seed)

        draws = await self._draw(user, Side.USER, speaker, histories, count, seed_key, kind="evaluation")
        return [[turn for turn, _ in of_history] for of_history in draws]

    async def _draw(
        self, user: UserModel, side: Side, speaker_of: Callable[[History, int, str], S], histories: Sequence[History],
        count: int, seed_key: str, *, kind: str, first: int = 0,
    ) -> list[list[tuple[Turn, S]]]:  # fmt: skip
        """Turns with who said them, of speakers that have heard a history and get a seed and a key."""

        async def draw_turn(number: int, member: int) -> tuple[Turn, S] | None:
            scenario, turns = histories[number]
            lockstep_key = f"{number + first:06d}-{member:03d}"
            key = f"{seed_key}/{lockstep_key}"

            async def say(attempt: int) -> tuple[Turn, S] | None:
                seed = stable_seed(seed_key, lockstep_key, *[attempt] * (attempt > 0))
                speaker = speaker_of(histories[number], seed, key)
                turn = await speaker.say(turns)
                if turn is None:  # no draw would fit
                    self.statistics.drop(CONTEXT[side])
                    return None
                if broken := broken_by(self.task, scenario, (*turns, turn)):
                    raise RolloutFailure(broken, Party.USER)
                return turn, speaker

            try:
                return await self._try(user, key, kind, say)
            except RolloutFailure:
                return None

        keys = [(n, m) for n in range(len(histories)) for m in range(count)]
        results = await asyncio.gather(*(draw_turn(n, m) for n, m in keys))
        groups: list[list[tuple[Turn, S]]] = [[] for _ in histories]
        for (number, _), result in zip(keys, results, strict=True):
            if result is not None:
                groups[number].append(result)
                self.statistics.count_turns([result[0]])
        return [group if len(group) == count else [] for group in groups]

    async def group(
        self, number: int, scenario: Scenario, user: User, *, group_size: int, arm: str, update: int, seed: int,
        kind: str = "rollout", sampling: SamplingConfig | None = None, on_dialogue: Callable[[], None] | None = None,
        judged: bool = True,
    ) -> Members | None:  # fmt: skip
        """Run ``group_size`` dialogues on ``scenario``, the ``number``-th group of ``update``. None: it was dropped,
        for a reason that is counted. ``judged``: as in ``groups``."""
        sampling = sampling or self.policy_sampling
        group_id = f"{arm}-{seed}-{update}-{number}"
        version = user.version if isinstance(user, UserModel) else None

        def speaker(key: str, member: int, attempt: int) -> Speaker:
            return user_speaker(user, scenario, self.simulator_sampling, group_id, member, attempt, key)

        # Lockstep orders turns by key; keys of other arms and updates, which may run at the same time, must differ.
        lockstep_key = f"{arm}/{update:06d}-{number:06d}"
        start, lockstep = greeting(scenario), self.policy.lockstep

        async def run_opening(attempt: int) -> tuple[Speaker, Turn]:
            opener = speaker(f"{lockstep_key}-first", -1, attempt)
            opener.hear(start)
            turn = await opener.say([start])
            if turn is None:
                raise RolloutFailure(CONTEXT[Side.USER], Party.USER)
            if not self.keep_broken and (broken := broken_by(self.task, scenario, (start, turn))):
                self.statistics.remember_broken(kind, BrokenTry(group_id, scenario, (start, turn), 1))
                raise RolloutFailure(broken, Party.USER)
            if lockstep is not None:
                lockstep.enter()  # in the place of the members, until they have entered: nobody goes on without them
            return opener, turn

        try:
            opener, opening = await self._try(user, f"{lockstep_key}-first", kind, run_opening, whole=False)
        except RolloutFailure as failure:
            self.statistics.drop("opening")
            self.statistics.drop_group(group_id, f"without an opening turn ({failure.reason})")
            return None

        async def member_dialogue(member: int) -> Dialogue | RolloutFailure:
            try:
                return await self._dialogue(
                    scenario, user, speaker, opener, opening, sampling, f"{lockstep_key}-{member:03d}",
                    member, arm=arm, update=update, group_id=group_id, group_size=group_size, kind=kind,
                    simulator_version=version, on_dialogue=on_dialogue, judge=self.judge if judged else None,
                )  # fmt: skip
            except RolloutFailure as failure:
                return failure

        members, group = asyncio.gather(*(member_dialogue(m) for m in range(group_size))), Members()
        if lockstep is not None:
            asyncio.get_running_loop().call_soon(lockstep.leave)
        for member in await members:
            if isinstance(member, RolloutFailure):
                self.statistics.drop("group")
                self.statistics.drop_group(group_id, f"with a dialogue that could not be run ({member.reason})")
                return None
            group.append(member)
        self.statistics.count(group)
        return group

    async def _try(
        self, user: User, key: str, kind: str, run: Callable[[int], Awaitable[T]], *,
        whole: bool = True,
    ) -> T:  # fmt: skip
        """``run(attempt)`` as one running dialogue of the lockstep scheduler. Where a replica fails it is retried with
        the same draws; where the draws are at fault, as the next attempt. ``whole``: a success counts as a whole
        dialogue; an opening does not, though one that breaks is a broken dialogue.

        Raises:
            RolloutFailure: the last one, after ``MAX_TRIES`` of one of the two kinds.
        """
        lockstep, pools = self.policy.lockstep, [pool for pool in (self.policy, user) if isinstance(pool, ReplicaPool)]
        attempt = lost = 0
        while True:
            if lockstep is not None:
                lockstep.enter()
            try:
                result = await run(attempt)
                if whole:
                    self.statistics.succeed(kind)
                return result
            except RolloutFailure as failure:
                self.statistics.fail(kind, failure)
                if failure.party is Party.ENGINE:
                    lost += 1
                    for pool in pools:
                        await pool.recover()
                else:
                    attempt += 1
                if MAX_TRIES in (attempt, lost):
                    raise
            finally:
                for pool in pools:
                    pool.leave(key)
                if lockstep is not None:
                    lockstep.leave()

    async def _dialogue(
        self,
        scenario: Scenario,
        user: User,
        speaker: Callable[[str, int, int], Speaker],
        opener: Speaker,
        opening: Turn,
        sampling: SamplingConfig,
        key: str,
        member: int,
        *,
        on_dialogue: Callable[[], None] | None,
        judge: CheckedJudge | None,
        group_id: str,
        kind: str,
        **fields: object,
    ) -> Dialogue:
        async def run(attempt: int) -> tuple[int, Speaker, Speaker, list[Turn], str]:
            seed = draw_seed(group_id, member, attempt)
            policy = ModelSpeaker(self.policy, scenario, Side.POLICY, sampling, seed, key)
            user_speaker = speaker(key, member, attempt)
            if isinstance(user_speaker, ModelSpeaker) and isinstance(opener, ModelSpeaker):
                user_speaker.repeat(opener)
            turns, ending = await converse(self.task, scenario, policy, user_speaker, opening)
            if ending == OVERLONG:
                check_context_for_first_turn(
                    self.policy.tokens, scenario, sampling.max_turn_tokens, self.policy.max_model_len
                )
            if not is_scored(ending) and not self.keep_broken:
                self.statistics.remember_broken(kind, BrokenTry(group_id, scenario, tuple(turns), 2))
                raise RolloutFailure(ending, party_of(ending) or Party.USER)
            return seed, policy, user_speaker, turns, ending

        seed, policy, user_speaker, turns, ending = await self._try(user, key, kind, run)
        if on_dialogue is not None:
            on_dialogue()

        def score() -> Dialogue:
            return finished(
                self.task, scenario, turns, ending,
                id=f"{group_id}-{member}", group_id=group_id, sampling_seed=seed, kind=kind,
                **views(policy, user_speaker), **fields,
            )  # fmt: skip

        def count_failure(failure: RolloutFailure) -> None:
            self.statistics.drop(failure.reason)

        try:
            dialogue = score_with_retries(score, count_failure)
            # No turn of another dialogue waits for the judge: this one has left the lockstep.
            return await judged_dialogue(judge, self.task, dialogue, count_failure)
        except RolloutFailure as failure:
            self.statistics.fail_after_all(kind, failure)
            raise
