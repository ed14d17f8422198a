"""What all classifier two-sample tests share: cross-fitting, the choice of a family, intervals, AUC and null band.

A test scores one reply at a time. If a classifier that has not seen these dialogues is right with probability ``a``
(both sides equally frequent), then ``TV >= 2a - 1``, because ``a <= (1 + TV) / 2`` for any classifier. So
``max(0, 2a - 1)`` with the *lower* limit of ``a`` is a lower bound of the total variation on what it was measured on.
(Source: the classifier two-sample test of Lopez-Paz and Oquab, "Revisiting Classifier Two-Sample Tests", ICLR 2017;
total variation is the best achievable advantage.) It says nothing of what no family can see: 0 does not mean alike.

- Cross-fitted by dialogue: every reply is scored by a classifier trained on other dialogues.
- Family and threshold are chosen inside the training folds, on dialogues of theirs that were set aside.
- The interval is Wilson's with the effective number of independent replies (whole dialogues vary together, and
  both replies to a history belong to one) and a t quantile, which stays honest near 1 and with few dialogues.
- AUC describes; the bound comes from accuracy. Folds train on each other, so near chance the AUC's interval,
  which takes the classifiers as given, is too narrow (it contained the truth in 82 % of simulated null cases, that of
  accuracy in 94 %). There the null band is the guard.

Already decided when something here is called: which rows there are, what is seen of each, and that half of them (of
either side, at each turn) carry each label.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.errors import UserError
from calibrated_rl.shift.base import Estimate, TurnEstimate
from calibrated_rl.shift.sizes import least_dialogues
from calibrated_rl.statistics.intervals import ratio_interval, share_interval

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Band = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """Replies of both sides, one a row, ready for classifiers."""

    label: NDArray[np.int64]
    """[N], 1 for the simulator."""
    dialogue: NDArray[np.int64]
    """[N], number of the dialogue (or user) that stays in one fold, from 0."""
    turn: NDArray[np.int64]
    text: Any
    """[N, F], an array or a sparse matrix: what is seen of the reply."""
    dense: Floats
    """[N, K]: more of it, for families that want dense features; K may be 0."""

    def select(self, selected: Mask) -> "Rows":
        return Rows(
            label=self.label[selected],
            dialogue=self.dialogue[selected],
            turn=self.turn[selected],
            text=self.text[selected],
            dense=self.dense[selected],
        )

    def renumbered(self) -> "Rows":
        """The same with dialogues numbered from 0 without gaps, which ``select`` may leave."""
        return replace(self, dialogue=np.unique(self.dialogue, return_inverse=True)[1])


Model = Callable[[Rows], Floats]
"""Scores [N] of rows, 0 to 1, high for the simulator's."""
Fit = Callable[[Rows], Model]


@dataclass(frozen=True, kw_only=True)
class ClassifierResult:
    """``tv.low`` is the lower bound of the total variation, overall and by turn; ``tv.high`` bounds nothing."""

    accuracy: Estimate
    auc: Estimate
    tv: Estimate
    families: tuple[str, ...]
    """Which family was chosen, fold by fold."""


def refuse_too_few(dialogues: int, folds: int) -> None:
    """
    Raises:
        UserError: fewer dialogues than two a fold.
    """
    if dialogues < (least := least_dialogues(folds)):
        raise UserError(
            f"the two-sample test with {folds} folds needs at least {least} human dialogues "
            f"on each side, not {dialogues}"
        )


def cross_fit(
    rows: Rows, families: Mapping[str, Fit], *, folds: int, seed: int, null_band: Band | None = None
) -> ClassifierResult:
    """Score every row by a classifier trained on the dialogues of other folds.

    Args:
        null_band: of the accuracy, to be shown with it.
    """
    rng = np.random.default_rng((seed, 0))
    fold = (rng.permutation(rows.dialogue.max() + 1) % folds)[rows.dialogue]
    correct = np.empty(len(fold), dtype=np.float64)
    score = np.empty(len(fold), dtype=np.float64)
    fold_families = []
    for k in range(folds):
        in_fold = fold == k
        family, threshold, model = _choose(rows.select(~in_fold), families, rng)
        fold_families.append(family)
        if in_fold.any():
            score[in_fold] = model(rows.select(in_fold))
            correct[in_fold] = (score[in_fold] > threshold) == rows.label[in_fold]
    accuracy = _accuracy(correct, rows, null_band)
    return ClassifierResult(
        accuracy=accuracy, auc=_auc(score, fold, rows, seed), tv=advantage(accuracy), families=tuple(fold_families)
    )


def null_bands(
    rows: Rows, families: Mapping[str, Fit], *, folds: int, seed: int, halvings: int, max_dialogues: int | None = None
) -> tuple[Band, Band]:
    """Lowest and highest limit of accuracy and of AUC between random halves of the dialogues of ``rows``, all human.

    The halves are not matched history by history, but their histories have the same distribution, so that the
    true advantage is 0 all the same. NaN where ``halvings`` is 0.

    Args:
        max_dialogues: for sets that are not matched, the dialogues of the other side. The halves are then cut down to
            so many, and balanced as the sets are, so that chance is no smaller in them than between the sets.

    Raises:
        UserError: too few dialogues to halve and cross-fit.
    """
    count = int(rows.dialogue.max()) + 1
    refuse_too_few(count // 2, folds)
    limits: list[tuple[float, float]] = []
    for i in range(halvings):
        order = np.random.default_rng((seed, 1, i)).permutation(count)
        halves = replace(rows, label=(order % 2)[rows.dialogue])
        if max_dialogues is not None:
            halves = halves.select(order[rows.dialogue] < 2 * min(count // 2, max_dialogues))
            halves = halves.select(balanced(halves.label, halves.turn, seed))
        result = cross_fit(halves, families, folds=folds, seed=seed)
        limits += [(result.accuracy.low, result.auc.low), (result.accuracy.high, result.auc.high)]
    accuracy, auc = ([pair[i] for pair in limits if math.isfinite(pair[i])] for i in (0, 1))
    return (
        (min(accuracy, default=math.nan), max(accuracy, default=math.nan)),
        (min(auc, default=math.nan), max(auc, default=math.nan)),
    )


def balanced(label: NDArray[np.int64], turn: NDArray[np.int64], seed: int) -> Mask:
    """Which rows [N] to keep so that each turn has as many of either label, drawn at random where one has more:
    0.5 is then chance. Rows of a turn that one side lacks are dropped."""
    keep = np.zeros(len(label), dtype=np.bool_)
    rng = np.random.default_rng((seed, 2))
    for value in np.unique(turn):
        sides = [np.flatnonzero((turn == value) & (label == side)) for side in (0, 1)]
        size = min(map(len, sides))
        for side in sides:
            keep[rng.permutation(side)[:size]] = True
    return keep


def _choose(train: Rows, families: Mapping[str, Fit], rng: np.random.Generator) -> tuple[str, float, Model]:
    """Choose family and threshold on a third of the training dialogues, then fit the family on all of them."""
    set_aside = rng.permutation(train.dialogue.max() + 1)[train.dialogue] % 3 == 0
    if any(len(np.unique(train.label[rows])) < 2 for rows in (set_aside, ~set_aside)):
        return "constant", 0.5, lambda data: np.full(len(data.label), 0.5)
    fit_on, selection = train.select(~set_aside), train.select(set_aside)
    trials = []
    for name, fit_family in families.items():
        threshold, accuracy = _best_threshold(fit_family(fit_on)(selection), selection.label)
        trials.append((accuracy, name, threshold))
    _, name, threshold = max(trials, key=lambda trial: trial[0])
    return name, threshold, families[name](train)


def _best_threshold(score: Floats, label: NDArray[np.int64]) -> tuple[float, float]:
    """The cut among 0.3 to 0.7 that is right most often, the nearest to 0.5 among equals; and its accuracy."""
    cuts = 0.5 + np.array([0, -1, 1, -2, 2, -3, 3, -4, 4]) * 0.05
    share_correct = ((score[:, None] > cuts) == label[:, None].astype(bool)).mean(axis=0)
    best = int(share_correct.argmax())
    return float(cuts[best]), float(share_correct[best])


def wilson_interval(correct: Floats, cluster: NDArray[np.int64]) -> tuple[float, float, float]:
    """Share of ``correct`` [N] (0 or 1) with its 95 % limits, dependent within ``cluster`` [N]; (0, 1) as limits
    where a single cluster cannot tell."""
    interval = share_interval(correct, cluster)
    return (interval.mean, 0.0, 1.0) if math.isnan(interval.low) else (interval.mean, interval.low, interval.high)


def _accuracy(correct: Floats, data: Rows, null_band: Band | None) -> Estimate:
    by_turn = []
    for turn in np.unique(data.turn):
        at_turn = data.turn == turn
        value, low, high = wilson_interval(correct[at_turn], data.dialogue[at_turn])
        count = int(at_turn.sum()) // 2
        by_turn.append(TurnEstimate(turn=int(turn), value=value, low=low, high=high, count=count))
    value, low, high = wilson_interval(correct, data.dialogue)
    null_low, null_high = null_band or (None, None)
    return Estimate(
        name="classifier_accuracy",
        value=value,
        low=low,
        high=high,
        by_turn=tuple(by_turn),
        null_low=null_low,
        null_high=null_high,
        far="above",
    )


def advantage(accuracy: Estimate) -> Estimate:
    """``max(0, 2a - 1)`` of all metrics of an accuracy, under the name ``tv``."""

    def tv(a: float) -> float:
        return max(0.0, 2 * a - 1)

    return Estimate(
        name="tv",
        value=tv(accuracy.value),
        low=tv(accuracy.low),
        high=tv(accuracy.high),
        by_turn=tuple(
            TurnEstimate(turn=t.turn, value=tv(t.value), low=tv(t.low), high=tv(t.high), count=t.count)
            for t in accuracy.by_turn
        ),
        null_low=None if accuracy.null_low is None else tv(accuracy.null_low),
        null_high=None if accuracy.null_high is None else tv(accuracy.null_high),
        far="above",
        notes=("low is a lower bound on the histories measured; high bounds nothing",),
    )


def _auc(score: Floats, fold: NDArray[np.int64], data: Rows, seed: int) -> Estimate:
    """Area under the ROC curve: each reply's share of opposite replies, in its fold, that it is ranked right
    against, averaged over either side, which is the mean of the folds' AUCs. Dialogues are resampled. A reply
    counts as itself and as one that the others are compared with: both sides' deviations add up (DeLong 1988),
    so each is scaled by the inverse of its side's share before it is averaged over both."""
    rank_share = np.full(len(score), np.nan)
    for k in np.unique(fold):
        for label in (0, 1):
            ranked = np.flatnonzero((fold == k) & (data.label == label))
            opposite = np.sort(score[(fold == k) & (data.label != label)])
            if len(opposite):
                below = np.searchsorted(opposite, score[ranked], "left")
                ties = np.searchsorted(opposite, score[ranked], "right") - below
                turn_share = (below + ties / 2) / len(opposite)
                rank_share[ranked] = turn_share if label else 1 - turn_share
    is_ranked = ~np.isnan(rank_share)
    rank_share, label, dialogue = rank_share[is_ranked], data.label[is_ranked], data.dialogue[is_ranked]
    if not len(rank_share):
        return Estimate(name="classifier_auc", value=math.nan, low=math.nan, high=math.nan, far="above")
    middle = rank_share.mean()
    influence = middle + (rank_share - middle) / np.bincount(label, minlength=2)[label] * len(label)
    interval = ratio_interval(influence, np.ones(len(label)), dialogue, seed)
    return Estimate(name="classifier_auc", value=interval.mean, low=interval.low, high=interval.high, far="above")
