"""Names that earlier versions used: their runs are still read, and a config with an old name gets an error that says
the new one."""

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
VALUES: Mapping[tuple[str, ...], Mapping[str, str]] = {
    ("calibration", "source"): {"upbringing": "pretraining"},
    ("shift", "estimators"): {"likeness": "similarity", "figures": "surface"},
}
"""Choices of a setting, or entries of a list of them."""
_DIMENSIONS = ("style", "disclosure", "clarification", "reaction", "total")
_TESTS = ("accuracy", "auc", "tv", "unmatched_accuracy", "unmatched_auc")
METRICS: Mapping[str, str] = {
    "likeness": "similarity",
    **{f"likeness_{dimension}": f"similarity_{dimension}" for dimension in _DIMENSIONS},
    "figures": "surface",
    **{f"figures_{test}": f"surface_{test}" for test in _TESTS},
}
"""Estimators and their metrics in the summaries of earlier runs."""


def moved_hint(path: str) -> str:
    """What to say of an import path that has moved; nothing of any other."""
    return f"; it has moved: write {MOVED[path]}" if path in MOVED else ""


def current_metric(name: str) -> str:
    """Today's name of an estimator or of a metric of one: ``likeness_total`` is ``similarity_total`` now."""
    return METRICS.get(name, name)


def old_names(values: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Keys in ``values`` under which a name of an earlier version stands, and what to say of it."""
    spread = {
        key: f"{', '.join(map('.'.join, new_keys[:-1]))} and {'.'.join(new_keys[-1])}"
        for key, new_keys in SPREAD.items()
    }
    for key, new_name in {**RENAMED, **spread}.items():
        if key[-1] in _below(values, key[:-1]):
            yield key, f"is called {new_name} now"
    for key, choices in VALUES.items():
        value = _below(values, key[:-1]).get(key[-1])
        for choice in value if isinstance(value, list) else [value]:
            if isinstance(choice, str) and choice in choices:
                yield key, f"has '{choice}', which is called '{choices[choice]}' now"


def _below(values: Mapping[str, Any], key: tuple[str, ...]) -> Mapping[str, Any]:
    """The settings under ``key``; none where there are no settings."""
    for name in key:
        subtree = values.get(name)
        values = subtree if isinstance(subtree, Mapping) else {}
    return values


def up_to_date(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the names of today."""
    settings: dict[str, Any] = _renamed(values, ())
    for key, new_keys in SPREAD.items():
        if key[-1] not in (parent := _below(settings, key[:-1])):
            continue
        value = parent.pop(key[-1])  # type: ignore[attr-defined]
        for new_key in new_keys:
            tree: Any = value
            for name in reversed(new_key):
                tree = {name: tree}
            # What the settings say under the new key wins over what they say under the old one.
            settings = laid_over(tree, settings)
    return settings


def _renamed(values: Any, at: tuple[str, ...]) -> Any:
    if isinstance(values, Mapping):
        return {RENAMED.get((*at, str(key)), key): _renamed(value, (*at, str(key))) for key, value in values.items()}
    if isinstance(values, list):
        return [_renamed(value, at) for value in values]
    if not isinstance(values, str):
        return values
    return VALUES.get(at, {}).get(values, MOVED.get(values, values))
