"""JSON files: written whole or not at all, and read with clear errors where they are broken. Waiting for disk space."""

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

from calibrated_rl.errors import UserError, is_disk_full

logger = logging.getLogger(__name__)

SHARED = "~/.cache/calibrated_rl"
"""Folder that all runs on a machine share."""
COMPILED = f"{SHARED}/compiled"
"""Code that engines and learner have compiled: kept, because compiling takes minutes on a GPU."""


def to_disk(path: Path) -> None:
    """Make what was written to a file, or renamed in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Lock ``folder`` against other processes on this machine, or on one that shares its file system; makes the folder.

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
    partial = file.with_name(file.name + ".part")
    partial.write_text(json.dumps(content, indent=1, sort_keys=True), encoding="utf-8")
    to_disk(partial)
    os.replace(partial, file)


def read_json(file: Path, expected_type: type = dict) -> Any:
    """The content of ``file``.

    Args:
        expected_type: ``dict`` for an object or ``list`` for an array.

    Raises:
        UserError: no such file, not JSON, or of another type; names the file.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{file.parent} has no {file.name}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is not readable JSON: {error}") from error
    if not isinstance(content, expected_type):
        raise UserError(f"{file} does not contain a JSON {'object' if expected_type is dict else 'array'}")
    return content


SPACE_MIB = 64
"""A disk on which a file of this size can be created is not full."""
SPACE_POLL_S, SPACE_TIMEOUT_S = 5.0, 86400.0


def wait_for_space(folder: Path, timeout_s: float = SPACE_TIMEOUT_S) -> None:
    """After a write failed on a full disk: wait until files can be written in ``folder`` again, for at least one poll.

    Raises:
        UserError: it could not for ``timeout_s`` seconds.
    """
    logger.warning(f"the disk of {folder} is full; waiting for {SPACE_MIB} MiB (checking every {SPACE_POLL_S:g} s)")
    began = time.monotonic()
    while True:
        time.sleep(SPACE_POLL_S)
        waited_s = time.monotonic() - began
        if _has_space(folder):
            break
        if waited_s > timeout_s:
            raise UserError(
                f"the disk of {folder} was full for {timeout_s:g} s: free some space, and repeat the command"
            )
    logger.info(f"there is space on the disk of {folder} again (waited {waited_s:.0f} s)")


def _has_space(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, SPACE_MIB * 2**20)
    except OSError as error:
        if not is_disk_full(error):
            raise
        return False
    return True
