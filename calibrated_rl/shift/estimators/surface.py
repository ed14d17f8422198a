"""Classifier two-sample test, family of surface features: a random forest on fourteen numbers a reply.

The features are length, punctuation, case, overlap with what was said before and the turn index
(``features.dense_word_features``), and no word as such: where this family tells the sides apart, the two sides write
differently, whatever they write about.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from calibrated_rl.shift.two_sample.classifier import fit_forest
from calibrated_rl.shift.two_sample.features import dense_word_features
from calibrated_rl.shift.two_sample.labelled import LabelledReplies
from calibrated_rl.shift.two_sample.replies import FamilyConfig, ReplyTest
from calibrated_rl.shift.two_sample.test import Fit, Floats


class SurfaceTest(ReplyTest):
    """``surface_accuracy``, ``surface_auc``, ``surface_tv``."""

    name = "surface"
    classifiers = ("forest",)

    @dataclass(frozen=True, kw_only=True)
    class Config(FamilyConfig):
        pass

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config or self.Config())

    def see(self, data: LabelledReplies) -> tuple[Any, Floats]:
        return np.zeros((len(data), 0)), dense_word_features(data.replies, data.histories, data.turn)

    def families(self) -> Mapping[str, Fit]:
        return {"forest": fit_forest}
