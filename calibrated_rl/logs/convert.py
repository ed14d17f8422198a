"""Writes dialogues of any known format as JSON Lines of the project's own format (``record.py``)."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from calibrated_rl.errors import UserError
from calibrated_rl.logs.base import LogProblem
from calibrated_rl.logs.options import FileSettings
from calibrated_rl.logs.reading import LogReading, ReadingReport, nothing_usable
from calibrated_rl.storage.files import to_disk


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What was written, and what was not."""

    file: Path
    dialogues: int
    problems: list[LogProblem]
    """Dialogues and records that were refused."""
    report: ReadingReport
    """What was found in each file, and what had to be decided."""


def convert_files(names: Sequence[str], out: Path, settings: FileSettings | None = None) -> Conversion:
    """Write the dialogues of the files that ``names`` mean into ``out``, whole or not at all.

    The same files give the same bytes. One dialogue is in memory at a time, except where a file is read as a whole (one
    JSON value, a turn a row).

    Raises:
        UserError: there is no such file, one is torn or of a kind that is not read, no dialogue fits, or ``out`` is one
            of the files.
    """
    reading = LogReading(names, settings)
    if out.resolve() in {place.path.resolve() for place in reading.places}:
        raise UserError(f"{out} is one of the files that are read: name another one for the result")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".part")
    n_dialogues = 0
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as stream:
            for _, line in reading:
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")
                n_dialogues += 1
        if not n_dialogues:
            raise nothing_usable(reading)
        to_disk(partial)
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)
    return Conversion(file=out, dialogues=n_dialogues, problems=reading.problems, report=reading.report)
