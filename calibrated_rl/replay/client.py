"""Typed calls of a run to its replay store; the store itself is an actor (``actor.py``)."""

import shutil
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError

from calibrated_rl.data.dialogue import Dialogue
from calibrated_rl.errors import PartLost, first_line, is_disk_full
from calibrated_rl.replay.actor import ReplayService
from calibrated_rl.replay.schema import from_table, to_table
from calibrated_rl.runtime.actor_call import ActorCall
from calibrated_rl.storage.files import wait_for_space

TIMEOUT_S = 600.0
"""Within which the store must answer: it may have a large segment to write or to read."""
Groups = list[list[Dialogue]]
P = ParamSpec("P")
T = TypeVar("T")


class StoreClient:
    """The replay store of a run, which is open for one arm and seed at a time.

    Raises (every method):
        PartLost: the store's process is gone, or does not answer.
    """

    def __init__(self, store: ActorHandle, run: Path) -> None:
        """
        Args:
            store: handle of a ``ReplayService``.
            run: the run's folder; stores lie below its ``replay``.
        """
        self._store, self._run = store, run

    def folder(self, name: str) -> Path:
        """The folder of the store called ``name``."""
        return self._run / "replay" / name

    def open(self, name: str, rewind_to: int | None = None) -> None:
        """Open the store of an arm and seed. Where the arm resumes from a checkpoint, the store is rewound to its
        update ``rewind_to``; else the remains of an interrupted attempt are removed: its dialogues would count
        as repeated.
        """
        if rewind_to is None:
            shutil.rmtree(self.folder(name), ignore_errors=True)
        self._call(ReplayService.open, str(self.folder(name).resolve()))
        if rewind_to is not None:
            self._call(ReplayService.rewind, rewind_to)

    def append(self, dialogues: Sequence[Dialogue]) -> None:
        """Store dialogues; those that are there already are skipped."""
        self._call(ReplayService.append_table, to_table(dialogues))

    def sample(self, groups: int, *, arm: str, update: int, max_staleness: int) -> Groups:
        """Up to ``groups`` complete groups of ``arm`` that are fresh enough for the learner's weights ``update``, none
        handed out before, oldest first."""
        return self._call(ReplayService.sample_ready, groups, update=update, max_staleness=max_staleness, arm=arm)

    def undelivered(self, arm: str) -> list[str]:
        """Ids of the complete groups of ``arm`` that were not handed out."""
        return self._call(ReplayService.undelivered, arm)

    def rollouts_of(self, arm: str, update: int) -> list[Dialogue]:
        """The rollouts of an arm for an update, in order."""
        return from_table(self._call(ReplayService.table, kind="rollout", arm=arm, update=update))

    def _call(
        self,
        method: Callable[Concatenate[ReplayService, P], Coroutine[Any, Any, T]],
        *arguments: P.args,
        **options: P.kwargs,
    ) -> T:
        """Call a method of the actor, and retry if its disk was full: such a failure has no effect."""
        while True:
            try:
                pending = getattr(self._store, method.__name__).remote(*arguments, **options)
                call: ActorCall[T] = ActorCall(pending)
                return call.result(TIMEOUT_S)
            except (RayActorError, GetTimeoutError) as error:
                raise PartLost(f"the replay store is gone: {first_line(error)}") from error
            except OSError as error:
                if not is_disk_full(error):
                    raise
                wait_for_space(self._run)
