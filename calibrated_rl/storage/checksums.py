"""SHA-256 of the files of a model or a checkpoint, in a file beside them that ``sha256sum --check`` understands."""

import hashlib
import os
from pathlib import Path

from calibrated_rl.errors import UserError, printable

NAME = "checksums.sha256"


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_checksums(folder: Path) -> None:
    """Write the checksums of all files in and below ``folder``."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file != folder / NAME)
    lines = [f"{_digest(file)}  {file.relative_to(folder).as_posix()}\n" for file in files]
    partial = folder / f"{NAME}.part"
    partial.write_text("".join(lines), encoding="utf-8")
    os.replace(partial, folder / NAME)


def check_checksums(folder: Path) -> None:
    """Compare the files of ``folder`` with their checksums, before anything of them is parsed.

    Raises:
        UserError: there are no checksums, or a file is missing, torn or altered; names the file.
    """
    checksum_file = folder / NAME
    if not checksum_file.is_file():
        raise UserError(f"{folder} has no {NAME}: it was not written whole, or not by this program")
    for line in checksum_file.read_text(encoding="utf-8", errors="replace").splitlines():
        expected, _, name = line.partition("  ")
        file = folder / name
        if not name or not file.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{checksum_file}: '{printable(line)}' is not the checksum of a file in that folder")
        if not file.is_file():
            raise UserError(f"{folder} is not whole: {name} is missing")
        if _digest(file) != expected:
            raise UserError(f"{file} is torn or altered: its checksum differs")
