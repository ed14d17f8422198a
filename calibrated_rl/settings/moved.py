"""What earlier versions called otherwise: their runs are read, and configs that use an old name are told the new
one."""

from collections.abc import Iterator, Mapping
from typing import Any

MOVED = {
    "calibrated_rl.tasks.front_desk:FrontDesk": "calibrated_rl.examples.front_desk:FrontDesk",
    "calibrated_rl.users.front_desk_human:FrontDeskHuman": "calibrated_rl.examples.front_desk:FrontDeskHuman",
    "calibrated_rl.tasks.casino:Casino": "calibrated_rl.examples.casino:Casino",
    "calibrated_rl.logs.casino:CasinoLogs": "calibrated_rl.examples.casino:CasinoLogs",
}
"""Import paths of parts."""
RENAMED: Mapping[tuple[str, ...], str] = {
    ("upbringing",): "pretraining",
    ("policy", "start"): "warm_start",
    ("simulator", "start"): "warm_start",
}
"""Keys, with the last part that they have now."""
VALUES: Mapping[tuple[str, ...], Mapping[str, str]] = {("calibration", "source"): {"upbringing": "pretraining"}}
"""Choices of a setting."""


def where_now(path: str) -> str:
    """What to say of an import path that has moved; nothing of any other."""
    return f"; it has moved: write {MOVED[path]}" if path in MOVED else ""


def old_keys(values: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Keys in ``values`` that are called otherwise now, and their new last part."""
    for key, new in RENAMED.items():
        found: Any = values
        for part in key[:-1]:
            found = found.get(part) if isinstance(found, Mapping) else None
        if isinstance(found, Mapping) and key[-1] in found:
            yield key, new


def up_to_date(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the names of today."""
    found: dict[str, Any] = _renamed(values, ())
    return found


def _renamed(values: Any, at: tuple[str, ...]) -> Any:
    if isinstance(values, Mapping):
        return {
            RENAMED.get((*at, str(key)), key): _renamed(value, (*at, str(key))) for key, value in values.items()
        }
    if isinstance(values, list):
        return [_renamed(value, at) for value in values]
    if not isinstance(values, str):
        return values
    return VALUES.get(at, {}).get(values, MOVED.get(values, values))
