"""Weights that make logged human turns count as often as the current policy would visit their histories.

The ratio of a logged history ``h_t`` under the current and the logged policy is
``w_t = prod_{i<t} pi(a_i | h_i) / pi_log(a_i | h_i)`` over the policy's turns before user turn ``t``; the
human's factors cancel. ``pi_log`` is estimated by the cold-started policy, which was cloned from these logs.
Ratios are normalised to mean one within each turn index, so that no turn index loses its share of the data
(per-decision importance sampling: Precup, Sutton, Singh 2000), and then clipped at ``clip``.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from calibrated_rl.dialogue import TokenSequence


def history_weights(
    policy: Sequence[TokenSequence],
    now: Sequence[NDArray[np.float32]],
    logged: Sequence[NDArray[np.float32]],
    users: Sequence[TokenSequence],
    clip: float,
) -> tuple[list[NDArray[np.float32]], float]:
    """Token weights for the users' sequences, and the effective share of the logs.

    Args:
        policy: the policy's view of each log.
        now, logged: log-probs [T] of the policy's tokens under the current and the cloned logged policy.
        users: the user's view of the same logs.
        clip: largest weight.

    Returns:
        One array [T] a user sequence (1 where nothing is masked); ``(sum w)^2 / (n sum w^2)`` over turns.
    """
    logarithms: list[dict[int, float]] = []
    by_index: dict[int, list[float]] = defaultdict(list)
    for view, new, old, user in zip(policy, now, logged, users, strict=True):
        difference = np.where(view.mask, new.astype(np.float64) - old, 0.0)
        log_ratios: dict[int, float] = {}
        for turn in sorted({int(t) for t in user.turns[user.mask]}):
            log_ratios[turn] = float(difference[view.turns < turn].sum())
            by_index[turn].append(log_ratios[turn])
        logarithms.append(log_ratios)
    log_mean = {turn: float(logsumexp(values) - np.log(len(values))) for turn, values in by_index.items()}
    result, flat = [], []
    for user, log_ratios in zip(users, logarithms, strict=True):
        tokens = np.ones(len(user), np.float32)
        for turn, log_ratio in log_ratios.items():
            normalised = float(np.exp(min(log_ratio - log_mean[turn], np.log(clip))))
            tokens[user.turns == turn] = normalised
            flat.append(normalised)
        result.append(tokens)
    values = np.asarray(flat)
    return result, float(values.sum() ** 2 / (len(values) * (values**2).sum()))
