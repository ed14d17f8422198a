"""Arrow files: what Hugging Face ``datasets`` saves and caches (streams), and Feather (files)."""

from collections.abc import Iterator
from typing import Any

from calibrated_rl.logs.containers.base import BY_BYTES
from calibrated_rl.logs.row import Row
from calibrated_rl.logs.streams import LogFile
from calibrated_rl.logs.tables import rows_of_batches

_FILE, _STREAM = b"ARROW1", b"\xff\xff\xff\xff"


class ArrowContainer:
    """Each row of the table is a record."""

    title = "Arrow"
    rank = BY_BYTES
    has_columns = True

    def recognises(self, file: LogFile) -> bool:
        return file.head.startswith((_FILE, _STREAM))

    def rows(self, file: LogFile) -> Iterator[Row]:
        yield from rows_of_batches(file, self.title, _batches)


def _batches(file: LogFile) -> Iterator[Any]:
    import pyarrow as pa

    with file.buffered() as stream:
        if file.head.startswith(_STREAM):
            with pa.ipc.open_stream(stream) as reader:
                yield from reader
        else:
            with pa.ipc.open_file(stream) as reader:
                for index in range(reader.num_record_batches):
                    yield reader.get_batch(index)
