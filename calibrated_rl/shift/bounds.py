"""How far training can be from reality, given the per-turn shifts (docs/shift.md).

Per-turn rewards ``r_t in [0, R]``:  ``|J_real - J_train| <= R * sum_t (H - t + 1) (eps_t + delta_t)``
One terminal reward in ``[0, R]``:   ``|J_real - J_train| <= R * sum_t (eps_t + delta_t)``

Static training has the ``eps`` terms, interactive training the ``delta`` terms; the other may be left out. The
bounds hold for exact shifts and for upper bounds of them. Put lower bounds in (a classifier's), and what comes
out is an index, not a bound. Neither is cut off at the trivial ``R * H`` or ``R``.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def _shift_by_turn(epsilon: Sequence[float], delta: Sequence[float]) -> NDArray[np.float64]:
    horizon = max(len(epsilon), len(delta))
    for name, values in (("epsilon", epsilon), ("delta", delta)):
        assert len(values) in (0, horizon), f"{name} has {len(values)} turns, the other {horizon}"
        assert all(0 <= value <= 1 for value in values), f"{name} is no total variation: {list(values)}"
    return sum((np.asarray(v, np.float64) for v in (epsilon, delta) if len(v)), np.zeros(horizon))


def per_turn_reward_bound(reward_range: float, *, epsilon: Sequence[float] = (), delta: Sequence[float] = ()) -> float:
    """Bound for rewards in ``[0, reward_range]`` after each turn; ``epsilon`` and ``delta`` are [H], t = 1..H."""
    shift_H = _shift_by_turn(epsilon, delta)
    return float(reward_range * (np.arange(len(shift_H), 0, -1) @ shift_H))


def terminal_reward_bound(reward_range: float, *, epsilon: Sequence[float] = (), delta: Sequence[float] = ()) -> float:
    """Bound for one reward in ``[0, reward_range]`` at the end; ``epsilon`` and ``delta`` are [H], t = 1..H."""
    return float(reward_range * _shift_by_turn(epsilon, delta).sum())
