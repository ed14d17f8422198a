"""Weights that make logged human turns count as often as the current policy would visit their histories.

The ratio of a logged history ``h_t`` under the current and the logged policy is
``w_t = prod_{i<t} pi(a_i | h_i) / pi_log(a_i | h_i)`` over the policy's turns before user turn ``t``; the
human's factors cancel (importance sampling per decision: Precup, Sutton, Singh, "Eligibility traces for off-policy
policy evaluation", ICML 2000). Where the product is too uneven, ``temper`` raises it to a power below 1 and ``window``
keeps the last few of its factors; both trade variance for bias.

Weights are ``min(c w, clip)``, with the scale ``c`` of each turn index such that their mean over its turns is exactly 1
(truncated importance sampling: Ionides 2008; with the sum preserved, as the waterfilling rule does). So no turn index
loses data to others, whatever is clipped: normalising first and clipping then would take from late turns, whose ratios
are the most uneven. Turns of several sources (logs, replies to an earlier policy) are scaled source by source: a turn
of each counts on average as much as a logged turn at the same place.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.data.dialogue import TokenSequence
from calibrated_rl.errors import UserError

Floats = NDArray[np.float64]
LOGS = "logs"


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnWeights:
    """Statistics of the weights of one source at one turn index."""

    count: int
    mean: float
    """1, up to rounding."""
    effective_share: float
    """``(sum w)^2 / (n sum w^2)``: which share of the turns would be as good, were they unweighted."""
    clipped_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighted:
    """Weights of users' sequences, and statistics of them."""

    tokens: list[NDArray[np.float32]]
    """One array [T] a user sequence: the weight of its turn at each token, 1 where nothing is masked."""
    by_turn: dict[tuple[str, int], TurnWeights]
    """By source and user turn of the dialogue, from 1."""
    effective_share: float
    """Over all turns."""

    def metrics(self) -> dict[str, float]:
        """To log: ``effective_share`` of all turns; share, mean weight and clipped share of logged ones by turn."""
        values = {"calibration_effective_share": self.effective_share}
        for (source, turn), of in sorted(self.by_turn.items()):
            if source == LOGS:
                values[f"calibration_effective_share_turn_{turn}"] = of.effective_share
                values[f"calibration_mean_weight_turn_{turn}"] = of.mean
                values[f"calibration_clipped_share_turn_{turn}"] = of.clipped_share
        return values


def history_weights(
    policy: Sequence[TokenSequence],
    current: Sequence[NDArray[np.float32]],
    logged: Sequence[NDArray[np.float32]],
    users: Sequence[TokenSequence],
    *,
    clip: float,
    temper: float = 1.0,
    window: int = 0,
    sources: Sequence[str] | None = None,
) -> Weighted:
    """Weights of the users' masked turns.

    Args:
        policy: the policy's view of each dialogue.
        current, logged: log-probs [T] of the policy's tokens under the current and the logged policy.
        users: the user's view of the same dialogues.
        clip: largest weight, at least 1.
        temper: power of the ratio, above 0, at most 1.
        window: how many of the policy's last turns the ratio has; 0: all.
        sources: where each dialogue comes from; None: all are logs.

    Raises:
        UserError: a ratio is no finite number.
    """
    cells: dict[tuple[str, int], list[tuple[int, int]]] = defaultdict(list)
    log_ratios: dict[tuple[str, int], list[float]] = defaultdict(list)
    for number, (view, current_logprobs, logged_logprobs, user) in enumerate(
        zip(policy, current, logged, users, strict=True)
    ):
        difference = np.where(view.mask, current_logprobs.astype(np.float64) - logged_logprobs, 0.0)
        spoken = np.unique(view.turns[view.mask])
        for turn in np.unique(user.turns[user.mask]):
            turns_before = spoken[spoken < turn]
            in_window = np.isin(view.turns, turns_before[-window:] if window else turns_before)
            # The user's first turn follows the greeting, each later one a turn of the policy.
            cell = (LOGS if sources is None else sources[number], _ordinal(user, int(turn)))
            cells[cell].append((number, int(turn)))
            log_ratios[cell].append(temper * float(difference[in_window].sum()))
    tokens, by_turn = [np.ones(len(user), np.float32) for user in users], {}
    for cell, cell_turns in cells.items():
        weights = scaled_and_clipped(log_ratios[cell], clip)
        for (number, turn), weight in zip(cell_turns, weights, strict=True):
            tokens[number][users[number].turns == turn] = weight
        by_turn[cell] = TurnWeights(
            count=len(weights), mean=float(weights.mean()), effective_share=_effective_share(weights),
            clipped_share=float((weights >= clip * (1 - 1e-9)).mean()) if clip > 1 else 0.0,
        )  # fmt: skip
    # Each place has mean 1: sum w = n, sum w^2 = n / share.
    squares = sum(of.count / of.effective_share for of in by_turn.values())
    share = sum(of.count for of in by_turn.values()) / squares if squares else 1.0
    return Weighted(tokens=tokens, by_turn=by_turn, effective_share=share)


def scaled_and_clipped(log_ratios: Sequence[float] | Floats, clip: float) -> Floats:
    """``min(c exp(log_ratios), clip)`` [N] with the ``c`` that makes their mean 1.

    The mean grows with ``c`` from 0 to ``clip``, so that there is one ``c`` for every ``clip`` above 1, found exactly:
    if the ``k`` largest are clipped, the others share ``N - k clip``. At ``clip = 1`` all weights are 1.

    Raises:
        UserError: a ratio is no finite number.
        ValueError: ``clip`` is below 1: no such weights have mean 1.
    """
    logs = np.asarray(log_ratios, np.float64)
    if not clip >= 1:
        raise ValueError(f"weights of at most {clip} cannot have mean 1")
    if not np.isfinite(logs).all():
        raise UserError("a logged turn has no finite probability under the policy: its histories cannot be weighted")
    order = np.argsort(-logs, kind="stable")
    falling = logs[order]
    # log sum of what is left without the k largest, for each k.
    log_tail_sums = np.logaddexp.accumulate(falling[::-1])[::-1]
    clipped = 0
    while True:
        unclipped_total = len(falling) - clipped * clip
        assert unclipped_total > 0, "as long as more than clip is left, the next one stays below it"
        log_scale = np.log(unclipped_total) - log_tail_sums[clipped]
        if log_scale + falling[clipped] <= np.log(clip) + 1e-12 or clipped == len(falling) - 1:
            weights = np.minimum(np.exp(np.minimum(log_scale + falling, np.log(clip))), clip)
            weights[:clipped] = clip
            break
        clipped += 1
    result = np.empty_like(weights)
    result[order] = weights
    return result


def _ordinal(user: TokenSequence, turn: int) -> int:
    """Which turn of the user ``turn`` of its dialogue is, from 1: it speaks at every odd place after the greeting."""
    return (turn + 1) // 2


def _effective_share(weights: Floats) -> float:
    return float(weights.sum() ** 2 / (len(weights) * (weights**2).sum()))
