"""Index files: what the index needs to know of many segments in one small file, so that a long run opens quickly.

``index-000064.arrow`` holds the columns ``ROWS`` of segments 1 to 64, and so on: it is written when its last segment
is. It says of each segment which size and checksum it had. A segment of which the folder says the same now is not read
on opening; it is checked when its dialogues are first wanted. An index file is a copy of what the segments say: one
that is missing, torn, foreign or of another version is not used, and written anew with the next segment.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from calibrated_rl.replay.index import ROWS
from calibrated_rl.replay.segments import Refused, read_checked, seal, write_checked

SEGMENTS = 64
"""In one index file: few enough that the segments after the last one are quickly read whole, many enough that the files
stay few."""
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
    """Rows by segment, of those segments whose size and checksum are still as the index file that ends with segment
    ``last`` says; none where that file cannot be used."""
    try:
        table = read_checked(_path(folder, last), _problem)
    except Refused:
        return {}
    found: dict[int, pa.RecordBatch] = {}
    (batch,) = table.combine_chunks().replace_schema_metadata(None).to_batches() or [_NOTHING]
    first = 0
    for number, length, sealed in json.loads(table.schema.metadata[_CONTENT_KEY]):
        if sealed is not None and seal(folder, number) == sealed:
            found[number] = batch.slice(first, length)
        first += length
    return found


_NOTHING = pa.RecordBatch.from_pylist([], schema=ROWS)


def _problem(schema: Any) -> str | None:
    metadata = schema.metadata or {}
    ours = metadata.get(_VERSION_KEY) == _VERSION and _CONTENT_KEY in metadata
    if not ours or not schema.equals(ROWS, check_metadata=False):
        return "not an index file of this version"
    return None


def _path(folder: Path, last: int) -> Path:
    return folder / f"index-{last:06d}.arrow"
