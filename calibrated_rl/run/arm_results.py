"""Reads the result of an arm, ``arms/ARM-SEED.json``, and refuses one that this version does not write."""

from pathlib import Path
from typing import Any

from calibrated_rl.errors import UserError
from calibrated_rl.storage.files import read_json


def read_result(file: Path, *required_keys: str) -> dict[str, Any]:
    """The result in ``file``; its metrics are rows of ``update``, ``name`` and ``value``.

    Args:
        required_keys: further keys that it must have.

    Raises:
        UserError: it is no JSON object, lacks one of them, or a metric is something else; names the file.
    """
    result: dict[str, Any] = read_json(file)
    if missing_keys := [key for key in required_keys if key not in result]:
        raise UserError(
            f"{file} has no '{missing_keys[0]}': it is no result of an arm, or of another "
            "version; remove it from the folder"
        )
    if not isinstance(metrics := result.get("metrics"), list):
        raise UserError(f"{file} contains no list of metrics")
    for row in metrics:
        if not isinstance(row, dict) or not {"update", "name", "value"} <= row.keys():
            raise UserError(f"{file}: a metric has no update, name or value")
        update, name, value = row["update"], row["name"], row["value"]
        numbers = isinstance(update, int) and isinstance(value, int | float) and not isinstance(value, bool)
        if not numbers or not isinstance(name, str):
            raise UserError(f"{file}: metric '{name}' of update '{update}' is not a number")
    return result
