"""What a config must not ask of training: settings that are each allowed, and that would together do something else
than they say. Looked at before anything starts, where a policy is trained; a saved run may be judged with any."""

from calibrated_rl.config import RunConfig
from calibrated_rl.errors import UserError
from calibrated_rl.learner.losses.check import check_policy_loss
from calibrated_rl.learner.rank import resolve_loss


def check_training(config: RunConfig) -> None:
    """Refuse settings that a policy cannot be trained with.

    Raises:
        UserError: names them, and the remedy.
    """
    why = {
        "policy": "log-probs at temperature 0 are not finite, and a group of greedy dialogues would be one dialogue",
        "simulator": "its shift is measured by how likely it finds people's replies at the temperature it speaks with",
    }
    for role, reason in why.items():
        temperature = getattr(config, role).sampling.temperature
        if not 0 < temperature < float("inf"):
            raise UserError(
                f"{role}.sampling.temperature is {temperature}: {reason}; set it above 0, such as 1.0 "
                "(the held-out evaluation has a greedy setting of its own)"
            )
    training = config.training
    check_policy_loss(
        resolve_loss((training.loss, dict(training.loss_config))), training.loss_config,
        advantage=training.advantage, minibatches=training.minibatches,
    )  # fmt: skip
