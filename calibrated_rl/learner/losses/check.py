"""Resolves a loss, and checks that it fits the advantages and the steps of an update: else the combination would be
another algorithm than its name says."""

from collections.abc import Mapping
from typing import Any

from calibrated_rl.components import component
from calibrated_rl.components.plain_data import kind_of
from calibrated_rl.components.short_names import short_names_of
from calibrated_rl.errors import UserError
from calibrated_rl.learner import advantages
from calibrated_rl.learner.advantages.checked import advantage_path, is_by_turn
from calibrated_rl.learner.losses.base import Loss

LossSpec = Loss | str | tuple[str, Mapping[str, Any]]
"""A loss, its import path, or its import path and config."""


def resolve_loss(spec: LossSpec) -> Loss:
    """The loss that ``spec`` names."""
    if isinstance(spec, Loss):
        return spec
    path, values = (spec, None) if isinstance(spec, str) else spec
    loss = component.build(path, values, "loss")
    if not isinstance(loss, Loss):
        raise UserError(f"'{path}' is not a loss: it must derive from calibrated_rl.learner.losses.base:Loss")
    for name in ("needs_reference", "policy_gradient", "entropy_gradient", "turn_credit"):
        if not isinstance(value := getattr(loss, name), bool):
            raise UserError(f"'{path}': {name} is {kind_of(value)}: it must be True or False")
    if not isinstance(loss.unit, int) or isinstance(loss.unit, bool) or loss.unit < 1:
        raise UserError(f"'{path}': unit is {kind_of(loss.unit)}: it must be an integer of at least 1")
    return loss


def located(spec: LossSpec) -> LossSpec:
    """The same for processes with another working directory: a file by its full path."""
    if isinstance(spec, Loss):
        return spec
    return component.located(spec) if isinstance(spec, str) else (component.located(spec[0]), spec[1])


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
            f"{name} is no policy-gradient loss: it would ignore all rewards. Choose one of "
            "calibrated_rl/learner/losses, such as calibrated_rl.learner.losses.grpo:GRPO"
        )
    if loss.unit != 1:
        raise UserError(f"{name} takes samples in units of {loss.unit}, and rollouts come one by one")
    advantage_class = component.import_path(advantage_path(advantage))
    kinds = short_names_of(advantages.__name__, advantage_class)
    if is_by_turn(advantage_class) and not loss.turn_credit:
        raise UserError(
            f"training.advantage is '{advantage}', which gives credit to each turn, and {name} weighs dialogues as a "
            "whole: choose an advantage of whole dialogues, such as grpo, or another training.loss"
        )
    # An advantage of the user's own, which derives from none of ours, is up to its author.
    if loss.advantages and kinds and not set(kinds) & set(loss.advantages):
        raise UserError(
            f"training.advantage is '{advantage}', and {name} is defined with {' or '.join(loss.advantages)}: set "
            f"training.advantage={loss.advantages[0]}, or choose another training.loss"
        )
    if reasons := loss.without_effect(settings, minibatches):
        raise UserError(f"training.loss_config: {'; '.join(reasons)}: take it out, or change the other")
