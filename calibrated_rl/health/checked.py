"""Detectors by name, wrapped in checks: an error of one names the user's line, what it returns is used or refused."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from calibrated_rl.components.checked import CheckedPart
from calibrated_rl.components.component import build, import_path
from calibrated_rl.components.plain_data import flag
from calibrated_rl.components.short_names import full_path
from calibrated_rl.components.user_code import described
from calibrated_rl.errors import UserError
from calibrated_rl.health import detectors
from calibrated_rl.health.base import Detector

DETECTORS = detectors.__name__
KIND = "detector"


class CheckedDetector(CheckedPart):
    """A detector of which every judgement is used or refused."""

    _KIND = KIND

    def _checks(self) -> Mapping[str, Callable[..., Any]]:
        return {"detect": _judgement}


def _judgement(returned: Any, *_: Any) -> bool | None:
    return None if returned is None else flag(returned, "it")


def metric_name(detector: str) -> str:
    """The name of a detector in thresholds and metrics, from its short name or import path.

    Raises:
        UserError: there is no such detector, or its name cannot be that of a metric.
    """
    if ":" not in detector:
        return detector
    cls = import_path(detector)
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not name.isidentifier():
        raise UserError(
            f"{described(cls, KIND) if isinstance(cls, type) else detector}: name is {name!r}: it must be made of "
            "letters, digits and _"
        )
    return name


def build_detectors(names: Sequence[str]) -> list[Detector]:
    """The detectors of these names, in this order, with checks.

    Raises:
        UserError: there is no such detector, or one cannot be built.
    """
    parts = [build(full_path(DETECTORS, name, KIND), {}, f"the detector {name}") for name in names]
    return [cast("Detector", CheckedDetector(part)) for part in parts]
