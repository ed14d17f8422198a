"""The models with value heads that a run's config asks for: those that value turns, and a critic."""

from calibrated_rl import turn_values
from calibrated_rl.components.component import build, import_path
from calibrated_rl.components.short_names import full_path
from calibrated_rl.config.arms import find_arms
from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.errors import UserError
from calibrated_rl.learner.advantages.checked import advantage_path
from calibrated_rl.turn_values.base import TurnValueMethod


def turn_value_method(config: RunConfig) -> TurnValueMethod:
    """The method of ``training.turn_value``.

    Raises:
        UserError: there is none, it does not take its settings, or it is something else.
    """
    training = config.training
    path = full_path(turn_values.__name__, training.turn_value, "turn value")
    method = build(path, training.turn_value_config, "training.turn_value_config")
    if not isinstance(method, TurnValueMethod):
        raise UserError(
            f"'{path}' is no turn value: it must derive from calibrated_rl.turn_values.base:TurnValueMethod"
        )
    return method


def uses_critic(config: RunConfig) -> bool:
    """Whether the advantage needs a critic, which is trained beside the policy."""
    return bool(getattr(import_path(advantage_path(config.training.advantage)), "needs_values", False))


def frozen_value_models(config: RunConfig) -> int:
    """How many models of the policy's size the value of turns keeps in the learner, where an arm uses one."""
    arms = find_arms([*config.arms, *config.control_arms])
    return turn_value_method(config).frozen_models if any(arm.values_turns for arm in arms) else 0
