"""Checks of ``calibration.trigger`` together with the settings that it depends on; called by ``checks.py``."""

from collections.abc import Iterator

from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.settings.fields import Problem
from calibrated_rl.shift.sizes import FOLDS, least_to_halve


def problems_of_trigger(config: RunConfig) -> Iterator[Problem]:
    """Triggers that could never fire, or on something that does not move with the policy."""
    trigger, shift, updates = config.calibration.trigger, config.shift, config.training.updates
    if trigger.on and trigger.at_least >= updates:
        yield Problem(
            ("calibration", "trigger", "at_least"), f"is {trigger.at_least}, of training.updates, {updates}: the "
            "trigger could never align",
        )  # fmt: skip
    if trigger.shift == "never":
        return
    least = least_to_halve(FOLDS)
    reasons = {
        "`human` is empty: shift is then measured on logged histories, which do not move with the policy; "
        "calibration.trigger.effective_share needs no human": not config.human,
        "shift.every is 0: nothing is measured": not shift.every,
        f"shift.every is {shift.every}, of training.updates, {updates}: nothing is measured while the policy moves":
            shift.every >= updates,
        f"shift.dialogues is {shift.dialogues}: the null band needs two halves of them, at least {least} in all":
            shift.dialogues < least,
        "shift.null_halvings is 0: there is no null band to leave": not shift.null_halvings,
    }  # fmt: skip
    for reason in (reason for reason, applies in reasons.items() if applies):
        yield Problem(("calibration", "trigger", "shift"), f"is {trigger.shift}, and {reason}")
