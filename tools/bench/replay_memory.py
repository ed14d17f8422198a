"""The replay store in memory: the rate of appends, and whether sampling from a full store takes longer."""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pyarrow as pa

from calibrated_rl.replay.schema import to_table
from calibrated_rl.replay.store import ReplayStore
from calibrated_rl.settings.fields import Positive, Range
from tools.bench.base import Row, at_least
from tools.bench.made_dialogues import GROUP, dialogues, file_bytes, made_table, renamed


class ReplayMemory:
    """Appends tables of long dialogues; then samples from a small and from a large store of short ones."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        dialogues: Positive = 256
        """In one append."""
        tokens: Positive = 1000
        """Of each side's view of a dialogue, where the append is measured."""
        appends: Positive = 60
        small: Positive = 1000
        large: Positive = 1_000_000
        """Dialogues in the two stores that are sampled from."""
        short: Positive = 60
        """Tokens of each side's view there."""
        samples: Positive = 25
        groups: Positive = 4
        """In one sample."""
        flat: Annotated[float, Range(above=0)] = 1.5
        """The large store's sample may take this many times the small one's."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def measure(self) -> Row:
        config = self.config
        bandwidth = _copy_gigabytes_per_second()
        rate, converted = self._append()
        small, large = self._filled(config.small), ReplayStore()
        first_append, last_append = self._fill(large, config.large)
        times: dict[str, list[float]] = {"small": [], "large": []}
        gc.freeze()  # a garbage collection of a million ids would distort some sample
        for _ in range(config.samples):
            for name, store in (("small", small), ("large", large)):
                times[name].append(_seconds(lambda store=store: self._sample(store)))  # type: ignore[misc]
        typical = {name: statistics.median(values) for name, values in times.items()}
        growth = typical["large"] / typical["small"]
        return at_least(
            rate, 1.0, 1.0,
            f"GB of Arrow data a second through append_table, {config.dialogues} dialogues of 2 x {config.tokens} "
            f"tokens at a time, against the required 1 GB/s. The store checks and indexes a table and keeps it, "
            f"not a copy: memory is not what limits it, a large copy makes {bandwidth:.1f} GB/s. Dialogues that are "
            f"Python objects, converted first: {converted:.2f} GB/s. Sampling {config.groups} groups of {GROUP} takes "
            f"{typical['small'] * 1e3:.2f} ms of {config.small:,} dialogues, {typical['large'] * 1e3:.2f} ms of "
            f"{config.large:,}: {growth:.2f} times (at most {config.flat:g}; nearly all of it makes Python objects). "
            f"An append of {config.dialogues} short ones takes {first_append * 1e3:.2f} ms at first, "
            f"{last_append * 1e3:.2f} ms at {config.large:,}",
            also=growth <= config.flat,
        )  # fmt: skip

    def _append(self) -> tuple[float, float]:
        """GB/s of tables, and of Python objects."""
        config = self.config
        template = made_table(config.dialogues, config.tokens)
        tables = [_in_own_memory(renamed(template, number, 0)) for number in range(config.appends)]
        store = ReplayStore()
        store.append_table(renamed(template, config.appends, 0))  # warm-up: the first call loads libraries
        seconds = _seconds(lambda: [store.append_table(table) for table in tables])
        objects = dialogues(config.dialogues, config.tokens)
        converting = statistics.median(_seconds(lambda: ReplayStore().append(objects)) for _ in range(5))
        return sum(table.nbytes for table in tables) / seconds / 1e9, to_table(objects).nbytes / converting / 1e9

    def _filled(self, number: int) -> ReplayStore:
        store = ReplayStore()
        self._fill(store, number)
        return store

    def _fill(self, store: ReplayStore, number: int) -> tuple[float, float]:
        """Seconds of an append at first and at last."""
        config = self.config
        template = made_table(min(config.dialogues, number), config.short)
        times = []
        for batch_number in range(-(-number // template.num_rows)):
            table = renamed(template, batch_number, 0)
            table = table[: number - batch_number * template.num_rows]
            times.append(_seconds(lambda table=table: store.append_table(table)))  # type: ignore[misc]
        return statistics.median(times[:100]), statistics.median(times[-100:])

    def _sample(self, store: ReplayStore) -> None:
        assert len(store.sample(self.config.groups, update=0, max_staleness=0)) == self.config.groups


def _in_own_memory(table: pa.Table) -> pa.Table:
    return pa.ipc.open_file(pa.py_buffer(file_bytes(table))).read_all()


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _copy_gigabytes_per_second() -> float:
    source = np.ones(2**29, np.uint8)
    target = np.zeros_like(source)
    return len(source) / min(_seconds(lambda: np.copyto(target, source)) for _ in range(5)) / 1e9
