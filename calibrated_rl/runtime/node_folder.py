"""Folders of one node for processes on others: what machines without a shared file system hand each other.

A run's models and checkpoints lie where its driver runs. An engine or a learner rank on another node gets a
``NodeFolder``: ``fetch`` gives it the folder itself where its node sees the same file system, else a copy, which
travels through Ray's object store. ``write`` is the way back. The node that has the folder needs no server for it: what
reads and writes there are Ray tasks that are bound to that node.
"""

import fcntl
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from calibrated_rl.errors import UserError, first_line
from calibrated_rl.storage.checksums import NAME, check_checksums
from calibrated_rl.storage.files import SHARED, to_disk

logger = logging.getLogger(__name__)

COPIES = f"{SHARED}/copies"
"""Where a node keeps copies of folders of other nodes."""
CHUNK_BYTES = 32 * 2**20
CHUNKS_AHEAD = 4
TIMEOUT_S = 600.0
"""For a chunk, and for what takes a moment."""
KEPT_S = 3600.0
"""A copy is removed when it was not asked for since: it is read once, when a process starts."""

Listing = tuple[tuple[str, int, int], ...]
"""Path within the folder, size in bytes and time of the last change in ns of every file, sorted."""


@dataclass(frozen=True, slots=True)
class NodeFolder:
    """A folder on the disks of one node of the cluster."""

    path: str
    """Absolute."""
    node: str
    """Ray's id of the node."""

    @classmethod
    def here(cls, path: str | Path) -> "NodeFolder":
        """``path`` on the node of this process."""
        return cls(str(Path(path).resolve()), _this_node())

    def fetch(self) -> Path:
        """The folder itself where this node sees it, else a copy on this node, whole and with the same content.

        Raises:
            UserError: the node or the folder is gone, its files change meanwhile or are not as their checksums say, or
                the disk is too full for a copy.
        """
        if self.node == _this_node():
            return Path(self.path)
        with self._explained():
            listing: Listing = self._ask(_listing, self.path)
            if not listing:
                raise UserError(f"{self.path} of node {self.node[:12]} has no files")
            if _listing(self.path) == listing:
                return Path(self.path)
            return self._copy(listing)

    def write(self, write: Callable[[Path], None]) -> None:
        """Call ``write`` with the path of a folder that it makes, which then takes the place of this one, at once.

        Raises:
            UserError: as ``fetch``; or what ``write`` raises. In both cases the folder is as it was before.
        """
        parent = Path(self.path).parent
        if self.node == _this_node() or self._sees(parent):
            write(Path(self.path))
            return
        outgoing = Path(COPIES).expanduser() / f"outgoing-{uuid4().hex}"
        try:
            outgoing.parent.mkdir(parents=True, exist_ok=True)
            write(outgoing)
            with self._explained():
                self._send(outgoing)
        finally:
            shutil.rmtree(outgoing, ignore_errors=True)

    def _ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return ray.get(self._task(function, *arguments), timeout=TIMEOUT_S)

    def _task(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        at_home = NodeAffinitySchedulingStrategy(self.node, soft=False)
        return ray.remote(function).options(num_cpus=0, scheduling_strategy=at_home, **options).remote(*arguments)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except RayError as error:
            raise UserError(f"{self.path} cannot be had from node {self.node[:12]}: {first_line(error)}") from error
        except OSError as error:
            raise UserError(f"{self.path} of node {self.node[:12]} cannot be copied: {error}") from error

    def _sees(self, parent: Path) -> bool:
        """Whether this node and the folder's see the same folder ``parent``."""
        if not parent.is_dir():
            return False
        probe = parent / f".probe-{uuid4().hex}"
        try:
            probe.touch()
            with self._explained():
                return bool(self._ask(os.path.exists, str(probe)))
        except OSError:
            return False
        finally:
            probe.unlink(missing_ok=True)

    def _copy(self, listing: Listing) -> Path:
        copies = Path(COPIES).expanduser()
        copies.mkdir(parents=True, exist_ok=True)
        key = hashlib.sha256(repr((self.path, self.node, listing)).encode()).hexdigest()[:32]
        copy = copies / key
        with (copies / f"{key}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes on this node one fetches
            if not copy.is_dir():
                _remove_old(copies)
                self._fetch_to(copy, listing)
            os.utime(copy)
        return copy

    def _fetch_to(self, copy: Path, listing: Listing) -> None:
        began, size = time.monotonic(), sum(size for _, size, _ in listing)
        if size > shutil.disk_usage(copy.parent).free:
            raise UserError(f"the disk of {copy.parent} is too full for {size / 2**20:.0f} MiB of {self.path}")
        partial = copy.with_name(f"{copy.name}.part")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        chunks = self._task(
            _chunks, self.path, listing, num_returns="streaming", _generator_backpressure_num_objects=CHUNKS_AHEAD
        )
        for name, file_size, _ in listing:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            with (partial / name).open("wb") as file:
                while file.tell() < file_size:
                    file.write(ray.get(next(chunks), timeout=TIMEOUT_S))
                    os.utime(partial)  # it is in use, however long a file takes: see ``_remove_old``
        if (partial / NAME).is_file():
            check_checksums(partial)
        partial.rename(copy)
        logger.info(f"copied {size / 2**20:.0f} MiB of {self.path} in {time.monotonic() - began:.1f} s")

    def _send(self, outgoing: Path) -> None:
        arriving = f"{self.path}.{uuid4().hex}.part"
        try:
            for name, size, _ in _listing(str(outgoing)):
                with (outgoing / name).open("rb") as file:
                    for start in range(0, max(1, size), CHUNK_BYTES):
                        self._ask(_write_chunk, arriving, name, start, file.read(CHUNK_BYTES))
            self._ask(_replace, arriving, self.path)
        except BaseException:
            self._task(shutil.rmtree, arriving, True)
            raise


def _this_node() -> str:
    return str(ray.get_runtime_context().get_node_id())


def _listing(path: str) -> Listing:
    """All files in and below a folder, links followed; empty where there is none."""
    folder = Path(path)
    files = [(file, file.stat()) for file in sorted(folder.rglob("*")) if file.is_file()]
    return tuple((file.relative_to(folder).as_posix(), stat.st_size, stat.st_mtime_ns) for file, stat in files)


def _chunks(path: str, listing: Listing) -> Iterator[bytes]:
    """The content of the files, one after the other.

    Raises:
        OSError: a file is not what it was when it was listed.
    """
    for name, size, changed_ns in listing:
        with (Path(path) / name).open("rb") as file:
            for start in range(0, size, CHUNK_BYTES):
                chunk = file.read(CHUNK_BYTES)
                stat = os.fstat(file.fileno())
                if (stat.st_size, stat.st_mtime_ns) != (size, changed_ns) or len(chunk) != min(
                    CHUNK_BYTES, size - start
                ):
                    raise OSError(f"{name} has changed while it was read")
                yield chunk


def _write_chunk(folder: str, name: str, start: int, chunk: bytes) -> None:
    file = Path(folder) / name
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("r+b" if start else "wb") as stream:
        stream.seek(start)
        stream.write(chunk)


def _replace(arrived: str, path: str) -> None:
    """Put a folder in the place of another."""
    for written in (*Path(arrived).rglob("*"), Path(arrived)):
        to_disk(written)
    shutil.rmtree(path, ignore_errors=True)
    Path(arrived).rename(path)


def _remove_old(copies: Path) -> None:
    """Remove copies that nobody has asked for in a while, and what processes have left that were killed."""
    for folder in copies.iterdir():
        try:
            old = folder.is_dir() and time.time() - folder.stat().st_mtime > KEPT_S
        except FileNotFoundError:
            continue
        if old:
            shutil.rmtree(folder, ignore_errors=True)
