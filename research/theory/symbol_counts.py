"""Estimators of ``delta_t`` and ``eps_t`` from samples alone, where turns are symbols and their contexts are few.

Given are matched pairs: in the same context, what the one side said and what the other would have said. Nothing is
known of their probabilities (where they are known, ``exact.py`` needs no correction). Counts are taken by turn and
context; dialogues are independent, and within a turn each gives one pair.

- **Total variation, two-sided.** The plug-in ``1/2 sum |p^ - q^|`` is biased upwards, at most where the two sides are
  alike: noise has a size, too. With ``z`` the difference over its standard error, ``E|z^| - |z|`` is up to 0.8.
  No unbiased estimator of ``|z|`` exists (it has a kink); ``debiased_absolute`` takes the best approximation in the
  sense of Cai and Low, "Testing composite hypotheses, Hermite polynomials and optimal estimation of a nonsmooth
  functional" (Annals of Statistics, 2011), with Gaussians for polynomials: what is left is -0.1 to 0.3.
- **KL, two-sided.** ``sum_x p^ [psi(N_x) - psi(n) - psi(M_x + 1) + psi(m + 1)]`` of Zhang and Grabchak, "Nonparametric
  Estimation of Kullback-Leibler Divergence" (Neural Computation, 2014), here with digammas for their sums: finite
  where a symbol was not seen, and with a bias that falls exponentially with the number of pairs. The plug-in
  is biased, and infinite as soon as a symbol is missing.
- **Total variation, lower bound.** The table classifier: in each context a symbol is taken for the side that said it
  more often in the *other* half; then ``max(0, 2a - 1)`` with the lower limit of its accuracy, as in
  ``classifier.py``.

Two-sided intervals are those of ``interface.bootstrap`` over dialogues.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import psi

from calibrated_rl.errors import UserError
from calibrated_rl.shift.base import Estimate, TurnEstimate
from calibrated_rl.shift.interface import Resampled, bootstrap
from calibrated_rl.shift.two_sample.classifier import wilson_interval
from calibrated_rl.statistics.absolute import debiased_absolute
from research.theory.symbolic import Dialogues, Floats, World

Ints = NDArray[np.int64]
ESTIMATORS = ("tv_counts", "kl_counts")
PLUG_IN = ("tv_plug_in", "kl_plug_in")


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """Matched symbols of N dialogues with H turns each; arrays are [N, H].

    Raises:
        UserError: there are none, or the arrays do not match.
    """

    context: Ints
    """What both sides spoke in, ``0..contexts - 1``."""
    real: Ints
    """What was said on the side that the histories come from."""
    other: Ints
    """What the other side would have said."""
    contexts: int
    symbols: int

    def __post_init__(self) -> None:
        if not self.context.size or not self.context.shape == self.real.shape == self.other.shape:
            raise UserError(f"no matched symbols: {self.context.shape}, {self.real.shape}, {self.other.shape}")
        for name, limit in (("context", self.contexts), ("real", self.symbols), ("other", self.symbols)):
            if not ((getattr(self, name) >= 0) & (getattr(self, name) < limit)).all():
                raise UserError(f"{name} leaves 0..{limit - 1}")

    @classmethod
    def of_users(cls, world: World, sampled: Dialogues) -> "Pairs":
        """Human against simulator, for ``delta_t``: the context is the state and what the policy said."""
        return cls(
            context=sampled.state * world.policy_symbols + sampled.said,
            real=sampled.reply,
            other=sampled.simulated,
            contexts=world.states * world.policy_symbols,
            symbols=world.user_symbols,
        )

    @classmethod
    def of_policies(cls, world: World, sampled: Dialogues) -> "Pairs":
        """Policy against logged policy, for ``eps_t``: the context is the state."""
        return cls(
            context=sampled.state,
            real=sampled.said,
            other=sampled.logged,
            contexts=world.states,
            symbols=world.policy_symbols,
        )


def from_counts(pairs: Pairs, *, corrected: bool = True, seed: int = 0) -> dict[str, Estimate]:
    """Two-sided estimates, averaged over turns and by turn: ``tv_counts`` and ``kl_counts`` (nats).

    Not ``corrected`` they are the plug-ins ``tv_plug_in`` and ``kl_plug_in`` (the latter with 1/2 added to each count,
    for else it is infinite), to show what the corrections are for. With a single dialogue the limits are NaN.
    """
    dialogues, turns = pairs.context.shape
    cell_NH = np.arange(turns) * pairs.contexts + pairs.context
    columns = turns * pairs.contexts * pairs.symbols
    real_NC, other_NC = (_indicators(cell_NH * pairs.symbols + s, columns) for s in (pairs.real, pairs.other))
    shape = (turns, pairs.contexts, pairs.symbols)

    def statistic(weight_BN: Floats) -> Floats:
        real, other = ((weight_BN @ table).reshape(-1, *shape) for table in (real_NC, other_NC))
        metrics = [_total_variation(real, other, corrected), _kl(real, other, corrected)]
        return np.concatenate(
            [columns_BK for by_turn in metrics for columns_BK in (by_turn.mean(axis=1)[:, None], by_turn)], axis=1
        )

    resampled = bootstrap(statistic, [np.arange(dialogues)], seed)
    names = ESTIMATORS if corrected else PLUG_IN
    maxima = (1.0, np.inf)
    return {
        name: _estimate(name, resampled, i * (turns + 1), turns, dialogues, maxima[i]) for i, name in enumerate(names)
    }


def _indicators(column_NH: Ints, columns: int) -> Floats:
    """[N, columns]: 1 where the dialogue has that column."""
    table = np.zeros((len(column_NH), columns))
    table[np.arange(len(column_NH))[:, None], column_NH] = 1.0
    return table


def _estimate(name: str, resampled: Resampled, first: int, turns: int, dialogues: int, maximum: float) -> Estimate:
    overall = resampled.estimate(name, first, maximum=maximum)
    estimates = [resampled.estimate(name, first + 1 + t, maximum=maximum) for t in range(turns)]
    by_turn = tuple(
        TurnEstimate(
            turn=t + 1, value=turn_estimate.value, low=turn_estimate.low, high=turn_estimate.high, count=dialogues
        )
        for t, turn_estimate in enumerate(estimates)
    )
    return Estimate(name=name, value=overall.value, low=overall.low, high=overall.high, by_turn=by_turn)


def _total_variation(real: Floats, other: Floats, corrected: bool) -> Floats:
    """[B, H] from counts [B, H, C, X]; a context weighs as much as it was seen."""
    context_count = real.sum(axis=-1, keepdims=True)
    difference = np.abs(real - other)
    if corrected:
        with np.errstate(divide="ignore", invalid="ignore"):
            variance = (real * (context_count - real) + other * (context_count - other)) / np.maximum(
                context_count - 1, 1
            )
            spread = np.sqrt(np.maximum(variance, 0.0))
            difference = np.where(spread > 0, spread * debiased_absolute(difference / spread), difference)
    return np.asarray(0.5 * difference.sum(axis=(-2, -1)) / context_count.sum(axis=(-2, -1)))


def _kl(real: Floats, other: Floats, corrected: bool) -> Floats:
    """[B, H] from counts [B, H, C, X], in nats."""
    context_count = real.sum(axis=-1, keepdims=True)
    if corrected:
        inside = (
            psi(np.maximum(real, 1.0)) - psi(np.maximum(context_count, 1.0)) - psi(other + 1) + psi(context_count + 1)
        )
    else:
        inside = np.log((real + 0.5) / (other + 0.5))
    return np.asarray((real * inside).sum(axis=(-2, -1)) / context_count.sum(axis=(-2, -1)))


def table_classifier(pairs: Pairs, *, seed: int = 0) -> Estimate:
    """``tv_lower``: its ``low`` is a lower bound of the total variation averaged over turns; ``high`` bounds nothing.

    Each half of the dialogues is scored by the counts of the other. Where by chance both halves lean the same way, each
    confirms the other: the two accuracies can depend on each other wholly, so that their mean is taken to vary as much
    as that of one half. (With more folds this is worse, and without it 4 to 8 % of ``low`` are above 0 for two
    sides that are the same.)

    Raises:
        UserError: fewer than two dialogues in a half.
    """
    dialogues, turns = pairs.context.shape
    if dialogues < 4:
        raise UserError(f"the table classifier needs 2 dialogues in each half, not {dialogues} in all")
    fold = np.random.default_rng(seed).permutation(dialogues) % 2
    cell_NH = np.arange(turns) * pairs.contexts + pairs.context
    real_NH, other_NH = (cell_NH * pairs.symbols + symbol for symbol in (pairs.real, pairs.other))
    columns = turns * pairs.contexts * pairs.symbols
    correct = np.empty((2, dialogues, turns))
    for k in range(2):
        train, test = fold != k, fold == k
        counts = [np.bincount(side[train].ravel(), minlength=columns) for side in (real_NH, other_NH)]
        taken_for_other = counts[1] > counts[0]
        correct[0, test] = ~taken_for_other[real_NH[test]]
        correct[1, test] = taken_for_other[other_NH[test]]

    def advantage(is_correct: Floats) -> tuple[float, float, float]:
        cluster = np.broadcast_to(np.arange(dialogues)[:, None], is_correct.shape)
        share, low, high = wilson_interval(is_correct.ravel(), cluster.ravel())
        wider = (share, share - np.sqrt(2) * (share - low), share + np.sqrt(2) * (high - share))
        value, low, high = (min(1.0, max(0.0, 2 * a - 1)) for a in wider)
        return value, low, high

    by_turn = tuple(
        TurnEstimate(turn=t + 1, value=v, low=low, high=high, count=dialogues)
        for t in range(turns)
        for v, low, high in [advantage(correct[:, :, t : t + 1])]
    )
    value, low, high = advantage(correct)
    note = "low is a lower bound; high bounds nothing"
    return Estimate(name="tv_lower", value=value, low=low, high=high, by_turn=by_turn, far="above", notes=(note,))
