"""CSV and its relatives: a header, then a record a row; the delimiter is found in the header."""

import csv
import io
from collections.abc import Iterator

from calibrated_rl.errors import UserError, printable
from calibrated_rl.logs.containers.base import BY_TEXT
from calibrated_rl.logs.row import Row
from calibrated_rl.logs.streams import LogFile

_DELIMITERS = (",", ";", "\t", "|")
LONGEST_FIELD = 2**26
"""Characters."""


class CsvContainer:
    """Each row is a record of texts, by the names of the columns; an empty field is None.
    A column without a name, such as the index that pandas writes, is ``column 1``."""

    title = "CSV"
    rank = BY_TEXT
    has_columns = True

    def recognises(self, file: LogFile) -> bool:
        return file.name.endswith((".csv", ".tsv", ".tab"))

    def rows(self, file: LogFile) -> Iterator[Row]:
        name = str(file.path)
        csv.field_size_limit(LONGEST_FIELD)
        try:
            with file.open() as stream:
                text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
                yield from _rows(name, text)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{name} is CSV that is not UTF-8 ({error.reason}): convert it, as with "
                f"iconv -f WINDOWS-1252 -t UTF-8 {name} > utf8.csv"
            ) from error


def _rows(name: str, text: Iterator[str]) -> Iterator[Row]:
    lines_read, first = 1, next(text, "")
    while first and not first.strip():
        lines_read, first = lines_read + 1, next(text, "")
    delimiter = max(_DELIMITERS, key=first.count)
    try:
        header = [column.strip() for column in next(csv.reader([first], delimiter=delimiter, strict=True), [])]
    except csv.Error as error:
        raise UserError(f"{name}: the header of the CSV cannot be read ({error})") from error
    header = [column or f"column {number}" for number, column in enumerate(header, start=1)]
    if len(set(header)) < len(header):
        names = ", ".join(printable(repr(column), 40) for column in header)
        raise UserError(f"{name}: each column of a CSV needs a name of its own in the first line; they are {names}")
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    while True:
        number = lines_read + reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            yield Row(name, number, problem=f"not CSV: {error}")
            continue
        if fields is None:
            return
        if not any(field.strip() for field in fields):
            continue
        if len(fields) != len(header):
            yield Row(name, number, problem=f"it has {len(fields)} fields, and the header {len(header)}")
            continue
        pairs = zip(header, fields, strict=True)
        yield Row(name, number, {column: field if field.strip() else None for column, field in pairs})
