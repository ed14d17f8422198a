"""Whether loss, advantages and the steps of an update fit each other: what they would do otherwise has another name."""

from collections.abc import Mapping
from typing import Any

from calibrated_rl.errors import UserError
from calibrated_rl.learner.losses.base import Loss


def check_policy_loss(loss: Loss, settings: Mapping[str, Any], *, advantage: str, minibatches: int) -> None:
    """Refuse a loss that cannot train a policy on rewards, or settings of it that would do nothing.

    Args:
        settings: of the loss, as they stand in the config: without those that were left at their default.
        advantage, minibatches: those of ``training``.

    Raises:
        UserError: names the settings that contradict each other, and the remedy.
    """
    name = type(loss).__name__
    if not loss.policy_gradient:
        raise UserError(
            f"training.loss: {name} is no policy-gradient loss: it would pass over all rewards. Choose one of "
            "calibrated_rl/learner/losses, such as calibrated_rl.learner.losses.grpo:GRPO"
        )
    if loss.unit != 1:
        raise UserError(f"training.loss: {name} takes samples in units of {loss.unit}, and rollouts come one by one")
    if loss.advantages and advantage not in loss.advantages:
        raise UserError(
            f"training.advantage is '{advantage}', and {name} is defined with {' or '.join(loss.advantages)}: set "
            f"training.advantage={loss.advantages[0]}, or choose another training.loss"
        )
    if reasons := loss.without_effect(settings, minibatches):
        raise UserError(f"training.loss_config: {'; '.join(reasons)}: take it out, or change the other")
