"""Advantages with checks: an error in one names the user's line, and its result must be one finite number for each
dialogue of the group."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.components.component import build
from calibrated_rl.components.plain_data import NotPlain, kind_of, numbers
from calibrated_rl.components.short_names import full_path
from calibrated_rl.components.user_code import call, described
from calibrated_rl.errors import UserError
from calibrated_rl.learner import advantages
from calibrated_rl.learner.advantages.base import (
    Advantage,
    CriticAdvantage,
    CriticConfig,
    Floats,
    TurnAdvantage,
    differ,
    has_signal,
)

KIND = "advantage"


def advantage_path(name: str) -> str:
    """Import path of the advantage ``name``: a short name of this package, or an import path already.

    Raises:
        UserError: there is no such name.
    """
    return full_path(advantages.__name__, name, KIND)


def build_advantage(name: str, settings: Mapping[str, Any]) -> Any:
    """The advantage ``name`` with ``settings``, as ``training.advantage`` and ``training.advantage_config`` have them:
    an ``Advantage`` or, where ``is_by_turn``, a ``TurnAdvantage``.

    Raises:
        UserError: there is none, or it does not take these settings.
    """
    advantage = build(advantage_path(name), settings, "training.advantage_config")
    if not callable(advantage):
        raise UserError(f"{described(type(advantage), KIND)} has no __call__")
    return advantage


def is_by_turn(advantage: Any) -> bool:
    """Whether ``advantage``, or the class of it, gives credit to each turn.

    Raises:
        UserError: its ``by_turn`` is neither True nor False.
    """
    by_turn = getattr(advantage, "by_turn", False)
    if not isinstance(by_turn, bool):
        owner = advantage if isinstance(advantage, type) else type(advantage)
        raise UserError(f"{described(owner, KIND)}: by_turn is {kind_of(by_turn)}: it must be True or False")
    return by_turn


def critic_of(advantage: Any) -> CriticConfig | None:
    """The settings of the critic that ``advantage``, or the class of it, needs; None: it needs none.

    Raises:
        UserError: it needs one, and does not say how that learns or gives credit to whole dialogues.
    """
    if not getattr(advantage, "needs_values", False):
        return None
    if not is_by_turn(advantage):
        raise UserError(f"{described(type(advantage), KIND)}: needs_values goes with by_turn: a critic values turns")
    if not isinstance(critic := getattr(advantage, "critic", None), CriticConfig):
        raise UserError(f"{described(type(advantage), KIND)}: critic is {kind_of(critic)}: it must be a CriticConfig")
    return critic


def turn_advantages(
    rewards: Sequence[Floats],
    advantage: TurnAdvantage | CriticAdvantage,
    values: Sequence[Floats] | None = None,
) -> list[NDArray[np.float32]]:
    """Advantages [T] of the turns of each dialogue of one group from their ``rewards`` [T] and, where it needs them,
    the ``values`` [T] of the histories before. Without values, zeros for a group that does not differ in its rewards.

    Raises:
        UserError: ``advantage`` failed, or it returned something else than an array [T] of finite numbers for each.
    """
    assert all(np.isfinite(of_dialogue).all() for of_dialogue in rewards), f"rewards must be finite: {rewards}"
    if values is None and not differ(rewards):
        return [np.zeros(len(of_dialogue), np.float32) for of_dialogue in rewards]

    def description() -> str:
        return described(type(advantage), KIND, "__call__")

    arguments = [[of_dialogue.copy() for of_dialogue in each] for each in (rewards, values) if each is not None]
    result = call(type(advantage), description, advantage, *arguments)
    try:
        if not isinstance(result, list | tuple) or len(result) != len(rewards):
            raise NotPlain("it", f"is {kind_of(result)}: it must be a list of {len(rewards)} arrays, one a dialogue")
        return [
            numbers(credit, len(of_dialogue), "turn").astype(np.float32)
            for credit, of_dialogue in zip(result, rewards, strict=True)
        ]
    except NotPlain as problem:
        raise UserError(f"{description()}: {problem}") from None


def group_advantages(rewards: Sequence[float], advantage: Advantage) -> NDArray[np.float32]:
    """Advantages [G] of the dialogues of one group with ``rewards`` [G]; zeros for a group without variance.

    Raises:
        UserError: ``advantage`` failed, or it returned something else than [G] finite numbers.
    """
    values = np.array(rewards, np.float64)
    assert np.isfinite(values).all(), f"rewards must be finite: {rewards}"
    if not has_signal(rewards):
        return np.zeros(len(values), np.float32)

    def description() -> str:
        return described(type(advantage), KIND, "__call__")

    result = call(type(advantage), description, advantage, values)
    try:
        return numbers(result, len(rewards), "dialogue").astype(np.float32)
    except NotPlain as problem:
        raise UserError(f"{description()}: {problem}") from None
