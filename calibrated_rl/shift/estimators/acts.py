"""Classifier two-sample test on dialogue acts: what is said, blind to how it is said or spelt.

The same models on the same features as ``two_sample/classifier.py`` with ``inputs: acts``, as an estimator.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from calibrated_rl.shift.two_sample.classifier import CLASSIFIERS, FAMILIES, see_acts
from calibrated_rl.shift.two_sample.labelled import LabelledReplies
from calibrated_rl.shift.two_sample.replies import FamilyConfig, ReplyTest
from calibrated_rl.shift.two_sample.test import Fit, Floats


class ActsTest(ReplyTest):
    """``acts_accuracy``, ``acts_auc``, ``acts_tv``; ``measure`` raises UserError where a reply has no acts."""

    name = "acts"
    classifiers = CLASSIFIERS

    @dataclass(frozen=True, kw_only=True)
    class Config(FamilyConfig):
        pass

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config or self.Config())

    def see(self, data: LabelledReplies) -> tuple[Any, Floats]:
        return see_acts(data)

    def families(self) -> Mapping[str, Fit]:
        return FAMILIES
