"""Import paths that earlier versions had elsewhere: runs of theirs are read, configs of theirs are told where."""

from typing import Any

MOVED = {
    "calibrated_rl.tasks.front_desk:FrontDesk": "calibrated_rl.examples.front_desk:FrontDesk",
    "calibrated_rl.users.front_desk_human:FrontDeskHuman": "calibrated_rl.examples.front_desk:FrontDeskHuman",
    "calibrated_rl.tasks.casino:Casino": "calibrated_rl.examples.casino:Casino",
    "calibrated_rl.logs.casino:CasinoLogs": "calibrated_rl.examples.casino:CasinoLogs",
}


def where_now(path: str) -> str:
    """What to say of an import path that has moved; nothing of any other."""
    return f"; it has moved: write {MOVED[path]}" if path in MOVED else ""


def with_new_paths(values: Any) -> Any:
    """Settings with the import paths of today."""
    if isinstance(values, dict):
        return {key: with_new_paths(value) for key, value in values.items()}
    if isinstance(values, list):
        return [with_new_paths(value) for value in values]
    return MOVED.get(values, values) if isinstance(values, str) else values
