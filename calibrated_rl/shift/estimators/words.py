"""Classifier two-sample test, family of words: hashed words with logistic regressions, or dense features with a forest.

The same models on the same features as ``two_sample/classifier.py``, as an estimator.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from calibrated_rl.shift.two_sample.classifier import CLASSIFIERS, FAMILIES, see_words
from calibrated_rl.shift.two_sample.labelled import LabelledReplies
from calibrated_rl.shift.two_sample.replies import FamilyConfig, ReplyTest
from calibrated_rl.shift.two_sample.test import Fit, Floats


class WordsTest(ReplyTest):
    """``words_accuracy``, ``words_auc``, ``words_tv``."""

    name = "words"
    classifiers = CLASSIFIERS

    @dataclass(frozen=True, kw_only=True)
    class Config(FamilyConfig):
        pass

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config or self.Config())

    def see(self, data: LabelledReplies) -> tuple[Any, Floats]:
        return see_words(data)

    def families(self) -> Mapping[str, Fit]:
        return FAMILIES
