"""Typed calls of a run to its replay store; the store itself is an actor (``actor.py``)."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import GetTimeoutError, RayActorError

from calibrated_rl.data.dialogue import Dialogue
from calibrated_rl.errors import PartLost, first_line, is_disk_full
from calibrated_rl.replay.schema import from_table, to_table
from calibrated_rl.storage.files import wait_for_space

TIMEOUT_S = 600.0
"""Within which the store must answer: it may have a large segment to write or to read."""
Groups = list[list[Dialogue]]


class StoreClient:
    """The replay store of a run, which is open for one arm and seed at a time.

    Raises (every method):
        PartLost: the store's process is gone, or does not answer.
    """

    def __init__(self, store: Any, run: Path) -> None:
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
        self._call(self._store.open, str(self.folder(name).resolve()))
        if rewind_to is not None:
            self._call(self._store.rewind, rewind_to)

    def append(self, dialogues: Sequence[Dialogue]) -> None:
        """Store dialogues; those that are there already are skipped."""
        self._call(self._store.append_table, to_table(dialogues))

    def sample(self, groups: int, *, arm: str, update: int, max_staleness: int) -> Groups:
        """Up to ``groups`` complete groups of ``arm`` that are fresh enough for the learner's weights ``update``, none
        handed out before, oldest first."""
        sampled_groups: Groups = self._call(
            self._store.sample_ready, groups, update=update, max_staleness=max_staleness, arm=arm
        )
        return sampled_groups

    def undelivered(self, arm: str) -> list[str]:
        """Ids of the complete groups of ``arm`` that were not handed out."""
        group_ids: list[str] = self._call(self._store.undelivered, arm)
        return group_ids

    def rollouts_of(self, arm: str, update: int) -> list[Dialogue]:
        """The rollouts of an arm for an update, in order."""
        table: pa.Table = self._call(self._store.table, kind="rollout", arm=arm, update=update)
        return from_table(table)

    def _call(self, method: Any, *arguments: Any, **options: Any) -> Any:
        """Call a method of the actor, and retry if its disk was full: such a failure has no effect."""
        while True:
            try:
                return ray.get(method.remote(*arguments, **options), timeout=TIMEOUT_S)
            except (RayActorError, GetTimeoutError) as error:
                raise PartLost(f"the replay store is gone: {first_line(error)}") from error
            except OSError as error:
                if not is_disk_full(error):
                    raise
                wait_for_space(self._run)
