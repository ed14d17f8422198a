"""Parquet files, as Hugging Face's hub and data warehouses have them."""

from collections.abc import Iterator
from typing import Any

from calibrated_rl.logs.containers.base import BY_BYTES
from calibrated_rl.logs.row import Row
from calibrated_rl.logs.streams import LogFile
from calibrated_rl.logs.tables import rows_of_batches

BATCH = 256
"""Rows that are read at once: dialogues are some KiB each."""


class ParquetContainer:
    """Each row of the table is a record."""

    title = "Parquet"
    rank = BY_BYTES
    has_columns = True

    def recognises(self, file: LogFile) -> bool:
        return file.head.startswith(b"PAR1")

    def rows(self, file: LogFile) -> Iterator[Row]:
        yield from rows_of_batches(file, self.title, _batches)


def _batches(file: LogFile) -> Iterator[Any]:
    from pyarrow import parquet

    with file.buffered() as stream:
        yield from parquet.ParquetFile(stream).iter_batches(batch_size=BATCH)
