"""Calibrated, more logs: each re-calibration also learns from as many further *logged* human turns, of the reserve.

The control for ``calibrated_on_policy``: the same number of human turns, on the histories of the logged policy.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from calibrated_rl.arms.calibrated import Calibrated
from calibrated_rl.config.arms import ArmStyle
from calibrated_rl.errors import UserError

if TYPE_CHECKING:
    from calibrated_rl.calibration.base import ExtraTurn
    from calibrated_rl.config.run_config import RunConfig
    from calibrated_rl.data.dialogue import Dialogue, Split
    from calibrated_rl.training.arm_run import ArmRun
    from calibrated_rl.training.training_run import TrainingRun

logger = logging.getLogger(__name__)


class CalibratedMoreLogs(Calibrated):
    """Takes ``calibration.human_turns`` turns of ``calibration.reserve`` at each re-calibration."""

    name = "calibrated_more_logs"
    style = ArmStyle("calibrated, more logs", "and as many extra logged human turns", "#882255", "X")
    order = 7
    compared_with = ()

    def problems(self, config: "RunConfig") -> Iterator[str]:
        if config.calibration.reserve < 1:
            yield f"the arm '{self.name}' needs calibration.reserve above 0"

    def check_logs(self, logs: "Mapping[Split, Sequence[Dialogue]]", reserve: "Sequence[Dialogue]") -> None:
        if not any(log.user_turn_indices()[1:] for log in reserve):
            raise UserError(f"the arm '{self.name}' needs second user turns in calibration.reserve; there is none")

    def train(self, run: "TrainingRun", seed: int) -> "ArmRun":
        from calibrated_rl.training.simulator_calibration import more_logs

        self._reserve: Iterator[ExtraTurn] = more_logs(run.inputs, run.models)
        return super().train(run, seed)

    def further_turns(self, run: "TrainingRun", arm: "ArmRun", update: int) -> "Sequence[ExtraTurn]":
        requested = run.inputs.config.calibration.human_turns
        further = list(islice(self._reserve, requested))
        if len(further) < requested:
            logger.warning(f"calibration.reserve has only {len(further)} of the {requested} further human turns")
        return further
