"""Converts logs of other formats into the project's own."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from calibrated_rl.errors import UserError
from calibrated_rl.logs.convert import Conversion, convert_files
from calibrated_rl.logs.options import ANY, FileSettings
from calibrated_rl.settings.fields import NotAllowed, from_plain


def file_settings(values: Mapping[str, Any]) -> FileSettings:
    """How files are read.

    Raises:
        UserError: a value is not allowed; names it.
    """
    try:
        settings: FileSettings = from_plain(FileSettings, values)
    except NotAllowed as error:
        raise UserError("; ".join(map(str, error.problems))) from error
    return settings


def convert_logs(
    files: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    format: str = ANY,
    columns: Mapping[str, str] | None = None,
    policy: Sequence[str] = (),
    users: Sequence[str] = (),
    strict: bool = False,
    mask_personal_data: bool = False,
) -> Conversion:
    """Write logs of any known format as JSON Lines of the project's own format, whole or not at all.

    Args:
        files: files, folders, patterns such as ``logs/*.gz``, or data sets of the hub that are on this machine.
        out: the file to write; replaced if it is there.
        format: a module of ``logs/formats/``; ``auto``: found by the keys of the records.
        columns: names of the files' own columns or keys, by what they contain (``dialogue``, ``side``, ``text``, ...).
        policy: speakers that are the policy's side, or ``KEY=VALUE`` of what stands beside a turn.
        users: the same of the users' side.
        strict: refuse dialogues with keys that are not known, instead of keeping them as metadata.
        mask_personal_data: replace e-mail addresses, phone and card numbers.

    Raises:
        UserError: there is no such file, one is torn or of a kind that is not read, no dialogue fits, or a setting is
            not allowed.
    """
    names = [files] if isinstance(files, str | Path) else files
    settings = file_settings(
        {
            "format": format, "columns": dict(columns or {}), "policy": list(policy), "users": list(users),
            "strict": strict, "mask_personal_data": mask_personal_data,
        }
    )  # fmt: skip
    return convert_files([str(name) for name in names], Path(out), settings)
