"""Checks of ``health``: thresholds of detectors that are on, one detector of a name; called by ``checks.py``."""

from collections.abc import Iterator

from calibrated_rl.components.component import import_path
from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.errors import UserError
from calibrated_rl.health.checked import metric_name
from calibrated_rl.health.config import BUILTIN
from calibrated_rl.settings.fields import Key, Problem, dotted, listed, nearest


def problems_of_health(config: RunConfig) -> Iterator[Problem]:
    """Loads the modules of detectors that are named by import path; those that do not exist are reported elsewhere."""
    health, names = config.health, list[str]()
    for number, detector in enumerate(health.detectors):
        key: Key = ("health", "detectors", number)
        try:
            name = metric_name(detector)
        except UserError as error:
            if _exists(detector):
                yield Problem(key, f"{dotted(key)}: {error}", named=False)
            return
        if name in names:
            yield Problem(key, f"is {detector}, and another detector is called {name}, too: take one, or rename yours")
        names.append(name)
    for name in health.thresholds:
        if name in names:
            continue
        if name in BUILTIN:
            text = f"is for a detector that is off: add {name} to health.detectors"
        elif names:
            text = f"is for no detector: choose {listed(names)}{nearest(name, names)}"
        else:
            text = "is for no detector: health.detectors is empty"
        yield Problem(("health", "thresholds", name), text)


def _exists(detector: str) -> bool:
    try:
        return hasattr(import_path(detector), "Config")
    except UserError:
        return False
