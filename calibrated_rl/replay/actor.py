"""The store as a Ray actor: a thin async shell around ``ReplayStore`` that lets a learner wait for groups."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from calibrated_rl.data.dialogue import Dialogue
from calibrated_rl.replay.config import ReplayConfig
from calibrated_rl.replay.schema import to_table
from calibrated_rl.replay.store import ReplayStore
from calibrated_rl.runtime.capacity import Need, answered


class ReplayService:
    """``ReplayStore`` behind coroutines. ``append_table`` wakes callers that wait in ``sample``."""

    def __init__(self, folder: str | None = None) -> None:
        self._store = ReplayStore(Path(folder) if folder is not None else None)
        self._changed = asyncio.Condition()

    async def open(self, folder: str) -> None:
        """Switch to the store in ``folder``; no caller may be waiting in ``sample``."""
        async with self._changed:
            self._store = ReplayStore(Path(folder))

    async def append(self, dialogues: Sequence[Dialogue]) -> int:
        """``append_table`` for dialogues that are Python objects: better converted where they are made."""
        return await self.append_table(to_table(dialogues))

    async def append_table(self, table: pa.Table) -> int:
        """See ``ReplayStore.append_table``; safe to call again with the same dialogues after a time-out."""
        async with self._changed:
            n_new = self._store.append_table(table)
            self._changed.notify_all()
        return n_new

    async def sample(
        self, groups: int, *, update: int, max_staleness: int, timeout_s: float, arm: str | None = None
    ) -> list[list[Dialogue]]:
        """Wait until ``groups`` complete groups are fresh enough and hand them out.

        Raises:
            TimeoutError: they were not there after ``timeout_s`` seconds; nothing was handed out.
        """
        result: list[list[Dialogue]] = []

        def enough() -> bool:
            nonlocal result
            result = self._store.sample(groups, update=update, max_staleness=max_staleness, arm=arm)
            return len(result) == groups

        try:
            async with self._changed:
                await asyncio.wait_for(self._changed.wait_for(enough), timeout_s)
        except TimeoutError as error:
            if len(result) == groups:  # handed out just as the time-out ended: must not be lost
                return result
            raise TimeoutError(
                f"replay: {groups} groups for update {update} were not there within {timeout_s:g} s; "
                f"store: {self._store.counts()}"
            ) from error
        return result

    async def sample_ready(
        self, groups: int, *, update: int, max_staleness: int, arm: str | None = None
    ) -> list[list[Dialogue]]:
        """Hand out up to ``groups`` groups that are complete and fresh enough, without waiting."""
        return self._store.sample(groups, update=update, max_staleness=max_staleness, arm=arm, allow_fewer=True)

    async def rewind(self, update: int) -> None:
        async with self._changed:
            self._store.rewind(update)
            self._changed.notify_all()

    async def undelivered(self, arm: str) -> list[str]:
        return self._store.undelivered(arm)

    async def ready(self, arm: str | None = None) -> int:
        return self._store.ready(arm)

    async def table(self, *, kind: str | None = None, arm: str | None = None, update: int | None = None) -> pa.Table:
        return self._store.table(kind=kind, arm=arm, update=update)

    async def counts(self) -> dict[str, int]:
        return self._store.counts()

    async def refused(self) -> dict[str, str]:
        return self._store.refused

    async def export_parquet(self, path: str) -> int:
        return self._store.export_parquet(Path(path))


def start_store(config: ReplayConfig) -> tuple[ActorHandle, Need]:
    """Start the store, without a folder yet; methods as in ``ReplayService``. Also returns its needs of the cluster."""
    # The driver reads and removes its files, too.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    place = {"label_selector": dict(config.labels)} if config.labels else {"scheduling_strategy": here}
    store = ray.remote(ReplayService).options(num_cpus=config.cpus, **place).remote()
    return store, Need("replay store", "replay", {"CPU": config.cpus}, config.labels, answered(store.counts.remote()))
