"""Classifier two-sample test on dialogue acts: what is said, blind to how it is said or spelt.

The same models on the same features as ``two_sample/classifier.py`` with ``inputs: acts``, as an estimator.
"""

from typing import Any

from calibrated_rl.shift.estimators.words import WordsTest
from calibrated_rl.shift.two_sample.classifier import see_acts
from calibrated_rl.shift.two_sample.labelled import LabelledReplies
from calibrated_rl.shift.two_sample.test import Floats


class ActsTest(WordsTest):
    """``acts_accuracy``, ``acts_auc``, ``acts_tv``; ``measure`` raises UserError where a reply has no acts."""

    name = "acts"

    def see(self, data: LabelledReplies) -> tuple[Any, Floats]:
        return see_acts(data)
