"""Segments on disk: Arrow IPC files that exist whole or not at all.

A file is written under a temporary name (``.part``), flushed to the disk, and renamed. Its BLAKE3 goes into a file
beside it, in the format of ``b3sum``, *before* the rename: this module never leaves a segment without its checksum. Any
program that reads Arrow can read a segment; only this module writes one.
"""

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
from blake3 import blake3

from calibrated_rl.errors import UserError
from calibrated_rl.replay.schema import format_problem
from calibrated_rl.storage.files import to_disk

_SEGMENT = re.compile(r"segment-(\d{6,})\.arrow")
_OURS = re.compile(r"segment-\d{6,}\.arrow\.(b3|sha256)|index-\d{6,}\.arrow(\.(b3|sha256))?|deliveries\.jsonl")
_NEW = ".b3"
_HASHES: dict[str, Callable[[bytes], Any]] = {_NEW: blake3, ".sha256": hashlib.sha256}
"""By the suffix of the checksum's file. BLAKE3 takes a quarter of the time of SHA-256, which would compete with the
writing for the cores; stores of older versions of this program have SHA-256."""
EARLY_BYTES = 2**22
"""After this many bytes the disk begins to write."""


class Refused(Exception):
    """A file that cannot be trusted; the message says why."""


class RefusedSegment(Refused):
    """Segment ``number`` cannot be trusted."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(reason)
        self.number = number


def segment_name(number: int) -> str:
    return f"segment-{number:06d}.arrow"


def checksum_of(path: Path) -> Path:
    """The file with the checksum of ``path``."""
    current_file, earlier_file = (path.with_name(path.name + suffix) for suffix in _HASHES)
    return earlier_file if not current_file.exists() and earlier_file.exists() else current_file


def write_segment(folder: Path, number: int, table: pa.Table) -> None:
    """Write ``table`` as segment ``number``.

    Raises:
        UserError: the segment exists already, so another process writes to this folder.
        OSError: it could not be written (a full disk); then no segment exists.
    """
    path = folder / segment_name(number)
    if path.exists():
        raise UserError(f"{path} exists already: does another process write to this replay folder?")
    write_checked(path, table)


def write_checked(path: Path, table: pa.Table, options: pa.ipc.IpcWriteOptions | None = None) -> None:
    """Write ``table`` as an Arrow file, and its checksum beside it: whole or not at all, also after a power cut.

    The checksum is computed while the disk writes the data, and is renamed first; one flush of the folder makes both
    names durable.
    """
    partial, checksum = _partial(path), path.with_name(path.name + _NEW)
    arrow_output = _ArrowOutput()
    with pa.ipc.new_file(pa.PythonFile(arrow_output, mode="w"), table.schema, options=options) as writer:
        writer.write_table(table)
    with partial.open("wb") as data, _partial(checksum).open("wb") as line, ThreadPoolExecutor(1) as thread:
        digest = thread.submit(_digest, arrow_output.chunks)
        _write(data, arrow_output.chunks)
        checksum_written = thread.submit(_finish, line, digest, path.name)
        os.fsync(data.fileno())
        checksum_written.result()
    os.replace(_partial(checksum), checksum)
    os.replace(partial, path)
    to_disk(path.parent)


def _write(data: BinaryIO, chunks: Sequence[memoryview]) -> None:
    """Write ``chunks``, and let the disk begin with the first while the last are still copied: Linux starts to write
    pages that are marked as no longer needed, in the background."""
    flushed = written = 0
    for chunk in chunks:
        written += data.write(chunk)
        if written - flushed >= EARLY_BYTES:
            os.posix_fadvise(data.fileno(), flushed, written - flushed, os.POSIX_FADV_DONTNEED)
            flushed = written
    data.flush()


class _ArrowOutput:
    """Collects what Arrow writes of a table, without copying it, in chunks of at most 1 MiB. Some file systems take
    several times as long for larger ones."""

    CHUNK = 2**20
    closed = False

    def __init__(self) -> None:
        self.chunks: list[memoryview] = []

    def write(self, content: Any) -> int:
        view = memoryview(content)
        self.chunks += [view[at : at + self.CHUNK] for at in range(0, len(view), self.CHUNK)]
        return len(view)

    def flush(self) -> None:
        """Required by Arrow; nothing is buffered."""


def _digest(chunks: Sequence[memoryview]) -> str:
    digest = blake3()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def _finish(line: BinaryIO, digest: "Future[str]", name: str) -> None:
    """Write a line as ``b3sum`` does, durably."""
    line.write(f"{digest.result()}  {name}\n".encode())
    line.flush()
    os.fsync(line.fileno())


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def read_checked(path: Path, problem: Callable[[Any], str | None]) -> pa.Table:
    """The table that ``write_checked`` wrote; the checksum is compared before anything is parsed.

    Args:
        problem: what is wrong with the file's Arrow schema, or None.

    Raises:
        Refused: missing, torn, altered, foreign, or with a problem.
    """
    checksum = checksum_of(path)
    try:
        data = path.read_bytes()
        expected = checksum.read_bytes().split()[:1]
    except FileNotFoundError as error:
        missing_name = Path(str(error.filename)).name
        raise Refused("no checksum beside it" if missing_name == checksum.name else "missing") from error
    if expected != [_HASHES[checksum.suffix](data).hexdigest().encode()]:
        raise Refused("torn or altered: its checksum differs")
    try:
        reader = pa.ipc.open_file(pa.py_buffer(data))
        schema_problem = problem(reader.schema)
        if schema_problem is not None:
            raise Refused(schema_problem)
        table = reader.read_all()
        table.validate(full=True)  # invalid UTF-8, offsets beyond the end: a checksum does not detect those
        return table
    except (pa.ArrowInvalid, OSError) as error:
        raise Refused(f"not an Arrow file: {error}") from error


def read_segment(folder: Path, number: int) -> pa.Table:
    """The table of segment ``number``.

    Raises:
        RefusedSegment: torn, altered, foreign, or of a newer format.
    """
    try:
        return read_checked(folder / segment_name(number), format_problem)
    except Refused as reason:
        raise RefusedSegment(number, str(reason)) from reason


def seal(folder: Path, number: int) -> str | None:
    """Size in bytes and checksum of segment ``number`` as they are in the folder, without reading it; None where one
    of its two files is missing."""
    path = folder / segment_name(number)
    try:
        return f"{path.stat().st_size} {checksum_of(path).read_text(encoding='ascii', errors='replace').strip()}"
    except FileNotFoundError:
        return None


def list_segments(folder: Path) -> tuple[list[int], dict[str, str]]:
    """Segment numbers in order (gaps included as numbers), and files in ``folder`` that are not of a store, with the
    reason."""
    numbers: list[int] = []
    refused: dict[str, str] = {}
    for name in sorted(os.listdir(folder)):
        match = _SEGMENT.fullmatch(name)
        if match and name == segment_name(int(match[1])):
            numbers.append(int(match[1]))
        elif name.endswith(".part"):
            refused[name] = "a write that was never finished"
        elif not _OURS.fullmatch(name):
            refused[name] = "not a file of a replay store"
    return list(range(1, max(numbers, default=0) + 1)), refused
