"""Calibrated once, as in the paper: as ``calibrated``, with a simulator that is aligned before training only."""

from calibrated_rl.arms.calibrated import Calibrated
from calibrated_rl.config.arms import ArmStyle


class CalibratedOnce(Calibrated):
    """The control for aligning again."""

    name = "calibrated_once"
    style = ArmStyle("calibrated once", "simulator calibrated before training only", "#56B4E9", "<")
    order = 4
    compared_with = ()
    calibrates = "once"
