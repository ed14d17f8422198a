"""The value of a turn that a run trains ``static`` with: fitted, and compared with the ridge regression."""

import logging
import time
from collections.abc import Mapping

from calibrated_rl.data.dialogue import Split
from calibrated_rl.run.turn_value import turn_value_method
from calibrated_rl.training.run_parts import RunParts
from calibrated_rl.turn_values.base import TurnValue, TurnValueInputs

logger = logging.getLogger(__name__)

RIDGE = "ridge"


def fit_turn_value(run: RunParts) -> tuple[TurnValue, Mapping[str, float]]:
    """The fitted value and metrics of it: its R² and that of the ridge regression on the same dialogues, which neither
    was fitted to. Uses the learner's slot ``POLICY``: the arm begins afterwards."""
    inputs, began = run.inputs, time.monotonic()
    method = turn_value_method(inputs.config)
    value_inputs = TurnValueInputs(
        logs=inputs.logs[Split.CALIBRATION], monitor=inputs.logs[Split.MONITOR], tuning=inputs.logs[Split.TUNING],
        chat=run.models.policy.chat, learner=run.cluster.learner, fit_value_head=run.fits.value_head,
    )  # fmt: skip
    value = method.fit(value_inputs)
    metrics = {"seconds_turn_value": time.monotonic() - began}
    # A model that was fitted to all calibration logs is judged by those of the split for hyperparameters.
    split = Split.CALIBRATION if method.cross_fits else Split.TUNING
    metrics["turn_value_r2"] = value.explained(inputs.logs[split])
    message = f"{inputs.config.training.turn_value} {metrics['turn_value_r2']:.3f}"
    if inputs.config.training.turn_value != RIDGE:
        from calibrated_rl.turn_values.ridge import RidgeValue  # loads scikit-learn

        ridge = RidgeValue(inputs.logs[Split.CALIBRATION], inputs.logs[Split.TUNING])
        metrics["turn_value_r2_ridge"] = ridge.explained(inputs.logs[split])
        message += f", {RIDGE} {metrics['turn_value_r2_ridge']:.3f}"
    which = "calibration logs, each by models that have not seen it" if method.cross_fits else "tuning logs"
    logger.info(f"static: share of the returns' variance that the value of a turn explains on {which}: {message}")
    return value, metrics
