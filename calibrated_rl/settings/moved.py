"""What earlier versions called otherwise: their runs are read, and configs that use an old name are told the new
one."""

from collections.abc import Iterator, Mapping
from typing import Any

from calibrated_rl.settings.yaml_files import laid_over

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
SPREAD: Mapping[tuple[str, ...], tuple[tuple[str, ...], ...]] = {
    ("learner", "max_grad_norm"): (
        ("training", "optimizer", "max_grad_norm"),
        ("policy", "warm_start", "optimizer", "max_grad_norm"),
        ("simulator", "warm_start", "optimizer", "max_grad_norm"),
        ("proxy", "sft", "optimizer", "max_grad_norm"),
        ("calibration", "sft", "optimizer", "max_grad_norm"),
    )
}
"""Keys that there are several of now."""
VALUES: Mapping[tuple[str, ...], Mapping[str, str]] = {("calibration", "source"): {"upbringing": "pretraining"}}
"""Choices of a setting."""


def where_now(path: str) -> str:
    """What to say of an import path that has moved; nothing of any other."""
    return f"; it has moved: write {MOVED[path]}" if path in MOVED else ""


def old_keys(values: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Keys in ``values`` that are called otherwise now, and what they are called."""
    told = {key: f"{', '.join(map('.'.join, new[:-1]))} and {'.'.join(new[-1])}" for key, new in SPREAD.items()}
    for key, now in {**RENAMED, **told}.items():
        if key[-1] in _below(values, key[:-1]):
            yield key, now


def _below(values: Mapping[str, Any], key: tuple[str, ...]) -> Mapping[str, Any]:
    """What stands at ``key``; nothing where no settings do."""
    for part in key:
        found = values.get(part)
        values = found if isinstance(found, Mapping) else {}
    return values


def up_to_date(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the names of today."""
    found: dict[str, Any] = _renamed(values, ())
    for key, places in SPREAD.items():
        if key[-1] not in (old := _below(found, key[:-1])):
            continue
        value = old.pop(key[-1])  # type: ignore[attr-defined]
        for place in places:
            spread: Any = value
            for part in reversed(place):
                spread = {part: spread}
            found = laid_over(spread, found)
    return found


def _renamed(values: Any, at: tuple[str, ...]) -> Any:
    if isinstance(values, Mapping):
        return {RENAMED.get((*at, str(key)), key): _renamed(value, (*at, str(key))) for key, value in values.items()}
    if isinstance(values, list):
        return [_renamed(value, at) for value in values]
    if not isinstance(values, str):
        return values
    return VALUES.get(at, {}).get(values, MOVED.get(values, values))
