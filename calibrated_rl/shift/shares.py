"""Distributions estimated by shares: what the divergences between two sets of dialogues have in common.

A dialogue is a row of counts (of its clusters, lengths or acts); a weighted set of dialogues gives the shares [K] of
the K things, in which a dialogue counts as often as it contains them.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.shift.interface import Floats, Statistic


def shares(weights_BN: Floats, counts_NK: Floats) -> Floats:
    total = weights_BN @ counts_NK
    size = total.sum(axis=1, keepdims=True)
    return np.where(size > 0, total / np.where(size > 0, size, 1.0), np.nan)


def between(distance: Statistic, human_NK: Floats, simulator_MK: Floats) -> Statistic:
    """``distance`` of the shares in which weighted dialogues contain each of K things."""
    return lambda a, b: distance(shares(a, human_NK), shares(b, simulator_MK))[:, None]


def table(rows: Sequence[Sequence[int] | NDArray[np.int64]], size: int) -> Floats:
    """How often each row contains each of the numbers below ``size``: [N, size]."""
    return np.stack([np.bincount(np.asarray(row, np.int64), minlength=size) for row in rows]).astype(np.float64)
