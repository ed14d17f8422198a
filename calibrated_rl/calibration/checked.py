"""Calibration methods, wrapped in checks (``components/checked.py``)."""

from collections.abc import Callable, Mapping
from typing import Any, cast

from calibrated_rl.calibration.base import CalibrationInputs, CalibrationMethod
from calibrated_rl.components.checked import CheckedPart
from calibrated_rl.components.component import build
from calibrated_rl.components.plain_data import NotPlain, kind_of, number, words
from calibrated_rl.tasks.checked import refuse_missing

METRIC = "simulator_monitor_nll"


def build_method(path: str, values: Mapping[str, Any] | None, location: str) -> CalibrationMethod:
    """The calibration method at import path ``path``, with checks.

    Raises:
        UserError: it cannot be built, or is no calibration method.
    """
    return cast("CalibrationMethod", CheckedMethod(build(path, values, location)))


class CheckedMethod(CheckedPart):
    """A calibration method whose metrics, and whose model in its folder, are used or refused."""

    _KIND = "calibration method"
    _DRIVES = ("align", "effective_share")

    def __init__(self, part: Any) -> None:
        refuse_missing(part, self._KIND, ("align",))
        super().__init__(part)

    def _checks(self) -> Mapping[str, Callable[..., Any]]:
        return {"align": _aligned, "effective_share": _share}


def _aligned(returned: Any, inputs: CalibrationInputs) -> dict[str, float]:
    if not isinstance(returned, Mapping):
        raise NotPlain("it", f"is {kind_of(returned)}: it must be a mapping from metrics to numbers")
    metrics = {words(name, "a name"): number(value, f"[{name!r}]") for name, value in returned.items()}
    if METRIC not in metrics:
        raise NotPlain("it", f"lacks '{METRIC}', the nats a token on the monitor split")
    if not (inputs.folder / "config.json").is_file():
        raise NotPlain(f"{inputs.folder}", "contains no model: the aligned simulator must be saved there")
    return metrics


def _share(returned: Any, inputs: CalibrationInputs) -> float:
    share = number(returned, "it")
    if not 0 < share <= 1 + 1e-9:
        raise NotPlain("it", f"is {share:g}: a share is above 0 and at most 1")
    return share
