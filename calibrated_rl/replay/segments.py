"""Segments on disk: Arrow IPC files that are there whole or not at all.

A segment is written aside (``.part``), flushed to the disk, and renamed. Its SHA-256 goes into a file beside
it, in the format of ``sha256sum``, *before* the rename: a segment without its checksum is never ours. Any
program that reads Arrow can read a segment; only this module writes one.
"""

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from calibrated_rl.errors import UserError
from calibrated_rl.files import to_disk
from calibrated_rl.replay.schema import format_problem

_SEGMENT = re.compile(r"segment-(\d{6,})\.arrow")
_OURS = re.compile(r"segment-\d{6,}\.arrow\.sha256|deliveries\.jsonl")


def segment_name(number: int) -> str:
    return f"segment-{number:06d}.arrow"


def write_whole(path: Path, write: Callable[[Any], Any]) -> None:
    """Let ``write`` fill a binary file that appears under ``path`` whole or not at all, also after a crash."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    to_disk(path.parent)


def write_segment(folder: Path, number: int, table: pa.Table) -> None:
    """Write ``table`` as segment ``number``.

    Raises:
        UserError: the segment exists already, so somebody else writes to this folder.
    """
    path = folder / segment_name(number)
    if path.exists():
        raise UserError(f"{path} exists already: does another process write to this replay folder?")
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    data = sink.getvalue()
    line = f"{hashlib.sha256(data).hexdigest()}  {path.name}\n".encode()
    write_whole(path.with_name(path.name + ".sha256"), lambda file: file.write(line))
    write_whole(path, lambda file: file.write(data))


class RefusedSegment(Exception):
    """A segment that cannot be trusted; the message says why."""


def read_segment(folder: Path, number: int) -> pa.Table:
    """The table of segment ``number``; the checksum is compared before anything is parsed.

    Raises:
        RefusedSegment: torn, altered, foreign, or of a newer format.
    """
    path = folder / segment_name(number)
    checksum = path.with_name(path.name + ".sha256")
    try:
        data = path.read_bytes()
        expected = checksum.read_bytes().split()[:1]
    except FileNotFoundError as error:
        missing = Path(str(error.filename)).name
        raise RefusedSegment("no checksum beside it" if missing == checksum.name else "missing") from error
    if expected != [hashlib.sha256(data).hexdigest().encode()]:
        raise RefusedSegment("torn or altered: its checksum differs")
    try:
        reader = pa.ipc.open_file(pa.py_buffer(data))
        problem = format_problem(reader.schema)
        if problem is not None:
            raise RefusedSegment(problem)
        table = reader.read_all()
        table.validate(full=True)  # text that is no UTF-8, offsets beyond the end: a checksum says nothing of those
        return table
    except (pa.ArrowInvalid, OSError) as error:
        raise RefusedSegment(f"not an Arrow file: {error}") from error


def list_segments(folder: Path) -> tuple[list[int], dict[str, str]]:
    """Segment numbers in order (gaps included as numbers), and what in ``folder`` is not ours, with the reason."""
    numbers: list[int] = []
    refused: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        match = _SEGMENT.fullmatch(path.name)
        if match and path.name == segment_name(int(match[1])):
            numbers.append(int(match[1]))
        elif path.name.endswith(".part"):
            refused[path.name] = "a write that was never finished"
        elif not _OURS.fullmatch(path.name):
            refused[path.name] = "not a file of a replay store"
    return list(range(1, max(numbers, default=0) + 1)), refused
