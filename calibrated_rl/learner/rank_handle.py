"""Typed calls to a rank's actor."""

from collections.abc import Callable, Sequence
from typing import Concatenate, ParamSpec, TypeVar, Unpack

from ray.actor import ActorHandle

from calibrated_rl.errors import UserError
from calibrated_rl.learner.rank import LearnerRank
from calibrated_rl.learner.rank_actor import LoadOptions
from calibrated_rl.runtime.actor_call import ActorCall
from calibrated_rl.runtime.node_folder import NodeFolder

P = ParamSpec("P")
T = TypeVar("T")


class RankHandle:
    """Each method begins a call to the method of ``RankActor`` that has the same name; a ``UserError`` among the
    results is what the rank refused."""

    def __init__(self, actor: ActorHandle) -> None:
        """``actor``: the handle that Ray returned when it started the actor."""
        self.actor = actor

    def address(self) -> ActorCall[tuple[str, int]]:
        """The rank's node and a free port there."""
        return ActorCall(self.actor.address.remote())

    def join(self, rank: int, address: str, port: int) -> ActorCall[None]:
        return ActorCall(self.actor.join.remote(rank, address, port))

    def call(
        self, method: Callable[Concatenate[LearnerRank, P], T], *arguments: P.args, **options: P.kwargs
    ) -> ActorCall[UserError | T]:
        """Call ``method``. The results of ranks other than 0 are None, whatever their type says: none reads them."""
        return ActorCall(self.actor.call.remote(method, *arguments, **options))

    def load(self, name: str, folder: NodeFolder, **options: Unpack[LoadOptions]) -> ActorCall[UserError | None]:
        return ActorCall(self.actor.load.remote(name, folder, **options))

    def restore(self, folder: NodeFolder) -> ActorCall[UserError | None]:
        return ActorCall(self.actor.restore.remote(folder))

    def save(self, name: str, folder: NodeFolder) -> ActorCall[UserError | None]:
        return ActorCall(self.actor.save.remote(name, folder))

    def take_snapshot(self, names: Sequence[str]) -> ActorCall[UserError | None]:
        return ActorCall(self.actor.take_snapshot.remote(list(names)))

    def write_snapshot(self, folder: NodeFolder) -> ActorCall[OSError | None]:
        return ActorCall(self.actor.write_snapshot.remote(folder))
