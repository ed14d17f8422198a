"""JSON Lines: a JSON value a line, UTF-8. Blank lines are ignored. What no other container takes is read as this."""

import json
from collections.abc import Iterator

from calibrated_rl.logs.base import object_of
from calibrated_rl.logs.containers.base import ANY_TEXT
from calibrated_rl.logs.row import Row
from calibrated_rl.logs.streams import LogFile

LONGEST_LINE = 64 * 2**20
"""Bytes. A dialogue of human users is some KiB; what is longer has lost its line breaks."""


class JsonLinesContainer:
    """Each line that is not blank is a record; one that is no JSON costs no other line."""

    title = "JSON Lines"
    rank = ANY_TEXT
    has_columns = False

    def recognises(self, file: LogFile) -> bool:
        return True

    def rows(self, file: LogFile) -> Iterator[Row]:
        name = str(file.path)
        with file.open() as stream:
            number = 0
            while line := stream.readline(LONGEST_LINE + 1):
                number += 1
                is_short_enough = len(line) <= LONGEST_LINE
                while len(line) > LONGEST_LINE and not line.endswith(b"\n"):
                    line = stream.readline(LONGEST_LINE + 1) or b"\n"
                if not is_short_enough:
                    yield Row(name, number, problem=f"the line is longer than {LONGEST_LINE >> 20} MiB")
                elif line.strip():
                    yield _row(name, number, line.rstrip(b"\r\n"))


def _row(name: str, number: int, line: bytes) -> Row:
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        return Row(name, number, json.loads(text, object_pairs_hook=object_of))
    except UnicodeDecodeError as error:
        problem = f"not UTF-8 at byte {error.start + 1} of the line"
    except json.JSONDecodeError as error:
        problem = f"not JSON: {error.msg} at column {error.colno}"
    except (ValueError, RecursionError) as error:
        problem = f"not usable JSON: {error}"
    return Row(name, number, problem=problem)
