"""Wasserstein distances of lengths: words a user turn, user turns a dialogue. No per-turn shift.

For integers with distribution functions ``F`` (human) and ``G`` (simulator), ``W1 = sum_x |F(x) - G(x)|`` (Villani,
"Topics in Optimal Transportation", 2003, remark 2.19): the least mean number of words (turns) by which one side's turns
(dialogues) had to be made longer or shorter to look like the other's. Its unit is words (turns).

Put into it as they are, sampled ``F`` and ``G`` make it too large, most where the sides are alike: each
``|F(x) - G(x)|`` grows by chance. ``debiased_absolute`` takes that out, in units of the standard error of each
difference. Human users are the units; shares are ratios, so their error is that of the linearised ratio (Cochran,
"Sampling Techniques", 3rd ed. 1977, chapter 6).
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.errors import UserError
from calibrated_rl.shift.base import Estimate
from calibrated_rl.shift.interface import (
    DialogueEstimator,
    DialogueSets,
    Floats,
    NullBandConfig,
    bootstrap,
    user_texts,
    users_of,
)
from calibrated_rl.shift.shares import between, shares, table
from calibrated_rl.statistics.absolute import debiased_absolute


def wasserstein(p_BK: Floats, q_BK: Floats, support_K: NDArray[np.int64], error_K: Floats | None = None) -> Floats:
    """Wasserstein-1 [B] of distributions over the increasing numbers ``support_K``, row by row.

    Args:
        error_K: standard errors of the differences of both distribution functions, [K - 1]: the bias that such errors
            bring is taken out, by which near 0 the metric may become negative. None: nothing is.
    """
    difference = np.cumsum(p_BK - q_BK, axis=1)[:, :-1]
    distance = np.abs(difference)
    if error_K is not None:
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = np.where(error_K > 0, error_K * debiased_absolute(difference / error_K), distance)
    return np.asarray(distance @ np.diff(support_K))


def errors(counts_NK: Floats, user_N: NDArray[np.int64]) -> Floats:
    """Standard errors [K - 1] of the distribution function that the shares of ``counts_NK`` give, with human users as
    units; 0 with a single one."""
    size_N = counts_NK.sum(axis=1)
    function_K = np.cumsum(shares(np.ones((1, len(counts_NK))), counts_NK)[0])[:-1]
    residual_NK = (np.cumsum(counts_NK, axis=1)[:, :-1] - function_K * size_N[:, None]) / size_N.sum()
    users = int(user_N.max()) + 1
    own_UK = np.zeros((users, residual_NK.shape[1]))
    np.add.at(own_UK, user_N, residual_NK)
    return np.sqrt(users * own_UK.var(axis=0, ddof=1)) if users > 1 else np.zeros(own_UK.shape[1])


class Lengths(DialogueEstimator):
    """``wasserstein_turn_words`` in words a user turn, ``wasserstein_user_turns`` in user turns a dialogue; lower is
    nearer. A dialogue without user turns counts in the second alone."""

    @dataclass(frozen=True)
    class Config(NullBandConfig):
        pass

    def __init__(self, config: Config | None = None) -> None:
        self.config = config = config or self.Config()
        super().__init__(config.null_halvings, config.seed)

    def compare(self, sets: DialogueSets) -> dict[str, Estimate]:
        sets.require_both("Wasserstein")
        words, turns = [], []
        for side in (sets.human, sets.simulator):
            words.append([[len(text.split()) for text in user_texts(dialogue)] for dialogue in side])
            turns.append([[len(lengths)] for lengths in words[-1]])
        if not all(any(side) for side in words):
            raise UserError("Wasserstein: on one side no user says anything")
        estimates = {}
        users = users_of(sets.human), users_of(sets.simulator)
        for name, rows in (("wasserstein_turn_words", words), ("wasserstein_user_turns", turns)):
            support = np.unique([value for side in rows for lengths in side for value in lengths])
            support_indices = [[np.searchsorted(support, lengths).tolist() for lengths in side] for side in rows]
            human, simulator = (table(side, len(support)) for side in support_indices)
            error = np.hypot(errors(human, users[0]), errors(simulator, users[1]))
            p, q = (shares(np.ones((1, len(side))), side) for side in (human, simulator))
            plain = float(wasserstein(p, q, support)[0])
            value = min(float(wasserstein(p, q, support, error)[0]), plain)
            statistic = between(partial(wasserstein, support_K=support, error_K=error), human, simulator)
            resampled = bootstrap(statistic, users, self.seed, value=[value])
            note = f"without the correction for its bias {plain:.3f}; the null band says what chance does"
            estimates[name] = resampled.estimate(name, far="above", notes=(note,))
        return estimates
