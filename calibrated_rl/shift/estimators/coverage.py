"""Coverage: how much of the variety of human users a simulator reaches, and how much of what it does is human.

A dialogue is a point: its traits (``traits.py``), each minus the mean and over the standard deviation of the human
users' (a trait without its occasion is put at the human users' mean). With ``d(X, Y)`` the mean over points of ``X`` of
the distance to the nearest point of ``Y`` (one direction of the Chamfer distance; Fan, Su and Guibas, "A Point Set
Generation Network for 3D Object Reconstruction from a Single Image", CVPR 2017, section 4.1), two disjoint sets ``H1``,
``H2`` of human users and a set ``S`` of dialogues of the simulator, all of equally many users:

    coverage  = d(H1, H2) / d(H1, S)        humanness = d(H2, H1) / d(S, H1)

numerators and denominators being means over random draws of such sets. 1 is what other human users reach. Low coverage
with high humanness is one convincing voice that passes for a population; high coverage with low humanness is noise that
reaches every user and resembles none. Above 1 (cut at 2) the simulator is nearer to human users than they are to one
another: copies of logs, or only their most typical behaviour.

The interval takes the numerator as given and is therefore somewhat too narrow; the null band is the guard.
"""

from dataclasses import dataclass

import numpy as np

from calibrated_rl.errors import UserError
from calibrated_rl.settings.fields import NotNegative, Positive, Seed, check_settings
from calibrated_rl.shift.base import Estimate
from calibrated_rl.shift.estimators.similarity import equal_halves
from calibrated_rl.shift.interface import DialogueEstimator, DialogueSets, Floats, bootstrap, users_of
from calibrated_rl.shift.traits import trait_tables

_MOST = 2.0


def nearest(distance_NM: Floats, weights_BN: Floats, weights_BM: Floats) -> Floats:
    """Mean, over rows by their weights, of the distance to the nearest column of positive weight: [B]."""
    result = np.empty(len(weights_BN))
    for b, (rows, columns) in enumerate(zip(weights_BN, weights_BM, strict=True)):
        distance = distance_NM[rows > 0][:, columns > 0]
        result[b] = np.average(distance.min(axis=1), weights=rows[rows > 0])
    return result


class Coverage(DialogueEstimator):
    """``coverage`` and ``humanness``, 1 where the simulator is as other human users are; see the module's docstring."""

    @dataclass(frozen=True)
    class Config:
        rounds: Positive = 20
        """Random draws of the sets."""
        null_halvings: NotNegative = 5
        """Random halvings of the human dialogues for the null band; 0 leaves it out."""
        seed: Seed = 0
        """Of all random draws."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = config = config or self.Config()
        check_settings(config, "coverage")
        super().__init__(config.null_halvings, config.seed)

    def compare(self, sets: DialogueSets) -> dict[str, Estimate]:
        human, simulator, _ = trait_tables(sets, "coverage")
        users = users_of(sets.human), users_of(sets.simulator)
        first, second, third = equal_halves(*users, self.config.rounds, self.seed, "coverage")
        human, simulator = _standardised(human, simulator)
        among, across = _distances(human, human), _distances(human, simulator)
        numerator = [nearest(among, first, second).mean(), nearest(among, second, first).mean()]
        denominator = [nearest(across, first, third).mean(), nearest(across.T, third, first).mean()]
        value = np.array([_ratio(a, b) for a, b in zip(numerator, denominator, strict=True)])

        def directed(a: Floats, b: Floats) -> Floats:
            return np.stack([nearest(across, a, b), nearest(across.T, b, a)], axis=1)

        # A floor under the distances: a resample whose sets nearly coincide would otherwise dominate the interval.
        full_distance = np.maximum(directed(*(np.ones((1, len(p))) for p in users)), 1e-12)
        resampled = bootstrap(
            lambda a, b: value * full_distance / np.maximum(directed(a, b), full_distance / 10),
            users,
            self.seed,
            value=value,
        )
        names = ("coverage", "humanness")
        return {name: resampled.estimate(name, i, far="below", maximum=_MOST) for i, name in enumerate(names)}


def _ratio(a: float, b: float) -> float:
    if b > 0:
        return min(a / b, _MOST)
    return _MOST if a > 0 else 1.0


def _standardised(human: Floats, simulator: Floats) -> tuple[Floats, Floats]:
    """Both in standard deviations of the human users' traits; traits that no user of either side has are left out, as
    are those in which all human users agree (they have no scale)."""
    is_defined = np.isfinite(human)
    count = np.maximum(is_defined.sum(axis=0), 1)
    mean = np.where(is_defined, human, 0.0).sum(axis=0) / count
    spread = np.sqrt((np.where(is_defined, human - mean, 0.0) ** 2).sum(axis=0) / count)
    varies = spread > 1e-9
    if not varies.any():
        raise UserError("coverage: the human users do not differ from one another in any trait")
    return tuple(np.nan_to_num((side - mean)[:, varies] / spread[varies]) for side in (human, simulator))  # type: ignore[return-value]


def _distances(a: Floats, b: Floats) -> Floats:
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None] - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0.0))
