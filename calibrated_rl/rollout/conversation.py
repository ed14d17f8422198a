"""The conversation loop: one coroutine a dialogue, no barrier between turns.

A ``Speaker`` says one side's next turn. ``ModelSpeaker`` samples it from a pool of replicas, as token ids
that are kept; ``ScriptedSpeaker`` takes it from a program. Guardrails mark flawed turns and never hide them;
``failures.py`` says what a flaw of either side means for the dialogue.
"""

import zlib
from collections.abc import Sequence
from typing import Protocol

from calibrated_rl.chat.tokens import SideView, finish_of
from calibrated_rl.data.dialogue import Dialogue, Finish, Scenario, Side, Source, Turn
from calibrated_rl.errors import Party, RolloutFailure
from calibrated_rl.inference.config import SamplingConfig
from calibrated_rl.inference.pool import ReplicaPool
from calibrated_rl.inference.turns import GenerateRequest
from calibrated_rl.rollout.failures import (
    CONTEXT,
    DEGENERATE,
    OVERLONG,
    broken_by,
    confuses_roles,
    ending_of,
    is_scored,
)
from calibrated_rl.tasks.base import ScriptedUser, Task, count_policy_turns, last_turn


class Speaker(Protocol):
    """Says the turns of one side of one dialogue."""

    async def say(self, turns: Sequence[Turn]) -> Turn | None:
        """The next turn; None when the dialogue no longer fits into the context.

        Raises:
            RolloutFailure: an engine failed, or whoever speaks does not answer.
        """
        ...

    def hear(self, turn: Turn) -> None:
        """Receive a turn of the other side."""
        ...


class ModelSpeaker:
    """One side played by a model on the pool's replicas."""

    def __init__(
        self,
        pool: ReplicaPool,
        scenario: Scenario,
        side: Side,
        config: SamplingConfig,
        seed: int,
        key: str,
    ) -> None:
        self.view = SideView(pool.tokens, scenario, side)
        self._pool = pool
        self._side = side
        self._config = config
        self._seed = seed
        self._key = key
        self._spoken = 0

    def hear(self, turn: Turn) -> None:
        self.view.hear(turn)

    def repeat(self, speaker: "ModelSpeaker") -> None:
        """Copy the turns that another member of the group has said and heard so far."""
        self.view = speaker.view.copy()
        self._spoken = speaker._spoken

    async def say(self, turns: Sequence[Turn]) -> Turn | None:
        tokens = self._pool.tokens
        prompt = self.view.prompt_ids
        if len(prompt) + self._config.max_turn_tokens + 1 > self._pool.max_model_len:
            return None
        self._spoken += 1
        request = GenerateRequest(
            prompt_ids=list(prompt),
            max_tokens=self._config.max_turn_tokens,
            temperature=self._config.temperature,
            seed=stable_seed(self._seed, self._side, self._spoken),
            stop_ids=tuple(sorted(tokens.stop_ids)),
            reshaping=self._config,
        )
        generated = await self._pool.generate(self._key, request)
        finish = finish_of(tokens, generated.ids)
        if finish is Finish.LENGTH and len(generated.ids) < self._config.max_turn_tokens:
            # Neither the side nor its limit ended the turn: the engine aborted the request.
            raise RolloutFailure(f"{self._pool.role}: unfinished turn", Party.ENGINE)
        self.view.speak(generated.ids, generated.logprobs.tolist(), generated.versions.tolist())
        text, lost_in_thought = tokens.spoken(generated.ids)
        flaw = find_flaw(text, finish, last_turn(turns, self._side), lost_in_thought)
        is_user = self._side is Side.USER
        return Turn(
            side=self._side,
            text=text,
            source=Source.SIMULATOR if is_user else Source.POLICY,
            finish=finish,
            simulator_version=int(generated.versions[-1]) if is_user and len(generated.versions) else None,
            flaw=flaw,
        )


class ScriptedSpeaker:
    """The other side played by a scripted human."""

    def __init__(self, human: ScriptedUser, scenario: Scenario) -> None:
        self._human = human
        self._scenario = scenario

    def hear(self, turn: Turn) -> None:
        """Does nothing: the program reads the whole history."""

    async def say(self, turns: Sequence[Turn]) -> Turn | None:
        text = self._human.reply(self._scenario, turns)
        return Turn(side=Side.USER, text=text, source=Source.SCRIPTED)


def find_flaw(text: str, finish: Finish, previous: Turn | None, lost_in_thought: bool = False) -> str | None:
    """Name of the guardrail that a generated turn trips, or None. Flaws are counted, never repaired.

    Args:
        lost_in_thought: the turn ended before its reasoning did.
    """
    if finish is Finish.DEGENERATE:
        return "control_token"
    if lost_in_thought:
        return "unfinished_reasoning"
    if not text.strip():
        return "empty"
    if confuses_roles(text):
        return "role_confusion"
    if previous is not None and len(text.split()) > 3 and previous.text == text:
        return "repeat"
    return None


def stable_seed(*parts: object) -> int:
    """A 31-bit seed from its parts, the same in every process."""
    return zlib.crc32("/".join(map(str, parts)).encode()) & 0x7FFFFFFF


def greeting(scenario: Scenario) -> Turn:
    return Turn(side=Side.POLICY, text=scenario.greeting, source=Source.GREETING)


async def converse(
    task: Task,
    scenario: Scenario,
    policy: Speaker,
    user: Speaker,
    opening: Turn | None = None,
) -> tuple[list[Turn], str]:
    """Run one dialogue; returns its turns and why it ended: the task's word, ``max_turns``, or one that says who broke
    it and how (``failures.py``).

    Args:
        opening: the group's first user turn, already spoken by ``user``; None lets ``user`` say it now.

    Raises:
        UserError: the task's own ending is a word of ``failures.py``.
    """
    turns = [greeting(scenario)]
    policy.hear(turns[0])
    if opening is None:
        user.hear(turns[0])
        opening = await user.say(turns)
        if opening is None:
            return turns, CONTEXT[Side.USER]
    turns.append(opening)
    policy.hear(opening)
    speaker, listener = policy, user
    while True:
        # Before the task's ending: a broken turn of a simulator may look like one to the task.
        ending = broken_by(task, scenario, turns) or ending_of(task, scenario, turns)
        if ending is not None:
            return turns, ending
        if turns[-1].flaw == "control_token":
            return turns, DEGENERATE[turns[-1].side]
        if speaker is policy and count_policy_turns(turns) >= task.max_policy_turns:
            return turns, "max_turns"
        turn = await speaker.say(turns)
        if turn is None:
            if speaker is policy and not count_policy_turns(turns):
                return turns, OVERLONG
            return turns, CONTEXT[Side.POLICY if speaker is policy else Side.USER]
        turns.append(turn)
        listener.hear(turn)
        speaker, listener = listener, speaker


def finished(task: Task, scenario: Scenario, turns: Sequence[Turn], ending: str, **fields: object) -> Dialogue:
    """The dialogue of a finished conversation, with its outcome; without one where it was not the policy that broke it.

    Raises:
        RolloutFailure: the task's judge or tool failed.
    """
    return Dialogue(
        task=task.name,
        scenario=scenario,
        turns=tuple(turns),
        ending=ending,
        outcome=task.outcome(scenario, turns, ending) if is_scored(ending) else None,
        **fields,  # type: ignore[arg-type]
    )


def views(policy: Speaker, user: Speaker) -> dict[str, object]:
    """Token sequences of the sides that are models, as fields of ``Dialogue``."""
    return {
        f"{name}_tokens": speaker.view.sequence()
        for name, speaker in (("policy", policy), ("user", user))
        if isinstance(speaker, ModelSpeaker)
    }
