"""Jensen-Shannon divergence of dialogue acts: do both sides do the same things equally often? No per-turn shift.

    JS = H((p + q) / 2) - (H(p) + H(q)) / 2    in bits

(Lin, "Divergence Measures Based on the Shannon Entropy", IEEE Trans. Inf. Theory 1991, equation 4.1 with equal
weights): 0 the same acts equally often, 1 no act in common. Its bias is of order 1/n and is removed by a jackknife over
groups of users, set by set (Efron and Stein, "The Jackknife Estimate of Variance", Ann. Statist. 1981, section 1).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.data.dialogue import Dialogue, Side
from calibrated_rl.errors import UserError
from calibrated_rl.shift.base import Estimate
from calibrated_rl.shift.interface import (
    DialogueEstimator,
    DialogueSets,
    Floats,
    NullBandConfig,
    Statistic,
    bootstrap,
    users_of,
)
from calibrated_rl.shift.shares import between, table

_GROUPS = 20
"""Groups of users a side that the jackknife leaves out in turn."""


def jensen_shannon(p_BK: Floats, q_BK: Floats) -> Floats:
    """Jensen-Shannon divergence [B] in bits, row by row."""

    def entropy(a: Floats) -> Floats:
        return -np.where(a > 0, a * np.log2(np.where(a > 0, a, 1.0)), 0.0).sum(axis=1)

    return np.maximum(0.0, entropy((p_BK + q_BK) / 2) - (entropy(p_BK) + entropy(q_BK)) / 2)


class ActDivergence(DialogueEstimator):
    """``acts_jensen_shannon`` in bits, 0 to 1, of the acts of user turns; lower is nearer. Each act of a turn counts
    once. Where the correction takes it below 0 it is shown as 0."""

    @dataclass(frozen=True)
    class Config(NullBandConfig):
        pass

    def __init__(self, config: Config | None = None) -> None:
        self.config = config = config or self.Config()
        super().__init__(config.null_halvings, config.seed)

    def compare(self, sets: DialogueSets) -> dict[str, Estimate]:
        name = "acts_jensen_shannon"
        sets.require_both(name)
        acts = [[_user_acts(sets, dialogue) for dialogue in side] for side in (sets.human, sets.simulator)]
        if not all(any(side) for side in acts):
            raise UserError(f"{name}: the dialogues carry no dialogue acts; name a task that knows them")
        number = {
            a: i for i, a in enumerate(sorted({a for side in acts for dialogue_acts in side for a in dialogue_acts}))
        }
        human, simulator = (
            table([[number[act] for act in dialogue_acts] for dialogue_acts in side], len(number)) for side in acts
        )
        statistic = between(jensen_shannon, human, simulator)
        users = users_of(sets.human), users_of(sets.simulator)
        full_value, bias = jackknife_bias(statistic, *users)
        resampled = bootstrap(statistic, users, self.seed, value=full_value - bias)
        note = (f"without the correction for its bias {full_value[0]:.4f}",)
        return {name: resampled.estimate(name, far="above", maximum=1.0, notes=note)}


def _user_acts(sets: DialogueSets, dialogue: Dialogue) -> list[str]:
    acts = sets.acts(dialogue) or []
    spoken = [turn_acts for turn, turn_acts in zip(dialogue.turns, acts, strict=bool(acts)) if turn.side is Side.USER]
    return [act for turn_acts in spoken for act in turn_acts]


def jackknife_bias(
    statistic: Statistic, human: NDArray[np.int64], simulator: NDArray[np.int64]
) -> tuple[Floats, Floats]:
    """The statistic [K] and its bias [K] by ``(G - 1) (mean over g of value without group g - value)``, summed over
    the two sides; groups are of human users. A side with fewer than 3 users adds nothing."""
    ones = np.ones((1, len(human))), np.ones((1, len(simulator)))
    full_value = statistic(*ones)[0]
    bias = np.zeros_like(full_value)
    for side, user in enumerate((human, simulator)):
        groups = min(_GROUPS, int(user.max()) + 1)
        if groups < 3:
            continue
        in_sample = (user[None, :] % groups != np.arange(groups)[:, None]).astype(np.float64)
        weights = [np.repeat(weight, groups, axis=0) for weight in ones]
        weights[side] = in_sample
        leave_one_out = statistic(weights[0], weights[1])
        # A group without which the statistic is undefined says nothing of the bias.
        values = np.where(np.isfinite(leave_one_out), leave_one_out, full_value)
        bias += (groups - 1) * (values.mean(axis=0) - full_value)
    return full_value, bias
