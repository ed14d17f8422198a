"""The contract of an advantage: the credit of each dialogue of a group, from the group's rewards.

The dialogues of a group are of the same scenario and differ in their samples alone. The caller guarantees that the
rewards are finite, that there are at least two, and that they differ. A group whose rewards are all equal teaches
nothing: its credit is 0 without a call, and ``has_signal`` lets the caller count such groups.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Advantage(Protocol):
    """A pure function of the rewards of one group. Built as ``AdvantageClass(AdvantageClass.Config(...))``."""

    def __call__(self, rewards: Floats) -> Floats:
        """The advantage [G] of each dialogue from the ``rewards`` [G], its return; finite."""
        ...


def has_signal(rewards: Sequence[float]) -> bool:
    """Whether the rewards of a group differ at all."""
    values = np.asarray(rewards, np.float64)
    return len(values) > 1 and float(np.ptp(values)) > 1e-9
