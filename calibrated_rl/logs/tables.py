"""Tables of Arrow and Parquet as JSON data, record by record."""

import base64
import math
from collections.abc import Callable, Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

from calibrated_rl.errors import UserError, first_line
from calibrated_rl.logs.row import Row
from calibrated_rl.logs.streams import LogFile


def rows_of_batches(file: LogFile, title: str, batches: Callable[[LogFile], Iterator[Any]]) -> Iterator[Row]:
    """The rows of a table's record batches.

    Raises:
        UserError: the file is torn or damaged.
    """
    import pyarrow as pa

    number = 0
    try:
        for batch in batches(file):
            for content in batch.to_pylist():
                number += 1
                yield Row(str(file.path), number, {str(key): json_data(value) for key, value in content.items()})
    except (pa.ArrowException, OSError, EOFError, ValueError, OverflowError) as error:  # texts and times that are none
        raise UserError(
            f"{file.path} is a torn or damaged {title} file ({first_line(error)[:200]}): copy or download it again"
        ) from error


def json_data(value: Any) -> Any:
    """``value`` as JSON has it. Fields of inner objects without a value are left out, because a table cannot leave them
    out; a number that is NaN is None, times are ISO 8601, bytes that are no UTF-8 base64."""
    if isinstance(value, dict):
        plain = {str(key): json_data(each) for key, each in value.items()}
        return {key: each for key, each in plain.items() if each is not None}
    if isinstance(value, list):
        if value and all(isinstance(each, tuple) and len(each) == 2 for each in value):  # a map
            return json_data(dict(value))
        return [json_data(each) for each in value]
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal):
        return float(value) if value.is_finite() else None
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    return value
