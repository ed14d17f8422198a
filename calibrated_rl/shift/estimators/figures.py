"""Classifier two-sample test, family of interpretable figures: a random forest on fourteen numbers a reply.

Seen are length, punctuation, case, overlap with what was said before and the turn index (``features.word_figures``),
and no word as such: where this family tells the sides apart, how people write differs, whatever they write about.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from calibrated_rl.shift.two_sample.classifier import fit_forest
from calibrated_rl.shift.two_sample.features import word_figures
from calibrated_rl.shift.two_sample.labelled import LabelledReplies
from calibrated_rl.shift.two_sample.replies import FamilyConfig, ReplyTest
from calibrated_rl.shift.two_sample.test import Fit, Floats


class FiguresTest(ReplyTest):
    """``figures_accuracy``, ``figures_auc``, ``figures_tv``."""

    name = "figures"

    @dataclass(frozen=True, kw_only=True)
    class Config(FamilyConfig):
        pass

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config or self.Config())

    def see(self, data: LabelledReplies) -> tuple[Any, Floats]:
        return np.zeros((len(data), 0)), word_figures(data.replies, data.histories, data.turn)

    def families(self) -> Mapping[str, Fit]:
        return {"forest": fit_forest}
