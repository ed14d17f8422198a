"""Classifier two-sample test, family of sentence encoders: a frozen encoder and a logistic regression.

Seen are the vectors of the reply ``r`` and, element by element, its product with the vector ``q`` of the policy's turn
before it (``[r, r * q]``: what is said, and how it answers), and the turn index. The encoder was trained on other text
and is not touched, so that this family asks whether the *meaning* differs, where the others can live off spelling.
With ``hashing`` as encoder it is a second family on wording instead.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from calibrated_rl.settings.fields import Name
from calibrated_rl.shift.two_sample.features import last_policy
from calibrated_rl.shift.two_sample.labelled import LabelledReplies
from calibrated_rl.shift.two_sample.replies import FamilyConfig, ReplyTest
from calibrated_rl.shift.two_sample.sentence_encoder import DEFAULT, encoder
from calibrated_rl.shift.two_sample.test import Fit, Floats, Model, Rows

_TURNS = 8


class EncoderTest(ReplyTest):
    """``encoder_accuracy``, ``encoder_auc``, ``encoder_tv``; see the module's docstring.

    ``measure`` raises UserError where there is no such encoder; the message says what to install.
    """

    name = "encoder"
    classifiers = ("linear",)

    @dataclass(frozen=True, kw_only=True)
    class Config(FamilyConfig):
        encoder: Name = DEFAULT
        """Package, folder or ``hashing``; see ``sentence_encoder.py``."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = config = config or self.Config()
        super().__init__(config)

    def see(self, data: LabelledReplies) -> tuple[Any, Floats]:
        encode = encoder(self.config.encoder)
        reply = encode(data.replies)
        question = encode([last_policy(history) for history in data.histories])
        turn = np.minimum(np.asarray(data.turn, np.int64), _TURNS)
        return np.concatenate([reply, reply * question], axis=1), np.eye(_TURNS + 1)[turn]

    def families(self) -> Mapping[str, Fit]:
        return {f"logistic, C = {c}": partial(_fit, strength=c) for c in (0.001, 0.03)}


def _fit(train: Rows, strength: float) -> Model:
    scale = StandardScaler().fit(_columns(train))
    model = LogisticRegression(C=strength, max_iter=200).fit(scale.transform(_columns(train)), train.label)
    return lambda data: np.asarray(model.predict_proba(scale.transform(_columns(data)))[:, 1])


def _columns(data: Rows) -> Floats:
    return np.concatenate([data.text, data.dense], axis=1)
