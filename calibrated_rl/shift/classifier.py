"""Classifier two-sample test on matched histories: can a reply be told to be the simulator's or the human's?

One reply is scored at a time, with its history. If a classifier that has not seen these dialogues is right with
probability ``a`` (both sides equally frequent on every history), then ``TV(human, simulator) >= 2a - 1`` on those
histories, because ``a <= (1 + TV) / 2`` for any classifier. So ``max(0, 2a - 1)`` with the *lower* limit of ``a`` is a
lower bound of the total variation on the histories it was measured on. (Source: the classifier two-sample test
of Lopez-Paz and Oquab, "Revisiting Classifier Two-Sample Tests", ICLR 2017; total variation is the best
achievable advantage.) It says nothing of what no family here can see: 0 does not mean alike.

- Cross-fitted by dialogue: every reply is judged by a classifier trained on other dialogues.
- Family and threshold are chosen inside the training folds, on dialogues of theirs that were set aside.
- The interval is Wilson's with the effective number of independent replies (whole dialogues vary together, and
  both replies to a history belong to one) and a t quantile, which stays honest near 1 and with few dialogues.
- AUC describes; the bound comes from accuracy. Folds train on each other, so near chance the AUC's interval,
  which takes the classifiers as given, is too narrow (it held the truth in 82 % of simulated null cases, that of
  accuracy in 94 %). There the null band is the guard.
- The null band says what the same procedure finds between two halves of the human data.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

from calibrated_rl.dialogue import Turn
from calibrated_rl.errors import UserError
from calibrated_rl.evaluation.statistics import ratio_interval
from calibrated_rl.shift.base import Estimate, MatchedReplies, TurnEstimate
from calibrated_rl.shift.features import act_features, act_figures, word_features, word_figures

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Replies:
    """Replies of both sides, one a row, ready for classifiers."""

    label: NDArray[np.int64]
    """[N], 1 for the simulator."""
    dialogue: NDArray[np.int64]
    """[N], number of the human dialogue."""
    turn: NDArray[np.int64]
    text: Any
    """Sparse [N, F]."""
    figures: NDArray[np.float64]
    """[N, K]."""

    def where(self, rows: Mask) -> "_Replies":
        return _Replies(
            label=self.label[rows],
            dialogue=self.dialogue[rows],
            turn=self.turn[rows],
            text=self.text[rows],
            figures=self.figures[rows],
        )


@dataclass(frozen=True, kw_only=True)
class ClassifierResult:
    """``tv.low`` is the lower bound of the total variation, overall and by turn; ``tv.high`` bounds nothing."""

    accuracy: Estimate
    auc: Estimate
    tv: Estimate
    families: tuple[str, ...]
    """Which family was chosen, fold by fold."""


class TwoSampleTest:
    """The test as a component; ``measure`` compares a simulator with humans, ``null_band`` humans with humans."""

    @dataclass(frozen=True)
    class Config:
        inputs: str = "words"
        """``words`` (the text) or ``acts`` (dialogue acts, blind to typing)."""
        folds: int = 3
        """Cross-fitting folds over dialogues."""
        null_halvings: int = 5
        """How many random halvings of the human data make the null band; 0 leaves it out."""
        seed: int = 0

    def __init__(self, config: Config) -> None:
        if config.inputs not in ("words", "acts"):
            raise UserError(f"inputs must be 'words' or 'acts', not '{config.inputs}'")
        if config.folds < 2:
            raise UserError(f"folds must be at least 2, not {config.folds}")
        self.config = config

    def measure(
        self, matched: MatchedReplies, null_band: tuple[float, float] | None = None
    ) -> ClassifierResult:
        """Compare ``simulator`` with ``human``. ``null_band`` of accuracy, if the caller has it already (it depends
        on the human data alone), is not measured again.

        Raises:
            UserError: too few dialogues to cross-fit, or acts are wanted and not there.
        """
        if null_band is None and self.config.null_halvings > 0:
            null_band = self.null_band(matched)
        data = self._prepare(
            [*matched.human, *matched.simulator],
            [*matched.human_acts, *matched.simulator_acts],
            [*matched.histories, *matched.histories],
            [*matched.turn, *matched.turn],
            [*matched.dialogue, *matched.dialogue],
            np.repeat([0, 1], len(matched)),
        )
        return self._test(data, null_band)

    def null_band(self, matched: MatchedReplies) -> tuple[float, float]:
        """Lowest and highest limit of the accuracy between random halves of the human dialogues.

        The halves are not matched history by history, but their histories have the same distribution, so that
        the true advantage is 0 all the same.

        Raises:
            UserError: too few dialogues to halve and cross-fit.
        """
        data = self._prepare(
            matched.human,
            matched.human_acts,
            matched.histories,
            matched.turn,
            matched.dialogue,
            np.zeros(len(matched), dtype=np.int64),
        )
        count = int(data.dialogue.max()) + 1
        self._refuse_too_few(count // 2)
        limits: list[float] = []
        for i in range(self.config.null_halvings):
            order = np.random.default_rng((self.config.seed, 1, i)).permutation(count)
            label = (order % 2)[data.dialogue]
            halves = _Replies(
                label=label, dialogue=data.dialogue, turn=data.turn, text=data.text, figures=data.figures
            )
            accuracy = self._test(halves, None).accuracy
            limits += [accuracy.low, accuracy.high]
        return min(limits, default=math.nan), max(limits, default=math.nan)

    def _refuse_too_few(self, dialogues: int) -> None:
        needed = 2 * self.config.folds
        if dialogues < needed:
            raise UserError(
                f"the two-sample test with {self.config.folds} folds needs at least {needed} human dialogues "
                f"on each side, not {dialogues}"
            )

    def _prepare(
        self,
        replies: Sequence[str],
        acts: Sequence[Sequence[str]],
        histories: Sequence[Sequence[Turn]],
        turn: Sequence[int],
        dialogue: Sequence[str],
        label: NDArray[np.int64],
    ) -> _Replies:
        names, number = np.unique(np.asarray(dialogue, dtype=str), return_inverse=True)
        self._refuse_too_few(len(names))
        if self.config.inputs == "acts":
            if not acts:
                raise UserError("the two-sample test on acts was given replies without dialogue acts")
            text, figures = act_features(acts, histories, turn), act_figures(acts, histories, turn)
        else:
            text, figures = word_features(replies, histories, turn), word_figures(replies, histories, turn)
        used = (
            text.getnnz(axis=0) > 0
        )  # most hashed columns are empty, and a fit would pay for them all the same
        turn_N = np.asarray(turn, dtype=np.int64)
        return _Replies(label=label, dialogue=number, turn=turn_N, text=text[:, used], figures=figures)

    def _test(self, data: _Replies, null_band: tuple[float, float] | None) -> ClassifierResult:
        rng = np.random.default_rng((self.config.seed, 0))
        fold = (rng.permutation(data.dialogue.max() + 1) % self.config.folds)[data.dialogue]
        correct = np.empty(len(fold), dtype=np.float64)
        score = np.empty(len(fold), dtype=np.float64)
        chosen = []
        for k in range(self.config.folds):
            family, threshold, model = _train(data.where(fold != k), rng)
            chosen.append(family)
            score[fold == k] = model(data.where(fold == k))
            correct[fold == k] = (score[fold == k] > threshold) == data.label[fold == k]
        return ClassifierResult(
            accuracy=_accuracy(correct, data, null_band),
            auc=_auc(score, fold, data, self.config.seed),
            tv=_advantage(_accuracy(correct, data, null_band)),
            families=tuple(chosen),
        )


Model = Callable[[_Replies], NDArray[np.float64]]


def _logistic(train: _Replies, strength: float) -> Model:
    model = LogisticRegression(C=strength, solver="liblinear", max_iter=50, tol=1e-3)
    model.fit(train.text, train.label)
    return lambda data: np.asarray(model.predict_proba(data.text)[:, 1])


def _forest(train: _Replies) -> Model:
    model = RandomForestClassifier(n_estimators=60, min_samples_leaf=5, random_state=0, n_jobs=1)
    model.fit(train.figures, train.label)
    return lambda data: np.asarray(model.predict_proba(data.figures)[:, 1])


FAMILIES: dict[str, Callable[[_Replies], Model]] = {
    "logistic, strongly regularised": lambda train: _logistic(train, 0.3),
    "logistic": lambda train: _logistic(train, 5.0),
    "forest": _forest,
}


def _train(train: _Replies, rng: np.random.Generator) -> tuple[str, float, Model]:
    """Choose family and threshold on a third of the training dialogues, then fit the family on all of them."""
    part = rng.permutation(train.dialogue.max() + 1)[train.dialogue]
    aside = part % 3 == 0
    if len(np.unique(train.label)) < 2 or any(len(np.unique(train.label[m])) < 2 for m in (aside, ~aside)):
        return "constant", 0.5, lambda data: np.full(len(data.label), 0.5)
    fit_on, judge = train.where(~aside), train.where(aside)
    trials = []
    for name, fit in FAMILIES.items():
        threshold, accuracy = _best_threshold(fit(fit_on)(judge), judge.label)
        trials.append((accuracy, name, threshold))
    _, name, threshold = max(trials, key=lambda trial: trial[0])
    return name, threshold, FAMILIES[name](train)


def _best_threshold(score: NDArray[np.float64], label: NDArray[np.int64]) -> tuple[float, float]:
    """The cut among 0.3 to 0.7 that is right most often, the nearest to 0.5 among equals; and its accuracy."""
    cuts = 0.5 + np.array([0, -1, 1, -2, 2, -3, 3, -4, 4]) * 0.05
    right = ((score[:, None] > cuts) == label[:, None].astype(bool)).mean(axis=0)
    best = int(right.argmax())
    return float(cuts[best]), float(right[best])


def wilson_interval(correct: NDArray[np.float64], cluster: NDArray[np.int64]) -> tuple[float, float, float]:
    """Share of ``correct`` [N] (0 or 1) with its 95 % limits, dependent within ``cluster`` [N]; (0, 1) as limits
    where a single cluster cannot tell."""
    share, count = float(correct.mean()), len(correct)
    _, index = np.unique(cluster, return_inverse=True)
    groups = int(index.max()) + 1
    if groups < 2:
        return share, 0.0, 1.0
    residual = np.bincount(index, weights=correct - share)
    variance = groups / (groups - 1) * float(residual @ residual) / count**2
    # All alike within every dialogue and across them: count dialogues, not replies.
    effective = min(count, share * (1 - share) / variance) if variance > 0 else groups
    z2 = float(stdtrit(groups - 1, 0.975)) ** 2
    middle = (share + z2 / (2 * effective)) / (1 + z2 / effective)
    half = math.sqrt(z2 * (share * (1 - share) / effective + z2 / (4 * effective**2))) / (1 + z2 / effective)
    return share, max(0.0, middle - half), min(1.0, middle + half)


def _accuracy(
    correct: NDArray[np.float64], data: _Replies, null_band: tuple[float, float] | None
) -> Estimate:
    by_turn = []
    for turn in np.unique(data.turn):
        here = data.turn == turn
        value, low, high = wilson_interval(correct[here], data.dialogue[here])
        count = int(here.sum()) // 2
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
    )


def _advantage(accuracy: Estimate) -> Estimate:
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
        notes=("low is a lower bound on the histories measured; high bounds nothing",),
    )


def _auc(score: NDArray[np.float64], fold: NDArray[np.int64], data: _Replies, seed: int) -> Estimate:
    """Area under the ROC curve: each reply's share of opposite replies, in its fold, that it is ranked right
    against, averaged over either side, which is the mean of the folds' AUCs. Dialogues are resampled. A reply
    counts as itself and as one that the others are compared with: both sides' deviations add up (DeLong 1988),
    so each is scaled by the inverse of its side's share before it is averaged over both."""
    placed = np.full(len(score), np.nan)
    for k in np.unique(fold):
        for label in (0, 1):
            mine = np.flatnonzero((fold == k) & (data.label == label))
            others = np.sort(score[(fold == k) & (data.label != label)])
            if len(others):
                below = np.searchsorted(others, score[mine], "left")
                ties = np.searchsorted(others, score[mine], "right") - below
                share = (below + ties / 2) / len(others)
                placed[mine] = share if label else 1 - share
    known = ~np.isnan(placed)
    placed, label, dialogue = placed[known], data.label[known], data.dialogue[known]
    if not len(placed):
        return Estimate(name="classifier_auc", value=math.nan, low=math.nan, high=math.nan)
    middle = placed.mean()
    influence = middle + (placed - middle) / np.bincount(label, minlength=2)[label] * len(label)
    interval = ratio_interval(influence, np.ones(len(label)), dialogue, seed)
    return Estimate(name="classifier_auc", value=interval.mean, low=interval.low, high=interval.high)
