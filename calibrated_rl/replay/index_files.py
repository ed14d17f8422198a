"""Index files: the index data of many segments in one small file, so that a long run opens quickly.

``index-000064.arrow`` contains the columns ``ROWS`` of segments 1 to 64, and so on: it is written with its last
segment. It records the size and checksum of each segment. A segment whose size and checksum are unchanged is not read
on opening; it is checked when its dialogues are first requested. An index file only repeats data of the segments: one
that is missing, torn, foreign or of another version is not used, and written again with the next segment.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from calibrated_rl.replay.index import ROWS
from calibrated_rl.replay.segments import Refused, read_checked, seal, write_checked

SEGMENTS = 64
"""Segments in one index file: few enough that reading the segments after the last file is quick, many enough that there
are few files."""
_VERSION_KEY, _VERSION, _CONTENT_KEY = b"calibrated_rl.index", b"1", b"calibrated_rl.segments"


def last_of(number: int) -> int:
    """The last segment of the index file that covers segment ``number``."""
    return -(-number // SEGMENTS) * SEGMENTS


def write_index(folder: Path, last: int, rows: Mapping[int, pa.RecordBatch]) -> None:
    """Write the index file that ends with segment ``last`` from the rows of its segments that can be read."""
    content = [[number, batch.num_rows, seal(folder, number)] for number, batch in sorted(rows.items())]
    metadata = {_VERSION_KEY: _VERSION, _CONTENT_KEY: json.dumps(content).encode()}
    batches = [batch for _, batch in sorted(rows.items())]
    table = pa.Table.from_batches(batches, ROWS).combine_chunks().replace_schema_metadata(metadata)
    write_checked(_path(folder, last), table, pa.ipc.IpcWriteOptions(compression="lz4"))


def read_index(folder: Path, last: int) -> dict[int, pa.RecordBatch]:
    """Rows by segment, of those segments whose size and checksum are still those in the index file that ends with
    segment ``last``; empty where that file cannot be used."""
    try:
        table = read_checked(_path(folder, last), _problem)
    except Refused:
        return {}
    rows_by_segment: dict[int, pa.RecordBatch] = {}
    (batch,) = table.combine_chunks().replace_schema_metadata(None).to_batches() or [_NOTHING]
    first = 0
    for number, length, sealed in json.loads(table.schema.metadata[_CONTENT_KEY]):
        if sealed is not None and seal(folder, number) == sealed:
            rows_by_segment[number] = batch.slice(first, length)
        first += length
    return rows_by_segment


_NOTHING = pa.RecordBatch.from_pylist([], schema=ROWS)


def _problem(schema: Any) -> str | None:
    metadata = schema.metadata or {}
    is_index = metadata.get(_VERSION_KEY) == _VERSION and _CONTENT_KEY in metadata
    if not is_index or not schema.equals(ROWS, check_metadata=False):
        return "not an index file of this version"
    return None


def _path(folder: Path, last: int) -> Path:
    return folder / f"index-{last:06d}.arrow"
