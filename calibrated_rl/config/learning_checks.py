"""Checks of what a policy and a simulator learn from: the loss, the calibration method; see ``checks.py``."""

from collections.abc import Iterator
from contextlib import suppress

from calibrated_rl.components.component import build, import_path
from calibrated_rl.config.engine_checks import problem_of_method
from calibrated_rl.config.estimator_checks import problems_of_estimators
from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.config.without_effect import calibrates_again
from calibrated_rl.errors import UserError
from calibrated_rl.settings.fields import Problem
from calibrated_rl.settings.secrets import has_absent_secrets


def problems_of_learning(config: RunConfig) -> Iterator[Problem]:
    """Settings that a policy cannot be trained with, or that would train it in another way than they say.

    Builds the loss and the calibration method, whose own settings ``problems_of_parts`` checks.
    """
    from calibrated_rl.learner.losses.check import check_policy_loss, resolve_loss

    reasons = {
        "policy": "log-probs at temperature 0 are not finite, and a group of greedy dialogues would be one dialogue",
        "simulator": "its shift is measured by how likely it finds human replies at the temperature it samples with",
    }
    for role, reason in reasons.items():
        if not (temperature := getattr(config, role).sampling.temperature):
            yield Problem(
                (role, "sampling", "temperature"), f"is {temperature}: {reason}; set it above 0, such as 1.0 (the "
                "held-out evaluation has a greedy setting of its own)",
            )  # fmt: skip
    training, calibration = config.training, config.calibration
    happens = calibration.trigger.on or 0 < calibration.every < training.updates
    if happens and calibrates_again(config) and not has_absent_secrets(calibration.method_config):
        try:
            method = build(calibration.method, calibration.method_config, "calibration.method_config")
            if (check := getattr(method, "check", None)) is not None:
                check(config.policy.warm_start.epochs)
            if calibration.trigger.effective_share and not getattr(method, "weighs_logs", False):
                yield Problem(
                    ("calibration", "trigger", "effective_share"),
                    f"is {calibration.trigger.effective_share:g}, and {calibration.method} gives every log the same "
                    "weight: all of them stay effective",
                )
        except UserError as error:
            yield Problem(("policy", "warm_start", "epochs"), str(error), named=False)
    with suppress(UserError):  # a method that does not exist is named elsewhere
        yield from problem_of_method(config, import_path(calibration.method))
    yield from problems_of_estimators(config)
    for arm in ("", *training.loss_configs):
        path, settings = training.loss_of(arm)
        if has_absent_secrets(settings):
            continue
        try:
            loss = resolve_loss((path, settings))
            check_policy_loss(loss, settings, advantage=training.advantage, minibatches=training.minibatches)
        except UserError as error:
            of_arm = f" of the arm {arm}" if arm else ""
            yield Problem(("training", "loss"), f"training.loss{of_arm}: {error}", named=False)
