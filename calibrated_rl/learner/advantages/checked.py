"""Advantages with checks: an error in one names the user's line, and its result must be one finite number for each
dialogue of the group."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.components.component import build
from calibrated_rl.components.plain_data import NotPlain, kind_of
from calibrated_rl.components.short_names import full_path
from calibrated_rl.components.user_code import call, described
from calibrated_rl.errors import UserError
from calibrated_rl.learner import advantages
from calibrated_rl.learner.advantages.base import Advantage, has_signal

KIND = "advantage"


def advantage_path(name: str) -> str:
    """Import path of the advantage ``name``: a short name of this package, or an import path already.

    Raises:
        UserError: there is no such name.
    """
    return full_path(advantages.__name__, name, KIND)


def build_advantage(name: str, settings: Mapping[str, Any]) -> Advantage:
    """The advantage ``name`` with ``settings``, as ``training.advantage`` and ``training.advantage_config`` have them.

    Raises:
        UserError: there is none, or it does not take these settings.
    """
    advantage: Advantage = build(advantage_path(name), settings, "training.advantage_config")
    if not callable(advantage):
        raise UserError(f"{described(type(advantage), KIND)} has no __call__")
    return advantage


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
        return _checked(result, len(rewards))
    except NotPlain as problem:
        raise UserError(f"{description()}: {problem}") from None


def _checked(result: Any, count: int) -> NDArray[np.float32]:
    if not isinstance(result, np.ndarray | list | tuple):
        raise NotPlain("it", f"is {kind_of(result)}: it must be an array of {count} numbers")
    try:
        values = np.asarray(result)
    except ValueError:  # lists of different lengths
        raise NotPlain("it", f"is no array: it must be one of {count} numbers") from None
    if values.shape != (count,):
        raise NotPlain("it", f"has the shape {list(values.shape)}: it must be [{count}], a number for each dialogue")
    if values.dtype.kind not in "iuf":
        raise NotPlain("it", f"is an array of {values.dtype}: it must be one of numbers")
    with np.errstate(over="ignore"):
        credit = values.astype(np.float32)
    if len(not_finite := np.flatnonzero(~np.isfinite(credit))):
        raise NotPlain(f"[{not_finite[0]}]", f"is {values[not_finite[0]]}: it must be a finite number")
    return credit
