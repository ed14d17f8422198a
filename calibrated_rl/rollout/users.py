"""Whoever the policy talks with, as a side of a dialogue: replicas of ours, an endpoint, a program."""

from collections.abc import Sequence

from calibrated_rl.data.dialogue import Scenario, Side, Source, Turn
from calibrated_rl.endpoints.user import EndpointUser
from calibrated_rl.inference.config import SamplingConfig
from calibrated_rl.inference.pool import ReplicaPool
from calibrated_rl.rollout.conversation import ModelSpeaker, ScriptedSpeaker, Speaker, find_flaw, stable_seed
from calibrated_rl.tasks.base import ScriptedUser, last_turn

UserModel = ReplicaPool | EndpointUser
"""A simulator, or a model that stands for people."""
User = UserModel | ScriptedUser


class EndpointSpeaker:
    """Says the user's turns as an endpoint answers them. There are no ids and no log-probs of them."""

    def __init__(self, user: EndpointUser, scenario: Scenario, seed: int) -> None:
        self._user, self._scenario, self._seed = user, scenario, seed

    def hear(self, turn: Turn) -> None:
        """Does nothing: each request has the whole history."""

    async def say(self, turns: Sequence[Turn]) -> Turn | None:
        ordinal = sum(turn.side is Side.USER for turn in turns) + 1
        seed = stable_seed(self._seed, Side.USER, ordinal)
        text, finish, lost_in_thought = await self._user.respond(self._scenario, turns, seed)
        return Turn(
            side=Side.USER, text=text, source=Source.SIMULATOR, finish=finish, simulator_version=self._user.version,
            flaw=find_flaw(text, finish, last_turn(turns, Side.USER), lost_in_thought),
        )  # fmt: skip


def user_speaker(
    user: User, scenario: Scenario, sampling: SamplingConfig, group_id: str, member: int, attempt: int, key: str
) -> Speaker:
    """``user`` in the dialogue ``key``.

    Args:
        sampling: of a model on replicas of ours; an endpoint has its own.
        group_id, member, attempt: they seed the draws.
    """
    if isinstance(user, EndpointUser):
        return EndpointSpeaker(
            user, scenario, draw_seed(scenario.id if user.same_for_all else group_id, member, attempt)
        )
    if isinstance(user, ReplicaPool):
        return ModelSpeaker(user, scenario, Side.USER, sampling, draw_seed(group_id, member, attempt), key)
    return ScriptedSpeaker(user, scenario)


def draw_seed(group_id: str, member: int, attempt: int) -> int:
    """Seed of a member's ``attempt``-th draw; that of the first is the seed of the member itself."""
    return stable_seed(group_id, member, *[attempt] * (attempt > 0))
