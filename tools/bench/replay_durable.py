"""The replay store on disk: how fast dialogues become durable, and how long a long run's store takes to open."""

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.replay.store import ReplayStore
from calibrated_rl.settings.fields import NotNegative, Positive, Range
from tools.bench.base import Row, at_least
from tools.bench.made_dialogues import GROUP, file_bytes, made_table, renamed

CHUNK = 2**20
"""Bytes in one write: 17 MB in one call took ten times as long as in calls of this size."""


class ReplayDurable:
    """Appends long dialogues and writes the same bytes beside it, in turns; then fills a store with many short
    dialogues, hands out groups meanwhile, and opens it again."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        folder: str = ""
        """Where, on the disk in question; empty: the system's folder for temporary files. Needs ``many`` x 2.4 kB, or
        ``appends`` x 65 kB x ``dialogues`` if that is more."""
        dialogues: Positive = 1024
        """In one append: an update's, 128 groups of 8."""
        tokens: Positive = 1000
        """Of each side's view of a dialogue."""
        appends: Positive = 32
        many: Positive = 1_000_000
        """Dialogues in the store that is opened again."""
        many_at_once: Positive = 256
        """Of these, in one append."""
        short: Positive = 60
        """Tokens of each side's view of these."""
        max_staleness: NotNegative = 8
        """With which one group is sampled after each of these appends; older ones are dropped."""
        seconds_to_open: Annotated[float, Range(above=0)] = 10.0

    def __init__(self, config: Config) -> None:
        self.config = config

    def measure(self) -> Row:
        config = self.config
        with tempfile.TemporaryDirectory(prefix="replay-", dir=config.folder or None) as folder:
            store_seconds, write_seconds, size = self._append(Path(folder))
        with tempfile.TemporaryDirectory(prefix="replay-", dir=config.folder or None) as folder:
            filling = self._fill(Path(folder))
            size_of_many = sum(file.stat().st_size for file in Path(folder).iterdir())
            opening, with_index = self._open(Path(folder))
            for file in Path(folder).glob("index-*"):
                file.unlink()
            rebuilding, counts_without_index = self._open(Path(folder))
        assert (
            with_index == counts_without_index and with_index["dialogues"] == config.many and not with_index["refused"]
        )
        return at_least(
            size / store_seconds / 1e9, size / write_seconds / 1e9, 0.8,
            f"GB/s of {config.appends} appends of {config.dialogues} dialogues of 2 x {config.tokens} tokens "
            f"({size / config.appends / 1e6:.0f} MB each), each durable with its checksum before it returns, against "
            f"the same bytes written one after the other to one file, fsync as often, in turns with them. "
            f"{config.many:,} dialogues of 2 x {config.short} tokens ({size_of_many / 1e9:.1f} GB, "
            f"{-(-config.many // config.many_at_once):,} segments, after each of which a group was sampled) came in "
            f"within {filling:.0f} s and are opened again in {opening:.1f} s (at most {config.seconds_to_open:g}) with "
            f"nothing of them in the page cache: index and sizes are checked then, the dialogues when they are first "
            f"read. Without index files, all of it read and checked: {rebuilding:.1f} s",
            also=opening <= config.seconds_to_open,
        )  # fmt: skip

    def _append(self, folder: Path) -> tuple[float, float, int]:
        """Seconds of the store, seconds of plain writing, bytes of either."""
        config = self.config
        template = made_table(config.dialogues, config.tokens)
        store = ReplayStore(folder / "store")
        store.append_table(renamed(template, config.appends, 0))  # warm-up: the first call loads libraries
        tables = (renamed(template, number, 0) for number in range(config.appends))
        store_seconds = write_seconds = 0.0
        size = 0
        with (folder / "plain").open("wb", buffering=0) as plain:
            for number, table in enumerate(tables):
                content = file_bytes(table)
                size += len(content)
                for turn in range(2):
                    began = time.perf_counter()
                    if turn == number % 2:
                        store.append_table(table)
                        store_seconds += time.perf_counter() - began
                    else:
                        _write(plain.fileno(), content)
                        write_seconds += time.perf_counter() - began
        return store_seconds, write_seconds, size

    def _fill(self, folder: Path) -> float:
        config, store, began = self.config, ReplayStore(folder), time.perf_counter()
        template = made_table(min(config.many_at_once, config.many), config.short)
        for number in range(-(-config.many // template.num_rows)):
            table = renamed(template, number, number)[: config.many - number * template.num_rows]
            store.append_table(table)
            if table.num_rows >= GROUP:
                assert store.sample(1, update=number, max_staleness=config.max_staleness)
        return time.perf_counter() - began

    def _open(self, folder: Path) -> tuple[float, dict[str, int]]:
        for file in folder.iterdir():
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
        began = time.perf_counter()
        counts = ReplayStore(folder).counts()
        return time.perf_counter() - began, counts


def _write(descriptor: int, content: NDArray[np.uint8]) -> None:
    for first in range(0, len(content), CHUNK):
        chunk = content[first : first + CHUNK].data
        assert os.write(descriptor, chunk) == len(chunk)
    os.fsync(descriptor)
