"""Classifier two-sample test on words or dialogue acts: can a classifier tell the simulator's replies from the human's?

Both replies are drawn on the same histories (``MatchedReplies``), one is scored at a time, with its history. The
formula, its source, cross-fitting, intervals and null band are in ``test.py``.

The families to choose from are logistic regressions on hashed words and a forest on interpretable features.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

from calibrated_rl.errors import UserError
from calibrated_rl.settings.fields import NotNegative, Range, Seed, check_settings
from calibrated_rl.shift.base import MatchedReplies
from calibrated_rl.shift.sizes import FOLDS
from calibrated_rl.shift.two_sample.features import act_features, dense_act_features, dense_word_features, word_features
from calibrated_rl.shift.two_sample.labelled import LabelledReplies, both_sides, human_side
from calibrated_rl.shift.two_sample.test import (
    Band,
    ClassifierResult,
    Fit,
    Floats,
    Model,
    Rows,
    cross_fit,
    null_bands,
    refuse_too_few,
    wilson_interval,
)

__all__ = [
    "CLASSIFIERS", "FAMILIES", "ClassifierResult", "TwoSampleTest", "fit_forest", "see_acts", "see_words",
    "wilson_interval",
]  # fmt: skip


class TwoSampleTest:
    """The test as a component; ``measure`` compares a simulator with humans, ``null_band`` humans with humans."""

    @dataclass(frozen=True)
    class Config:
        inputs: Literal["words", "acts"] = "words"
        """``words`` (the text) or ``acts`` (dialogue acts, blind to typing)."""
        folds: Annotated[int, Range(at_least=2)] = FOLDS
        """Cross-fitting folds over dialogues."""
        null_halvings: NotNegative = 5
        """How many random halvings of the human data make the null band; 0 leaves it out."""
        seed: Seed = 0
        """Of all random draws."""

    def __init__(self, config: Config) -> None:
        check_settings(config, "two_sample")
        self.config = config

    def measure(self, matched: MatchedReplies, null_band: Band | None = None) -> ClassifierResult:
        """Compare ``simulator`` with ``human``. ``null_band`` of accuracy, if the caller has it already (it depends
        on the human data alone), is not measured again.

        Raises:
            UserError: too few dialogues to cross-fit, or acts are wanted and not there.
        """
        if null_band is None and self.config.null_halvings > 0:
            null_band = self.null_band(matched)
        rows = self._rows(both_sides(matched))
        return cross_fit(rows, FAMILIES, folds=self.config.folds, seed=self.config.seed, null_band=null_band)

    def null_band(self, matched: MatchedReplies) -> Band:
        """Lowest and highest limit of the accuracy between random halves of the human dialogues.

        Raises:
            UserError: too few dialogues to halve and cross-fit.
        """
        c = self.config
        rows = self._rows(human_side(matched))
        return null_bands(rows, FAMILIES, folds=c.folds, seed=c.seed, halvings=c.null_halvings)[0]

    def _rows(self, replies: LabelledReplies) -> Rows:
        refuse_too_few(len(set(replies.user)), self.config.folds)
        return replies.rows(see_acts if self.config.inputs == "acts" else see_words)


def see_words(data: LabelledReplies) -> tuple[Any, Floats]:
    """Hashed words of reply and history, sparse [N, F], and interpretable features [N, 14]."""
    text = word_features(data.replies, data.histories, data.turn)
    return _without_empty_columns(text), dense_word_features(data.replies, data.histories, data.turn)


def see_acts(data: LabelledReplies) -> tuple[Any, Floats]:
    """Hashed dialogue acts, sparse [N, F], and dense features of them [N, K].

    Raises:
        UserError: the replies come without acts.
    """
    if not data.acts:
        raise UserError("the two-sample test on acts was given replies without dialogue acts")
    text = act_features(data.acts, data.histories, data.turn)
    return _without_empty_columns(text), dense_act_features(data.acts, data.histories, data.turn)


def _without_empty_columns(text: Any) -> Any:
    """Without the columns that are empty: most hashed ones are, and a fit would pay for them all the same."""
    return text[:, text.getnnz(axis=0) > 0]


def _fit_logistic(train: Rows, strength: float) -> Model:
    model = LogisticRegression(C=strength, solver="liblinear", max_iter=50, tol=1e-3)
    model.fit(train.text, train.label)
    return lambda data: np.asarray(model.predict_proba(data.text)[:, 1])


def fit_forest(train: Rows) -> Model:
    """A random forest on the dense features."""
    model = RandomForestClassifier(n_estimators=60, min_samples_leaf=5, random_state=0, n_jobs=1)
    model.fit(train.dense, train.label)
    return lambda data: np.asarray(model.predict_proba(data.dense)[:, 1])


CLASSIFIERS = ("linear", "forest")
"""What kinds of classifiers ``FAMILIES`` are."""
FAMILIES: Mapping[str, Fit] = {
    "logistic, strongly regularised": lambda train: _fit_logistic(train, 0.3),
    "logistic": lambda train: _fit_logistic(train, 5.0),
    "forest": fit_forest,
}
