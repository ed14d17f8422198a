"""The decision to end the dialogue: does a simulator stop where human users stop?

Given, for each human user turn, the probability with which the simulator would have ended the dialogue there and
whether the user did. Whoever calls this has decided what "end" is (an end-of-dialogue token, an act such as
``leave``) and has summed the probability of all ways to say it.

- ``ending_f1 = 2 TP / (2 TP + FP + FN)`` of "ends here" where the probability exceeds ``threshold`` (van Rijsbergen,
  "Information Retrieval", 1979, chapter 7).
- ``ending_ece``, the expected calibration error ``sum_b n_b / n |mean outcome - mean probability|`` over bins of equal
  width (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3). Chance makes it positive even
  for right probabilities: most of that is taken out, bin by bin, as ``symbol_counts.py`` does with total variations.
  Its null band is what outcomes drawn from the probabilities themselves give (consistency resampling; Broecker and
  Smith, "Increasing the Reliability of Reliability Diagrams", 2007).
- ``ending_bias``, mean probability minus share of turns that ended the dialogue: above 0 it would leave too often.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibrated_rl.errors import UserError
from calibrated_rl.settings.fields import Positive, Range, Seed, check_settings
from calibrated_rl.shift.base import Estimate, ratio_estimate
from calibrated_rl.shift.interface import Estimator, Floats, bootstrap
from calibrated_rl.statistics.absolute import debiased_absolute

_DRAWS = 400
"""Sets of outcomes drawn for the null band."""


@dataclass(frozen=True, kw_only=True)
class Endings:
    """One entry for each human user turn; all have length N."""

    probability: Sequence[float]
    """The simulator's, of ending the dialogue with this turn."""
    ended: Sequence[bool]
    """Whether the user ended it here."""
    turn: Sequence[int]
    """Which user turn of its dialogue, from 1."""
    dialogue: Sequence[str]
    draws: int | None = None
    """Where each probability is a share of so many draws; None: they are the simulator's own."""

    def __post_init__(self) -> None:
        lengths = {len(column) for column in (self.probability, self.ended, self.turn, self.dialogue)}
        assert len(lengths) == 1, f"endings differ in length: {lengths}"


@dataclass(frozen=True, slots=True)
class Bin:
    """One point of the calibration curve."""

    count: int
    probability: float
    """Mean of the probabilities in the bin."""
    outcome: float
    """Share that came true."""


def calibration_curve(probability: ArrayLike, outcome: ArrayLike, bins: int = 10) -> list[Bin]:
    """The bins of equal width that are not empty, from low to high.

    Raises:
        ValueError: a probability is not in 0 .. 1.
    """
    p, y = np.asarray(probability, np.float64), np.asarray(outcome, np.float64)
    place = _bin(p, bins)
    return [
        Bin(int(in_bin.sum()), float(p[in_bin].mean()), float(y[in_bin].mean()))
        for b in range(bins)
        for in_bin in [place == b]
        if in_bin.any()
    ]


def calibration_error(
    name: str, probability: ArrayLike, outcome: ArrayLike, cluster: Sequence[str], *, bins: int = 10, seed: int = 0
) -> Estimate:
    """Expected calibration error, 0 to 1, with its interval (clusters resampled) and null band.

    Raises:
        UserError: there is nothing to measure.
        ValueError: a probability is not in 0 .. 1.
    """
    p, y = np.asarray(probability, np.float64), np.asarray(outcome, np.float64)
    if not len(p):
        raise UserError(f"{name}: there is nothing to measure it on")
    bin_N = np.eye(bins)[_bin(p, bins)]
    user = np.unique(np.asarray(cluster, dtype=str), return_inverse=True)[1].astype(np.int64)
    own_CB = np.zeros((int(user.max()) + 1, bins))
    np.add.at(own_CB, user, (y - p)[:, None] * bin_N / len(p))
    spread_B = np.sqrt(len(own_CB) * own_CB.var(axis=0, ddof=min(1, len(own_CB) - 1)))

    def corrected(gap: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            nearer = spread_B * debiased_absolute(gap / spread_B)
        return np.asarray(np.where(spread_B > 0, nearer, np.abs(gap)).sum(axis=-1))

    def error(weights: Floats) -> Floats:
        return corrected((weights * (y - p)) @ bin_N / weights.sum(axis=1, keepdims=True))[:, None]

    plain = float(np.abs((y - p) @ bin_N / len(p)).sum())
    value = min(float(error(np.ones((1, len(p))))[0, 0]), plain)  # which of few outcomes the correction may exceed
    note = (f"without the correction for its bias {plain:.4f}",)
    resampled = bootstrap(error, (user,), seed, value=[value])
    outcomes = (np.random.default_rng((seed, 4)).random((_DRAWS, len(p))) < p).astype(np.float64)
    low, high = np.maximum(0.0, np.quantile(corrected((outcomes - p) @ bin_N / len(p)), [0.025, 0.975]))
    estimate = resampled.estimate(name, far="above", maximum=1.0, notes=note)
    return replace(estimate, null_low=float(low), null_high=float(high))


def _bin(p: Floats, bins: int) -> NDArray[np.int64]:
    if not (np.isfinite(p).all() and (p >= 0).all() and (p <= 1).all()):
        raise ValueError("probabilities must lie in 0 .. 1")
    return np.minimum((p * bins).astype(np.int64), bins - 1)


class EndingDecision(Estimator[Endings]):
    """``ending_f1``, ``ending_ece``, ``ending_bias``; see the module's docstring.

    ``measure`` raises UserError where there is no turn, and ValueError for a probability outside 0 .. 1.
    """

    @dataclass(frozen=True)
    class Config:
        threshold: Annotated[float, Range(at_least=0, below=1)] = 0.5
        """Probability above which the simulator is taken to end; never tuned on the data measured."""
        bins: Positive = 10
        """Bins of the calibration curve."""
        seed: Seed = 0
        """Of all random draws."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = config = config or self.Config()
        check_settings(config, "ending")

    def measure(self, data: Endings) -> dict[str, Estimate]:
        p, ended = np.asarray(data.probability, np.float64), np.asarray(data.ended, bool)
        ece = calibration_error("ending_ece", p, ended, data.dialogue, bins=self.config.bins, seed=self.config.seed)
        predicted = p > self.config.threshold
        if data.draws is not None:
            # The band takes the probabilities as they are; that of shares would leave out the chance of the draws.
            note = f"probabilities are shares of {data.draws} draws, whose chance alone makes the error positive"
            ece = replace(ece, null_low=None, null_high=None, notes=(*ece.notes, note))
        true_positives, denominators = 2.0 * (predicted & ended), (predicted.astype(float) + ended)
        estimates = {"ending_ece": ece}
        common = {"turns": data.turn, "dialogues": data.dialogue, "seed": self.config.seed}
        if denominators.sum() > 0:
            estimates["ending_f1"] = ratio_estimate("ending_f1", true_positives, denominators, **common)  # type: ignore[arg-type]
        else:
            undefined = ("nobody ends a dialogue and none is predicted to: F1 is undefined",)
            estimates["ending_f1"] = Estimate(name="ending_f1", value=np.nan, low=np.nan, high=np.nan, notes=undefined)
        estimates["ending_bias"] = ratio_estimate("ending_bias", p - ended, np.ones(len(p)), **common)  # type: ignore[arg-type]
        return estimates
