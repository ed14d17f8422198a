"""MAUVE: how much the user turns of two sets overlap, whatever was said before. No per-turn shift.

User turns are embedded by a frozen encoder and quantised by k-means on both sides together, which gives distributions
``p`` (human) and ``q`` (simulator) over clusters. With ``r = l p + (1 - l) q`` for ``l`` in [0, 1], the score is the
area under the curve of the points

    (exp(-c KL(q || r)), exp(-c KL(p || r))),    c = 5

(Pillutla et al., "MAUVE: Measuring the Gap Between Neural Text and Human Text using Divergence Frontiers", NeurIPS
2021, equations 1 and 2). 1 is the same distribution, 1/252 none in common. Few samples make it too *small* (chance
looks
like distance), and how much depends on their number and on the number of clusters, which is why it is only read beside
its null band, and why metrics of other encoders or sample sizes cannot be set beside it. The interval takes the
clusters as given.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from calibrated_rl.errors import UserError
from calibrated_rl.settings.fields import Name, NotNegative, Range, Seed, check_settings
from calibrated_rl.shift.base import Estimate
from calibrated_rl.shift.interface import DialogueEstimator, DialogueSets, Floats, bootstrap, user_texts, users_of
from calibrated_rl.shift.shares import between, table
from calibrated_rl.shift.two_sample.sentence_encoder import DEFAULT, encoder


def frontier_area(p_BK: Floats, q_BK: Floats, scaling: float = 5.0, points: int = 101) -> Floats:
    """MAUVE [B] of distributions over K clusters, row by row; symmetric in ``p`` and ``q``."""

    def kl(a: Floats, b: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(a > 0, a * (np.log(a) - np.log(b)), 0.0)
        return np.asarray(terms.sum(axis=1))

    curve = [(kl(q_BK, r), kl(p_BK, r)) for w in np.linspace(0, 1, points) for r in [w * p_BK + (1 - w) * q_BK]]
    x, y = (np.exp(-scaling * np.maximum(0.0, np.stack(divergences))) for divergences in zip(*curve, strict=True))
    # From (1, y) at l = 0 leftwards to (x, 1) at l = 1, and then level to the axis.
    return np.asarray(((x[:-1] - x[1:]) * (y[:-1] + y[1:]) / 2).sum(axis=0) + x[-1])


class Mauve(DialogueEstimator):
    """``mauve`` of the user turns, 0 to 1; higher is nearer."""

    @dataclass(frozen=True)
    class Config:
        encoder: Name = DEFAULT
        """Package, folder or ``hashing``; see ``sentence_encoder.py``."""
        clusters: NotNegative = 0
        """Clusters of k-means; 0: a tenth of the smaller side's turns, as in the paper, at most 100."""
        scaling: Annotated[float, Range(above=0)] = 5.0
        """``c`` of the formula."""
        null_halvings: NotNegative = 5
        """Random halvings of the human dialogues for the null band; 0 leaves it out."""
        seed: Seed = 0
        """Of all random draws."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = config = config or self.Config()
        check_settings(config, "mauve")
        if config.clusters == 1:
            raise UserError("mauve.clusters is 1: it must be 0 or at least 2")
        super().__init__(config.null_halvings, config.seed)

    def compare(self, sets: DialogueSets) -> dict[str, Estimate]:
        sets.require_both("MAUVE")
        texts = [[user_texts(d) for d in side] for side in (sets.human, sets.simulator)]
        flat = [[text for dialogue_texts in side for text in dialogue_texts] for side in texts]
        fewest = min(map(len, flat))
        if fewest < 2:
            raise UserError(f"MAUVE needs at least 2 user turns on each side, not {fewest}")
        vectors = encoder(self.config.encoder)([*flat[0], *flat[1]]).astype(np.float64)
        clusters = min(self.config.clusters or min(100, max(2, fewest // 10)), len(np.unique(vectors, axis=0)))
        if min(vectors.shape) > 2 and clusters > 1:
            vectors = PCA(n_components=0.9, svd_solver="full").fit_transform(vectors)
        label = KMeans(clusters, n_init=2, random_state=self.seed).fit_predict(vectors)
        ends = np.cumsum([len(dialogue_texts) for side in texts for dialogue_texts in side])[:-1]
        rows = np.split(label, ends)
        human, simulator = (table(side_rows, clusters) for side_rows in (rows[: len(texts[0])], rows[len(texts[0]) :]))

        def area(p: Floats, q: Floats) -> Floats:
            return frontier_area(p, q, self.config.scaling)

        users = users_of(sets.human), users_of(sets.simulator)
        resampled = bootstrap(between(area, human, simulator), users, self.seed)
        notes = (f"{clusters} clusters; few turns make it too small: read it beside its null band",)
        return {"mauve": resampled.estimate("mauve", far="below", maximum=1.0, notes=notes)}
