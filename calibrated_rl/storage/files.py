"""JSON files: written whole or not at all, and read with a clear word where they are broken. Room on the disk."""

import fcntl
import json
import logging
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from calibrated_rl.errors import UserError, is_no_room

logger = logging.getLogger(__name__)

SHARED = "~/.cache/calibrated_rl"
"""What runs on a machine have in common."""
COMPILED = f"{SHARED}/compiled"
"""What was compiled on the spot, by engines and learner: kept, because it takes minutes on a GPU."""


def to_disk(path: Path) -> None:
    """Make what was written to a file, or renamed in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """While nobody else on this machine, or on one that shares its file system, has ``folder``; makes the folder.

    Raises:
        UserError: another process has it; names that process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise UserError(f"{folder} is being written by another job ({lock.read().strip() or 'unknown'})") from error
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        yield


def write_json(file: Path, content: Any) -> None:
    """Write whole or not at all; makes the folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(file.name + ".part")
    aside.write_text(json.dumps(content, indent=1, sort_keys=True), encoding="utf-8")
    to_disk(aside)
    os.replace(aside, file)


def read_json(file: Path, kind: type = dict) -> Any:
    """What ``file`` holds.

    Args:
        kind: what is expected, ``dict`` for an object or ``list`` for an array.

    Raises:
        UserError: no such file, not JSON, or of another kind; names the file.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{file.parent} has no {file.name}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is not readable JSON: {error}") from error
    if not isinstance(content, kind):
        raise UserError(f"{file} does not hold a JSON {'object' if kind is dict else 'array'}")
    return content


ROOM_MIB = 64
"""A disk that takes a file of this size is not full."""
ROOM_POLL_S, ROOM_TIMEOUT_S = 5.0, 86400.0


def wait_for_room(folder: Path, timeout_s: float = ROOM_TIMEOUT_S) -> None:
    """After a write that found the disk full: return when files can be written in ``folder`` again, not at once in any
    case.

    Raises:
        UserError: it could not for ``timeout_s`` seconds.
    """
    logger.warning(f"the disk of {folder} is full; waiting for {ROOM_MIB} MiB (looked every {ROOM_POLL_S:g} s)")
    began = time.monotonic()
    while True:
        time.sleep(ROOM_POLL_S)
        waited = time.monotonic() - began
        if _has_room(folder):
            break
        if waited > timeout_s:
            raise UserError(f"the disk of {folder} was full for {timeout_s:g} s: make room, and give the command again")
    logger.info(f"there is room on the disk of {folder} (waited {waited:.0f} s)")


def _has_room(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, ROOM_MIB * 2**20)
    except OSError as error:
        if not is_no_room(error):
            raise
        return False
    return True
