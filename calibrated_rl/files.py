"""JSON files: written whole or not at all, and read with a clear word where they are broken."""

import json
import os
from pathlib import Path
from typing import Any

from calibrated_rl.errors import UserError


def write_json(file: Path, content: Any) -> None:
    """Write whole or not at all; makes the folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(file.name + ".part")
    aside.write_text(json.dumps(content, indent=1, sort_keys=True), encoding="utf-8")
    os.replace(aside, file)


def read_json(file: Path, kind: type = dict) -> Any:
    """What ``file`` holds.

    Args:
        kind: what is expected, ``dict`` for an object or ``list`` for an array.

    Raises:
        UserError: no such file, not JSON, or of another kind; names the file.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{file.parent} has no {file.name}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is not readable JSON: {error}") from error
    if not isinstance(content, kind):
        raise UserError(f"{file} does not hold a JSON {'object' if kind is dict else 'array'}")
    return content
