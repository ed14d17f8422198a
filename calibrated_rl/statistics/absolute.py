"""Estimating ``|z|`` from ``z^ ~ N(z, 1)``: the plug-in is biased upwards, at most where ``z`` is 0.

No unbiased estimator exists (``|z|`` has a kink); this takes the best approximation in the sense of Cai and Low,
"Testing composite hypotheses, Hermite polynomials and optimal estimation of a nonsmooth functional" (Annals of
Statistics, 2011), with Gaussians for polynomials.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

Floats = NDArray[np.float64]

_WIDTHS = np.array([0.5, 1.0, 2.0])
"""Of the Gaussians that make the correction; a fourth changes nothing that can be seen."""
_PENALTY = 0.003
"""On the correction's size: ten times less halves no bias and adds variance, ten times more gives half of it away."""
_FARTHEST = 4.0
"""Beyond this many standard errors the plug-in has no bias to speak of."""


def _fit_correction() -> Floats:
    """Weights of the Gaussians. All expectations over ``z^ ~ N(z, 1)`` are closed: that of ``exp(-z^2 / 2w)`` is
    ``sqrt(w / (1 + w)) exp(-z^2 / 2(1 + w))``, and ``E|z^| - |z| = 2 (phi(z) - z Phi(-z))`` for positive z."""
    z = np.linspace(0.0, _FARTHEST, 401)[:, None]

    def expected(square: Floats) -> Floats:
        return np.sqrt(square / (1 + square)) * np.exp(-(z**2) / (2 * (1 + square)))

    bias = 2 * (np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi) - z * ndtr(-z))[:, 0]
    mean_ZK = expected(_WIDTHS**2)
    inverse_widths = _WIDTHS**-2.0
    squares_KK = np.stack(
        [expected(1 / (inverse_widths + inverse_width)).mean(axis=0) for inverse_width in inverse_widths]
    )
    return np.linalg.solve(mean_ZK.T @ mean_ZK / len(z) + _PENALTY * squares_KK, mean_ZK.T @ bias / len(z))


_WEIGHTS = _fit_correction()


def debiased_absolute(z: Floats) -> Floats:
    """A function of ``z^ ~ N(z, 1)`` whose mean is nearly ``|z|``: at most 0.3 above (at 0) and 0.1 below (near 1).

    ``z`` may have any shape; single values may be negative, which is what takes the bias out of sums of them.
    """
    absolute = np.abs(z)
    correction = sum(w * np.exp(-0.5 * (absolute / s) ** 2) for w, s in zip(_WEIGHTS, _WIDTHS, strict=True))
    return np.asarray(absolute - correction)
