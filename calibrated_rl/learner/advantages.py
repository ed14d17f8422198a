"""Credit from the rewards of one group: dialogues of the same scenario, which differ in their samples alone.

- ``grpo``: ``(r − mean) / (std + 1e-6)``, population standard deviation (DeepSeekMath,
  arXiv 2402.03300, section 4.1.2).
- ``dr_grpo``: ``r − mean``; dividing by the deviation overweights groups that are nearly solved or nearly
  hopeless (Understanding R1-Zero-like training, arXiv 2503.20783, section 3.1).
- ``rloo``: ``r_i − mean of the others = n / (n − 1) · (r_i − mean)`` (Back to basics,
  arXiv 2402.14740, section 3.3).

A group without variance teaches nothing: zeros, and ``has_signal`` lets the caller count such groups.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.errors import UserError

KINDS = ("grpo", "dr_grpo", "rloo")


def has_signal(rewards: Sequence[float]) -> bool:
    """Whether the rewards of a group differ at all."""
    values = np.asarray(rewards, np.float64)
    return len(values) > 1 and float(np.ptp(values)) > 1e-9


def group_advantages(rewards: Sequence[float], kind: str = "grpo") -> NDArray[np.float32]:
    """Advantages [G] of the dialogues of one group with ``rewards`` [G]; zeros for a group without variance.

    Raises:
        UserError: ``kind`` is not one of ``KINDS``.
    """
    if kind not in KINDS:
        raise UserError(f"advantage '{kind}' is unknown: choose {', '.join(KINDS)}")
    values = np.asarray(rewards, np.float64)
    assert np.isfinite(values).all(), f"rewards must be finite: {rewards}"
    if not has_signal(rewards):
        return np.zeros(len(values), np.float32)
    centred = values - values.mean()
    if kind == "grpo":
        centred = centred / (values.std() + 1e-6)
    elif kind == "rloo":
        centred = centred * len(values) / (len(values) - 1)
    return np.asarray(centred, np.float32)
